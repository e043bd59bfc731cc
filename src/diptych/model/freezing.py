"""Freeze tensors of the model that match patterns of names, so that training leaves them bit by bit as they are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate

from torch import nn

from diptych.errors import UserError


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters and running statistics whose names match `model.freeze`.

    Batch normalisation whose running statistics match uses them as they are, as in evaluation. Layers that draw random
    masks, such as dropout, still do.

    Raises:
        UserError: a pattern matches nothing, or all parameters are matched.
    """
    frozen = {name for names in matching(patterns, model.state_dict(), "model.freeze") for name in names}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"model.freeze {list(patterns)} freezes every parameter; leave some to be trained")
    for prefix, module in model.named_modules():
        if f"{prefix}.running_mean" in frozen:
            module.eval()


def matching(patterns: Iterable[str], names: Iterable[str], key: str) -> list[list[str]]:
    """For each pattern of the setting `key` the names that it matches, as a shell matches file names.

    Raises:
        UserError: a pattern matches none of the names.
    """
    names = list(names)
    found = [[name for name in names if fnmatchcase(name, pattern)] for pattern in patterns]
    for pattern, matched in zip(patterns, found, strict=True):
        if not matched:
            parts = (list(accumulate(name.split("."), "{}.{}".format))[:-1] for name in names)
            known = [*names, *dict.fromkeys(f"{part}.*" for several in parts for part in several)]
            near = difflib.get_close_matches(pattern, known, 3, 0)
            raise UserError(f"{key} {pattern!r} matches no tensor of the model; near it are {', '.join(near)}")
    return found
