"""Lists of what is not wanted, in files of one entry a line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from diptych.files import read_text
from diptych_shards.curate.boilerplate import words_of


@dataclass(frozen=True)
class PhraseList:
    """Phrases that are looked for as whole words, whatever the case and the punctuation between them."""

    phrases: frozenset[str] = frozenset()

    @classmethod
    def of(cls, phrases: Iterable[str]) -> PhraseList:
        return cls(frozenset(words_of(phrase) for phrase in phrases) - {""})

    def is_in(self, caption: str) -> bool:
        if not self.phrases:
            return False
        words = words_of(caption).split(" ")
        return any(
            " ".join(words[first : first + length]) in self.phrases
            for length in self._lengths
            for first in range(len(words) - length + 1)
        )

    @cached_property
    def _lengths(self) -> list[int]:
        return sorted({phrase.count(" ") + 1 for phrase in self.phrases})


@dataclass(frozen=True)
class HostList:
    """Hosts, each with all below it: `example.org` is also `img.example.org`."""

    hosts: frozenset[str] = frozenset()

    @classmethod
    def of(cls, hosts: Iterable[str]) -> HostList:
        return cls(frozenset(host.strip().strip(".").lower() for host in hosts) - {""})

    def has(self, url: str) -> bool:
        if not self.hosts:
            return False
        try:
            host = (urlsplit(url).hostname or "").rstrip(".")
        except ValueError:
            return False
        parts = host.split(".")
        return any(".".join(parts[first:]) in self.hosts for first in range(len(parts)))


def read_lines(path: Path) -> list[str]:
    """The lines of a file in UTF-8 that are not empty."""
    lines = read_text(path, "name a file of one entry a line").split("\n")
    return [line.rstrip("\r") for line in lines if line.strip()]
