"""Where the main thread of each rank is, and which ranks did not arrive where the others wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from diptych.terminal import counted

Phase = Literal["start", "evaluation", "checkpoint", "batch", "step", "end"]
PHASES = {
    "start": "is starting",
    "evaluation": "measures the model",
    "checkpoint": "saves or loads a checkpoint",
    "batch": "waits for its batch",
    "step": "is in the step",
    "end": "is ending",
}
"""What the main thread can be doing at a number of samples, in the order of time."""
LIMITED = ("batch", "step")
"""Phases whose length has a limit. The others may last for hours while a rank is at work."""
LONG = ("start", "evaluation", "end")
"""Of these, the phases that must end at some time. A save may wait for room on the disk as long as the config says."""
MOST_NAMED = 16
"""A line names at most so many ranks; the others are in end.json."""


@dataclass(frozen=True)
class Place:
    """Where the main thread of a rank is."""

    phase: Phase
    samples_seen: int
    seconds: float
    """How long it has been there."""
    waits: bool
    """Whether it waits for other ranks, as far as Python can see."""
    host: str


def blame(places: Mapping[int, Place], size: int, host_of: Callable[[int], str]) -> tuple[str, list[int]]:
    """What hangs, in words, and the ranks that did not arrive where the others wait.

    places: of the ranks that answered.
    host_of: the machine of a rank that did not.
    """
    mute = [rank for rank in range(size) if rank not in places]
    if mute:
        does = "do" if mute[1:] else "does"
        return f"{_named(mute, size, host_of(mute[0]))} {does} not answer: stopped, or its machine is lost", mute
    at = {rank: (place.samples_seen, list(PHASES).index(place.phase)) for rank, place in places.items()}
    behind = [rank for rank in at if at[rank] == min(at.values())]
    if len(behind) == size and size > 1:
        behind = [rank for rank in places if not places[rank].waits] or behind
    place = places[behind[0]]
    if len(behind) == size:
        who = "every rank" if size > 1 else "the run"
        return f"{who} {describe(place)}", behind
    return f"{_named(behind, size, place.host)} {describe(place)}", behind


def _named(ranks: list[int], size: int, host: str) -> str:
    """`rank 1 of 4 (on node7)`; of several ranks it is the first that is on this host."""
    if len(ranks) == 1:
        return f"rank {ranks[0]} of {size} (on {host})"
    more = f" and {len(ranks) - MOST_NAMED} more" if len(ranks) > MOST_NAMED else ""
    return f"ranks {', '.join(map(str, ranks[:MOST_NAMED]))}{more} of {size} (the first on {host})"


def describe(place: Place) -> str:
    return f"{PHASES[place.phase]} after {counted(place.samples_seen, 'sample')}, for {place.seconds:.0f} s"
