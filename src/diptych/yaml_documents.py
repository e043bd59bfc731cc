"""YAML that people write, as `documents` reads JSON; by itself, since the data side does without PyYAML."""

from __future__ import annotations

from typing import Any

import yaml

from diptych.documents import why_not_read


def parse_yaml(text: str) -> Any:
    """The plain values of a YAML document.

    Raises:
        yaml.YAMLError: it is no YAML, has a key twice, a value that its type cannot have, or too many levels; with
            line, key and the way out where they are known.
    """
    try:
        return yaml.load(text, _Loader)
    except (ValueError, RecursionError) as error:  # such as 2024-13-45, 5,000 digits
        raise yaml.YAMLError(why_not_read(error)) from error


class _Loader(yaml.SafeLoader):
    """Merged keys (`<<`) may repeat what is written out: that is what they are for."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if before := lines.get((key.tag, key.value)):
                problem = f"the key {key.value!r} is there twice, first in line {before}; keep one of the two"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.tag, key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)
