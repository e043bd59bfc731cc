"""Decide whether a verdict of `dedup` still holds together with the other verdicts.

Of several samples that are the same, `dedup` keeps one. If a filter left that one out, all of them would be lost. So
`dedup` chooses among the samples that the other verdicts keep; those left out take no part, connect nothing, and are
kept as far as it is concerned. It records which verdicts these were, by name and sha256. Its own verdict is stale
when one of them is missing or has changed, and when there is a filter that was not one of them.

Of two verdicts of `dedup`, the later one takes the earlier one into account. Written again, the earlier one
ignores all that depend on it, so that there is no cycle; those are stale then, unless its result is the same.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from diptych.data.shards import ShardIndex
from diptych.terminal import shown
from diptych_shards.select.select_folder import select_folder
from diptych_shards.select.verdicts import (
    Verdict,
    VerdictError,
    names_of_verdicts,
    outdated,
    read_verdict,
    read_verdicts,
)


def verdicts_to_consider(shards: Path, index: ShardIndex, name: str) -> list[Verdict]:
    """The verdicts that leave the samples that the `dedup` of this name chooses among.

    They are all filters, and the other verdicts of `dedup` that hold without this one. One that depends on this one,
    or is stale, must be written again in any case.

    Raises:
        VerdictError: a verdict is damaged, or the shards changed after a filter was written.
    """
    there = {other: read_verdict(shards, other) for other in names_of_verdicts(shards) if other != name}
    current = {other: verdict for other, verdict in there.items() if verdict.is_of(index)}
    for verdict in there.values():
        if verdict.name not in current and not verdict.chooses:
            raise outdated(verdict)
    return [v for v in current.values() if _holds(v, current)]


def verdicts_that_hold(shards: Path, index: ShardIndex, names: Sequence[str] | None = None) -> list[Verdict]:
    """All verdicts, or those with these names.

    Raises:
        VerdictError: one cannot be read, or does not hold next to the others; the message says what to run.
    """
    verdicts = read_verdicts(shards, index, names)
    _refuse_stale(shards, verdicts)
    return verdicts


def what_is_stale(shards: Path, index: ShardIndex) -> str:
    """Describe in one line which verdict is stale; empty if none is."""
    try:
        verdicts_that_hold(shards, index)
    except VerdictError as error:
        return str(error)
    return ""


def _refuse_stale(shards: Path, verdicts: Sequence[Verdict]) -> None:
    there = {verdict.name: verdict for verdict in verdicts}
    choosing = [verdict for verdict in verdicts if verdict.chooses]
    for verdict in choosing:
        left_out = [name for name in verdict.considered if name not in there]
        if left_out and (select_folder(shards) / f"{left_out[0]}.parquet").exists():
            raise VerdictError(f"the verdict {verdict.name!r} chose among the samples that {left_out[0]!r} keeps; "
                              f"add --verdict {left_out[0]}")  # fmt: skip
        if flaw := _flaw(verdict, there):
            raise _stale(shards, verdict, flaw)
    for one, other in combinations(choosing, 2):
        if one.name not in other.considered and other.name not in one.considered:
            raise _stale(shards, other, f"was written without {one.name!r}")


def _flaw(verdict: Verdict, there: Mapping[str, Verdict]) -> str | None:
    """Why a verdict that chooses is stale; None if it is not. The verdicts that it depends on are not examined."""
    for name, sha256 in verdict.considered.items():
        if name not in there:
            return f"chose among the samples that {name!r} keeps, which is gone"
        if there[name].sha256 != sha256:
            return f"chose among the samples that {name!r} keeps, which has changed"
    for other in there.values():
        if not other.chooses and other.name not in verdict.considered:
            return f"was written without {other.name!r}"
    return None


def _holds(verdict: Verdict, there: Mapping[str, Verdict]) -> bool:
    if not verdict.chooses:
        return True
    return _flaw(verdict, there) is None and all(_holds(there[name], there) for name in verdict.considered)


def _stale(shards: Path, verdict: Verdict, flaw: str) -> VerdictError:
    return VerdictError(f"the verdict {verdict.name!r} {flaw}; run again: {_command(shards, verdict)}")


def _command(shards: Path, verdict: Verdict) -> str:
    """The command that writes the verdict again, with the same options."""
    words = ["diptych-shards", verdict.facts["command"], str(shards)]
    for name, value in verdict.facts["options"].items():
        option = f"--{name.replace('_', '-')}"
        for each in value if isinstance(value, list) else [value]:
            if each is True:
                words.append(option)
            elif each is not None and each is not False:
                words.append(f"{option}={each}")
    return shown(shlex.join(words))
