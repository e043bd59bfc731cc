"""Memory for bodies: while it is full, all transfers but one pause."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych_shards.fetch.transfer import Transfer

MAX_HELD_BYTES = 256 * 2**20
"""Bodies in memory, finished or not."""


class BodyMemory:
    """Counts the bytes of bodies, and says who has to wait for room."""

    def __init__(self) -> None:
        self.held_bytes = 0
        """Whoever keeps a body adds its bytes, and takes them off when it is gone."""
        self._paused: deque[Transfer] = deque()
        self._spared: Transfer | None = None  # the one that does not pause, so that something gets done

    @property
    def is_full(self) -> bool:
        return self.held_bytes > MAX_HELD_BYTES

    def must_pause(self, transfer: Transfer) -> bool:
        """Whether it pauses now; asked when there is no room for what comes."""
        if self._spared is None:
            self._spared = transfer
        if transfer is self._spared:
            return False
        transfer.pause()
        self._paused.append(transfer)
        return True

    def note_end(self, transfer: Transfer) -> None:
        """It will keep nothing more."""
        if transfer is self._spared:
            self._spared = None

    def resume(self, in_flight: Container[object]) -> None:
        """Let go on what there is room for; in_flight: the transfers that have not ended."""
        while self._paused and (not self.is_full or self._spared is None):
            transfer = self._paused.popleft()
            if not transfer.is_paused or transfer not in in_flight:
                continue
            if self._spared is None:
                self._spared = transfer
            transfer.resume()
