"""What a pack starts from: pictures that have a caption, and what is refused before a picture is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diptych.errors import UserError
from diptych_shards.refusals import Refusal


class PackError(UserError):
    """The command cannot be carried out; the message is one line for its user."""


@dataclass(frozen=True)
class Candidate:
    """A picture and where its caption is: in files beside it, or given by a table."""

    path: str
    """Relative to the folder, with `/`."""
    num_bytes: int
    text_path: str = ""
    json_path: str = ""
    captions: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PackInput:
    """All that was found, in the order of its paths' bytes (of a table: of the rows)."""

    candidates: list[Candidate]
    refusals: list[Refusal]
    fingerprint: str
    """Of names, sizes, modification times, and the table's bytes: what a continued pack must find
    unchanged."""
