"""The options that decide what `extract` writes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from diptych.errors import UserError
from diptych_shards.fetch.options import OPT_OUT_DIRECTIVES


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    surrounding_text: bool = False
    """Take the text around a picture as its caption if it has no other."""
    max_page_bytes: int = 16 << 20
    """Longer pages are cut; crawls cut theirs at 1 to 5 MiB."""
    max_pictures_per_page: int = 10_000
    max_caption_characters: int = 4096
    """Longer captions are cut."""
    icon_side: int = 32
    """Pictures that the page shows at most this large, in pixels, are icons."""
    opt_outs: tuple[str, ...] = OPT_OUT_DIRECTIVES
    """Pages that state one of these yield no pair."""

    def __post_init__(self) -> None:
        if self.icon_side < 0:
            raise UserError(f"icon_side is {self.icon_side}; it must be at least 0 (no picture is an icon)")

    @cached_property
    def stated_opt_outs(self) -> tuple[bytes, ...]:
        """The words that a page may state to us, in lower case: the opt-outs and those that include them."""
        return tuple(word.lower().encode() for word in dict.fromkeys((*OPT_OUT_DIRECTIVES, *self.opt_outs, "none")))
