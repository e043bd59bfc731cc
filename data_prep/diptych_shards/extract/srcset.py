"""The candidates of a `srcset`, and the largest of them."""

from __future__ import annotations

import re
from typing import NamedTuple

# A URL runs to the next white space and may hold commas; those at its end close the candidate.
# In the descriptors that follow, a comma closes the candidate unless it stands in parentheses.
_CANDIDATE = re.compile(r"[\s,]*([^\s,]\S*)((?:[^(),]|\([^)]*\))*)")
_WIDTH = re.compile(r"(?<!\S)(\d{1,7})w(?!\S)")
_DENSITY = re.compile(r"(?<!\S)(\d{1,4}(?:\.\d{1,40})?|\.\d{1,40})x(?!\S)")
MAX_CANDIDATES = 100


class Candidate(NamedTuple):
    url: str
    width: int | None
    density: float

    @property
    def size(self) -> tuple[int, float]:
        """Grows with the picture; a stated width says more than a density."""
        return self.width or 0, self.density


def candidates(srcset: str) -> list[Candidate]:
    """In their order; of a list without end the first hundred."""
    found: list[Candidate] = []
    position = 0
    while len(found) < MAX_CANDIDATES:
        match = _CANDIDATE.match(srcset, position)
        if not match:
            break
        url, descriptors, position = match[1], match[2], match.end()
        if url.endswith(","):
            url, descriptors, position = url.rstrip(","), "", match.end(1)
        width, density = _WIDTH.search(descriptors), _DENSITY.search(descriptors)
        found.append(Candidate(url, int(width[1]) if width else None, float(density[1]) if density else 1.0))
    return found


def largest(found: list[Candidate]) -> Candidate | None:
    """The first of the largest."""
    return max(found, key=lambda candidate: candidate.size, default=None)
