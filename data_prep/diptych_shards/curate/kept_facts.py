"""Where the kept pairs point and how long their captions are, for the page: counted part by part, in bounded memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diptych_shards.report.hosts import Domains
from diptych_shards.report.tally import LONGEST_CAPTION, Tally, add_lengths

if TYPE_CHECKING:
    import pyarrow

DOMAINS_PER_PART = 1_000
"""The most frequent ones of each part are added up; all that is rarer is `the rest`."""


class KeptFacts:
    """Of the pairs of one part, or of all parts."""

    def __init__(self) -> None:
        self.domains: Counter[str] = Counter()
        self.characters = Tally(LONGEST_CAPTION)
        self.words = Tally(LONGEST_CAPTION)
        self._seen = Domains()

    def add(self, urls: pyarrow.Array, captions: pyarrow.Array) -> None:
        self._seen.add(urls, np.ones(len(urls), bool))
        add_lengths(captions, self.characters, self.words)

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        domains = {domain.name: domain.kept for domain in self._seen.most_frequent(DOMAINS_PER_PART)}
        return {"domains": domains, "characters": self.characters.nonzero, "words": self.words.nonzero}


def read_kept_facts(files: Iterable[Path]) -> KeptFacts:
    """Of all parts; those that were written before parts had such files count nothing."""
    facts = KeptFacts()
    for file in files:
        if file.exists():
            part = json.loads(file.read_bytes())
            facts.domains.update(part["domains"])
            facts.characters.add_counts(part["characters"])
            facts.words.add_counts(part["words"])
    return facts
