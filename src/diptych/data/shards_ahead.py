"""Fetch remote shards before they are read, several at a time, in the order in which the reader will need them.

Each loader process has threads that do so for its own pieces of batches. The locks of the cache deal the shards out
among the processes, so they need not know of one another, and a process that ends takes its threads with it. Threads
for the whole machine would need a process of their own, and a way to tell it where every reader is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue

import numpy as np

from diptych.data.shard_cache import FullCacheError
from diptych.data.shard_index_file import Sample
from diptych.data.shards import ShardIndex, max_open_shards
from diptych.errors import UserError
from diptych.files import OpenFile

SAMPLES_AHEAD = 32_768
"""How far a process looks ahead in its part of the plan: half a minute of its work, in which a shard is fetched."""
FETCHES_AT_ONCE = 8
"""How many shards a rank fetches at a time, in all its loader processes together; each of them fetches at least one.
An object store sends 50 to 100 MB a second over one connection, and a tiny shard takes as long as the answer does."""
BUSY_SECONDS, FULL_SECONDS = 0.2, 5.0
"""Pauses when other processes fetch all that is wanted, and when the cache has no room."""

logger = logging.getLogger(__name__)


@contextmanager
def shards_ahead(
    index: ShardIndex, plan: Iterator[Sequence[int]], pieces_ahead: int, processes: int = 1
) -> Iterator[Callable[[], None]]:
    """Fetch the shards of the plan during the block, and keep them in the cache until they are read.

    plan: the numbers of the shards that each piece needs, piece after piece.
    pieces_ahead: how many pieces after the one that is read are looked at.
    processes: how many loader processes the rank has.

    The value is to be called whenever the reader begins a piece.
    """
    if not index.shards.is_elsewhere:
        yield lambda: None
        return
    ahead = _ShardsAhead(index, plan, pieces_ahead, fetches=-(-FETCHES_AT_ONCE // processes))
    ahead.start()
    try:
        yield ahead.begin_piece
    finally:
        ahead.end()


def all_samples(index: ShardIndex) -> Iterator[Sample]:
    """Yield all samples of an index in order; the shards of the next ones are fetched meanwhile."""
    for number in _one_after_another(index, range(len(index.shards))):
        yield from index.samples(number)


def each_ahead(index: ShardIndex, samples: Sequence[int]) -> Iterator[int]:
    """Yield these numbers of samples as they are; the shards of the next ones are fetched meanwhile.

    Samples of one shard should follow one another.
    """
    shards, _ = index.locate_many(np.asarray(samples))
    starts = np.flatnonzero(np.diff(shards, prepend=-1))
    _, *of_shards = np.split(np.asarray(samples), starts)
    for _, of_shard in zip(_one_after_another(index, shards[starts].tolist()), of_shards, strict=True):
        yield from of_shard.tolist()


def _one_after_another(index: ShardIndex, shards: Sequence[int]) -> Iterator[int]:
    """Yield these numbers of shards, each of which is read until the next one is asked for."""
    with shards_ahead(index, ([number] for number in shards), FETCHES_AT_ONCE) as begin_piece:
        for number in shards:
            begin_piece()
            yield number


class _ShardsAhead:
    """A thread that plans, and threads that fetch.

    The thread that plans takes room in the cache for one shard after another, so that no shard that is needed later
    gets the room of one that is needed earlier. Attributes that are not marked as shared belong to it alone.
    """

    def __init__(self, index: ShardIndex, plan: Iterator[Sequence[int]], pieces_ahead: int, fetches: int):
        self._index = index
        self._plan = plan
        self._pieces_ahead = pieces_ahead
        self._fetches = fetches
        self._last_piece: dict[int, int] = {}
        """Shard → the last piece, of those looked at, that needs it; in the order of the plan."""
        self._under_way: set[int] = set()
        """Shards that are being fetched here."""
        self._held: dict[int, OpenFile | None] = {}
        """Shard → open file that keeps it in the cache; None if it is on this machine, or cannot be fetched."""
        self._looked_at = 0
        self._piece = 0
        """Shared: the piece that is read."""
        self._is_over = False
        """Shared."""
        self._begun: SimpleQueue[tuple[int, Callable[[], OpenFile]] | None] = SimpleQueue()
        """Shared: shards that have their room, with what fetches and holds them; None ends a thread that fetches."""
        self._news: SimpleQueue[tuple[int, OpenFile | None] | None] = SimpleQueue()
        """Shared: shards that were fetched, as in `_held`; None if `_piece` or `_is_over` has changed."""

    def start(self) -> None:
        for work in (self._work, *[self._fetch] * self._fetches):
            # The end of the process does not wait for daemons, nor they for a store that does not answer.
            threading.Thread(target=work, name="shards-ahead", daemon=True).start()

    def begin_piece(self) -> None:
        """Note that the reader begins its next piece; shards that only earlier ones need may be deleted."""
        self._piece += 1
        self._news.put(None)

    def end(self) -> None:
        self._is_over = True
        self._news.put(None)

    def _fetch(self) -> None:
        for number, hold in iter(self._begun.get, None):
            self._news.put((number, _held_or_none(hold)))

    def _work(self) -> None:
        """Fetch and hold what is needed next, until `end`; look further when all that is known to be needed is held."""
        while not self._is_over:
            self._let_go()
            self._take_news(self._begin_fetches())
        for _ in range(self._fetches):
            self._begun.put(None)

    def _begin_fetches(self) -> float | None:
        """Begin fetches up to the limit; return how many seconds to wait for news, None for no limit."""
        while len(self._under_way) < self._fetches:
            room = max_open_shards() - len(self._held) - len(self._under_way)
            known = self._held.keys() | self._under_way
            wanted = [number for number in self._last_piece if number not in known][:room]
            try:
                if not any(map(self._begin, wanted)) and not self._look_further():
                    return BUSY_SECONDS if wanted else None
            except FullCacheError:
                return FULL_SECONDS
        return None

    def _begin(self, number: int) -> bool:
        """Begin to fetch a shard; False if another process is fetching it."""
        shard = self._index.shards[number]
        if shard.origin is None:
            self._held[number] = None
            return True
        try:
            hold = shard.origin.cache.reserve(shard)
        except (UserError, OSError) as error:
            logger.info("%s", error)  # the reader raises it, as in `_held_or_none`
            self._held[number] = None
            return True
        if hold is None:
            return False
        self._under_way.add(number)
        self._begun.put((number, hold))
        return True

    def _look_further(self) -> bool:
        """Look at one more piece of the plan; False if enough is known, or nothing more is planned."""
        if self._looked_at > self._piece + self._pieces_ahead or len(self._held) >= max_open_shards():
            return False
        shards = next(self._plan, None)
        if shards is None:
            return False
        self._looked_at += 1
        for shard in shards:
            self._last_piece[shard] = self._looked_at
        return True

    def _take_news(self, seconds: float | None) -> None:
        """Wait up to `seconds` for fetched shards, and record all that there are."""
        with suppress(Empty):
            news = self._news.get(timeout=seconds)
            while True:
                if news is not None:
                    number, file = news
                    self._under_way.discard(number)
                    if number in self._last_piece:
                        self._held[number] = file
                news = self._news.get_nowait()

    def _let_go(self) -> None:
        """Let go of the shards that neither the piece that is read nor a later one needs."""
        for number in [number for number, last in self._last_piece.items() if last < self._piece]:
            del self._last_piece[number]
            self._held.pop(number, None)


def _held_or_none(hold: Callable[[], OpenFile]) -> OpenFile | None:
    try:
        return hold()
    except (FullCacheError, UserError, OSError) as error:
        logger.info("%s", error)  # the reader raises it, unless it passes
        return None
