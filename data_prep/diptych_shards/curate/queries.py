"""Make a list of queries from a corpus, as CLIP's was made: frequent words, then pairs of words, then titles.

Radford et al. 2021, section 2.2, and Xu et al. 2023, table 1: words that occur 100 times in English Wikipedia, bigrams
of high pointwise mutual information, titles of articles, cut at 500,000 in this order. Words of different case are
different words, as in matching. Memory holds a million different words and pairs, and all frequent words.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from diptych_shards.curate.corpus import CorpusCounts
from diptych_shards.curate.matching import spaced
from diptych_shards.curate.options import CurateError

MOST_CHARACTERS = 256


@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    min_count: int = 100
    """The smallest count of a word that becomes a query."""
    min_pmi: float = 30.0
    """The smallest information of two words: log2(count of the pair * all words / (count of one * of the other))."""
    min_pair_count: int = 2
    """The smallest count of a pair; the information of one that occurs once is as high as can be, and means nothing."""
    most: int = 500_000

    def __post_init__(self) -> None:
        for name in ("min_count", "min_pair_count", "most"):
            if getattr(self, name) < 1:
                raise CurateError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not math.isfinite(self.min_pmi):
            raise CurateError(f"min_pmi is {self.min_pmi}; it must be a number of bits")


@dataclass(frozen=True)
class QueryList:
    queries: list[str]
    num_words: int
    """Words in the corpus."""
    given: int
    words: int
    pairs: int
    titles: int
    """How many queries come from each source."""


def highest_pmi(num_words: int, options: QueryOptions) -> float:
    """The highest information of a pair in a corpus of so many words: of two rare words that occur only together."""
    return math.log2(max(num_words, 1) / options.min_pair_count)


def build_queries(
    counts: CorpusCounts, options: QueryOptions, *, first: Iterable[str] = (), titles: Iterable[str] = ()
) -> QueryList:
    """Build the list; what comes last is cut.

    first: entries before all others (numbers, WordNet's lemmas). titles: titles of articles, the most viewed first.
    """
    words = {word: n for word, n in counts.words() if n >= min(options.min_count, options.min_pair_count)}
    parts = [
        list(filter(_fits, first)),
        _frequent(words, options),
        _belonging_together(counts.pairs(), words, counts.num_words, options),
        list(filter(_fits, map(title_query, titles))),
    ]
    queries: dict[str, None] = {}
    sizes = []
    for part in parts:
        before = len(queries)
        for query in part:
            if len(queries) == options.most:
                break
            queries[query] = None
        sizes.append(len(queries) - before)
    return QueryList(list(queries), counts.num_words, *sizes)


def title_query(title: str) -> str:
    """The title as captions are spaced, `St .  Louis` for `St._Louis`; without the spaces it would never be found."""
    return "" if ":" in title else spaced(" ".join(title.replace("_", " ").split())).strip(" ")


def _frequent(counts: dict[str, int], options: QueryOptions) -> list[str]:
    frequent = [word for word, count in counts.items() if count >= options.min_count and _fits(word)]
    return sorted(frequent, key=lambda word: (-counts[word], word))


def _belonging_together(
    pairs: Iterable[tuple[str, int]], counts: dict[str, int], num_words: int, options: QueryOptions
) -> list[str]:
    def candidates() -> Iterator[tuple[float, int, str]]:
        for pair, count in pairs:
            one, other = pair.split(" ")
            if count >= options.min_pair_count and _has_letter(one) and _has_letter(other) and _fits(pair):
                pmi = math.log2(count * num_words) - math.log2(counts[one] * counts[other])
                if pmi >= options.min_pmi:
                    yield -pmi, -count, pair

    return [pair for _, _, pair in heapq.nsmallest(options.most, candidates())]


def _fits(query: str) -> bool:
    return 0 < len(query) <= MOST_CHARACTERS and _has_letter(query)


def _has_letter(word: str) -> bool:
    """Whether the word has a letter or digit; signs alone are no query."""
    return any(map(str.isalnum, word))
