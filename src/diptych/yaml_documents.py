"""Read YAML that people write; a file apart from `documents`, since the data side does not need PyYAML."""

from __future__ import annotations

from typing import Any

import yaml

from diptych.documents import why_not_read


def parse_yaml(text: str) -> Any:
    """The plain values of a YAML document.

    Raises:
        yaml.YAMLError: it is not YAML, repeats a key, has an impossible value (such as a 13th month), or too many
            levels. The error gives line, key and way out if they are known.
    """
    try:
        return yaml.load(text, _Loader)
    except (ValueError, RecursionError) as error:  # such as 2024-13-45, 5,000 digits
        raise yaml.YAMLError(why_not_read(error)) from error


class _Loader(yaml.SafeLoader):
    """A loader that refuses repeated keys; only a merge key (`<<`) may repeat a key that is written out."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if before := lines.get((key.tag, key.value)):
                problem = f"the key {key.value!r} appears twice, first in line {before}; keep one of the two"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.tag, key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)
