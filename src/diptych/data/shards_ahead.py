"""Fetch remote shards before they are read, in the order in which the reader will need them.

Each loader process has a thread that does so for its own pieces of batches. The locks of the cache deal the shards out
among these threads, so they need not know of one another, and a process that ends takes its thread with it. A single
thread for the machine would need a process of its own, and a way to tell it where every reader is.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from diptych.data.shard_cache import FullCacheError
from diptych.data.shards import ShardIndex, max_open_shards
from diptych.errors import UserError

SAMPLES_AHEAD = 32_768
"""How far a process looks ahead in its part of the plan: half a minute of its work, in which a shard is fetched."""
BUSY_SECONDS, FULL_SECONDS = 0.2, 5.0
"""Pauses when other processes fetch all that is wanted, and when the cache has no room."""

logger = logging.getLogger(__name__)


@contextmanager
def shards_ahead(index: ShardIndex, plan: Iterator[Sequence[int]], pieces_ahead: int) -> Iterator[Callable[[], None]]:
    """Fetch the shards of the plan during the block, and keep them in the cache until they are read.

    plan: the numbers of the shards that each piece needs, piece after piece.
    pieces_ahead: how many pieces after the one that is read are looked at.

    The value is to be called whenever the reader begins a piece.
    """
    if not index.shards.is_elsewhere:
        yield lambda: None
        return
    ahead = _ShardsAhead(index, plan, pieces_ahead)
    threading.Thread(target=ahead.work, name="shards-ahead", daemon=True).start()
    try:
        yield ahead.begin_piece
    finally:
        ahead.end()


class _ShardsAhead:
    """What the reader and the thread share."""

    def __init__(self, index: ShardIndex, plan: Iterator[Sequence[int]], pieces_ahead: int):
        self._index = index
        self._plan = plan
        self._pieces_ahead = pieces_ahead
        self._last_piece: dict[int, int] = {}
        """Shard → the last piece, of those looked at, that needs it; in the order of the plan."""
        self._held: dict[int, int | None] = {}
        """Shard → open file that keeps it in the cache; None if it is on this machine, or cannot be fetched."""
        self._looked_at = 0
        self._piece = 0
        self._is_over = False
        self._changed = threading.Condition()

    def begin_piece(self) -> None:
        """Note that the reader begins its next piece; shards that only earlier ones need may be deleted."""
        with self._changed:
            self._piece += 1
            self._changed.notify()

    def end(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify()

    def work(self) -> None:
        """Fetch and hold what is needed next, until `end`; look further when all that is known to be needed is held."""
        while not self._is_over:
            piece = self._piece
            self._let_go(piece)
            room = max_open_shards() - len(self._held)
            wanted = [shard for shard in self._last_piece if shard not in self._held][:room]
            pause = BUSY_SECONDS if wanted else None
            try:
                if any(self._hold(shard) for shard in wanted) or self._look_further(piece):
                    continue
            except FullCacheError:
                pause = FULL_SECONDS
            with self._changed:
                if not self._is_over and self._piece == piece:
                    self._changed.wait(pause)
        self._let_go(None)

    def _hold(self, shard_number: int) -> bool:
        """Hold the shard; False if another process is fetching it."""
        shard = self._index.shards[shard_number]
        descriptor = None
        if shard.origin is not None:
            try:
                descriptor = shard.origin.cache.hold(shard)
            except FullCacheError:
                raise
            except (UserError, OSError) as error:
                logger.info("%s", error)  # the reader raises it, unless it passes
            else:
                if descriptor is None:
                    return False
        self._held[shard_number] = descriptor
        return True

    def _look_further(self, piece: int) -> bool:
        """Look at one more piece of the plan; False if enough is known, or nothing more is planned."""
        if self._looked_at > piece + self._pieces_ahead or len(self._held) >= max_open_shards():
            return False
        shards = next(self._plan, None)
        if shards is None:
            return False
        self._looked_at += 1
        for shard in shards:
            self._last_piece[shard] = self._looked_at
        return True

    def _let_go(self, piece: int | None) -> None:
        """Let go of the shards that no piece from the one that is read on needs; None: of all."""
        for shard in [shard for shard, last in self._last_piece.items() if piece is None or last < piece]:
            del self._last_piece[shard]
            if (descriptor := self._held.pop(shard, None)) is not None:
                os.close(descriptor)
