"""Pack pictures with captions into shards, each written whole or not at all.

Names and sizes alone decide which candidate goes to which shard, before a picture is opened. So every shard can be
made by itself: a finished one is kept, the others are made again, and the bytes come out the same.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from diptych.data.picture_formats import MAX_PIXELS
from diptych.data.shard_index_file import ShardError, index_path
from diptych.data.shard_list import write_folder_list
from diptych.data.shard_writer import ShardWriter
from diptych.data.shards import open_index
from diptych.errors import UserError
from diptych.files import commit_file, sha256_of
from diptych.terminal import shown
from diptych_shards.pack.candidates import Candidate, PackInput
from diptych_shards.pack.examine import Examiner
from diptych_shards.refusals import Reason, Refusal
from diptych_shards.run.out_folder import OutFolder
from diptych_shards.run.progress import Progress
from diptych_shards.run.worker_pool import PICTURE_SILENCE_SECONDS, WorkerPool, for_each, results_in_order

SHARD_BYTES = 1_000_000_000
"""The most bytes of pictures that a shard is planned for."""

_FORMAT = "diptych-pack-1"
_BATCH_ITEMS, _BATCH_BYTES = 32, 8 << 20


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Everything but the input that decides the bytes of a pack."""

    samples_per_shard: int = 10_000
    shuffle: bool = True
    """Order the samples by a hash of their paths, so that each shard is a mixture; otherwise by path."""
    min_side: int = 2
    """Pixels; a picture one pixel wide is a tracker or a ruler."""
    for_training: int | None = None
    """Pixels of the shorter side that pictures are resized to, as `build --for-training` does; None: not at all."""
    caption_template: str | None = None
    """The caption of pictures without one, `{}` for the name of their folder."""
    hold_out: float | None = None
    """The share of the pictures that is held out, in a folder of its own."""

    def __post_init__(self) -> None:
        for name in ("samples_per_shard", "min_side", "for_training"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if self.caption_template is not None and self.caption_template.count("{}") != 1:
            raise UserError(f"caption_template {self.caption_template!r} must hold {{}} once, where the name of the "
                            f"folder goes: 'a photo of a {{}}.'")  # fmt: skip


@dataclass(frozen=True)
class PackReport:
    """The outcome of a pack."""

    packed: int
    shards: int
    num_bytes: int
    refusals: list[Refusal]


def pack(found: PackInput, folder: Path, out: Path, options: PackOptions, processes: int) -> PackReport:
    """Make the shards of `found` in `out`, or continue to make them.

    Raises:
        UserError: `out` holds something else, or the pack of another input or with other options.
    """
    place = OutFolder(
        out,
        "pack",
        format=_FORMAT,
        options=_as_recorded(options),
        inputs={"input": {"fingerprint": found.fingerprint, "candidates": len(found.candidates)}},
        if_input_differs=f"the input is not what {shown(out)} was started with: files were added, removed or changed; "
        f"put them back, or pack what is new into another folder: data.train takes a list of them, "
        f"[{shown(out)}, ...]",
    )
    with place.opened(finished=False):
        refused = _Refusals(place.index)
        planned = _plan(found.candidates, options)
        progress = Progress(len(found.candidates) + len(found.refusals))
        progress.add(len(found.refusals), apart=len(found.refusals))
        try:
            pending = [n for n, candidates in enumerate(planned) if not _keeps(out, n, candidates, refused, progress)]
            if pending:
                place.record(finished=False)
            _write_shards(pending, planned, out, refused, folder, options, processes, progress)
        finally:
            progress.close()
        shards = open_index([out / f"{number:05d}.tar" for number in range(len(planned))]).shards
        refusals = refused.gather(found.refusals, len(planned))
        packed = sum(shard.samples for shard in shards)
        by_reason = Counter(refusal.reason for refusal in refusals)
        write_folder_list(out)
        place.record(finished=True, packed=packed, shards=len(shards), refused=dict(sorted(by_reason.items())))
        refused.forget_shards()
        return PackReport(packed, len(shards), sum(shard.num_bytes for shard in shards), refusals)


def _plan(candidates: Sequence[Candidate], options: PackOptions) -> list[list[Candidate]]:
    """The candidates of each shard, in their order."""
    ordered = list(candidates)
    if options.shuffle:

        def place(candidate: Candidate) -> tuple[bytes, bytes]:
            path = os.fsencode(candidate.path)
            return xxhash.xxh3_64_digest(b"0\0" + path), path

        ordered.sort(key=place)
    shards: list[list[Candidate]] = []
    num_bytes = 0
    for candidate in ordered:
        num_bytes += candidate.num_bytes
        if not shards or len(shards[-1]) == options.samples_per_shard or num_bytes > SHARD_BYTES:
            shards.append([])
            num_bytes = candidate.num_bytes
        shards[-1].append(candidate)
    return shards


def _write_shards(
    pending: Sequence[int],
    planned: Sequence[Sequence[Candidate]],
    out: Path,
    refused: _Refusals,
    folder: Path,
    options: PackOptions,
    processes: int,
    progress: Progress,
) -> None:
    if not pending:
        return
    examiner = Examiner(folder, MAX_PIXELS, options.min_side, options.for_training)
    digits = len(str(options.samples_per_shard - 1))
    batches = (batch for number in pending for batch in _batches(planned[number]))
    with WorkerPool(for_each(examiner), processes, silence_seconds=PICTURE_SILENCE_SECONDS) as pool:
        results = results_in_order(pool, batches, give_up=_decoder_crashed)
        for number in pending:
            refusals = []
            with ShardWriter(out, number) as writer:
                for row in range(len(planned[number])):
                    result = next(results)
                    if isinstance(result, Refusal):
                        refusals.append(result)
                    else:
                        writer.add(f"{number:05d}{row:0{digits}d}", result)
                    progress.add(1, apart=isinstance(result, Refusal))
                # Before the shard's own commit: a finished shard has its refusals recorded.
                refused.write(number, refusals)
            progress.shard_is_done(f"{number:05d}.tar")


def _keeps(out: Path, number: int, candidates: Sequence[Candidate], refused: _Refusals, progress: Progress) -> bool:
    """Whether the shard is already there, whole and undamaged; the rest of a damaged one is removed."""
    tar = out / f"{number:05d}.tar"
    index = index_path(tar)
    if index.exists() and tar.exists():
        refusals = refused.of(number)
        try:
            (shard,) = open_index(tar).shards
            if refusals is not None and shard.samples + len(refusals) == len(candidates) \
                    and sha256_of(tar) == shard.sha256:  # fmt: skip
                progress.add(len(candidates), apart=len(refusals))
                return True
        except ShardError:
            pass
        progress.note(f"{tar.name} is not as it was written; packing it again")
    index.unlink(missing_ok=True)
    return False


def _batches(candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Yield batches of a bounded number and a bounded size, since they are held in memory."""
    batch: list[Candidate] = []
    num_bytes = 0
    for candidate in candidates:
        if batch and (len(batch) == _BATCH_ITEMS or num_bytes + candidate.num_bytes > _BATCH_BYTES):
            yield batch
            batch, num_bytes = [], 0
        batch.append(candidate)
        num_bytes += candidate.num_bytes
    if batch:
        yield batch


def _decoder_crashed(candidate: Candidate) -> Refusal:
    return Refusal(candidate.path, Reason.DECODER_CRASHED.value)


class _Refusals:
    """The refusals in OUT/_index: one file a shard until the pack is done, then all of them in `rejected.jsonl`."""

    def __init__(self, index: Path):
        self._all = index / "rejected.jsonl"
        self._of_shards = index / "rejected"
        self._known = self._read_all()

    def write(self, number: int, refusals: Sequence[Refusal]) -> None:
        self._of_shards.mkdir(exist_ok=True)
        commit_file(self._of_shards / f"{number:05d}.jsonl", _lines(refusals, number))

    def of(self, number: int) -> list[Refusal] | None:
        """Read the refusals of a finished shard; None if nothing is recorded."""
        try:
            lines = (self._of_shards / f"{number:05d}.jsonl").read_bytes()
        except FileNotFoundError:
            return self._known.get(number, [] if self._all.exists() else None)
        return [_refusal(line) for line in map(json.loads, lines.splitlines())]

    def gather(self, before: Sequence[Refusal], num_shards: int) -> list[Refusal]:
        """Write all refusals to one file, and return them. before: those that no shard was planned for."""
        per_shard = [self.of(number) or [] for number in range(num_shards)]
        commit_file(self._all, _lines(before, None) + b"".join(map(_lines, per_shard, range(num_shards))))
        return [*before, *(refusal for refusals in per_shard for refusal in refusals)]

    def forget_shards(self) -> None:
        """Remove the files of the shards, once the pack is done."""
        shutil.rmtree(self._of_shards, ignore_errors=True)

    def _read_all(self) -> dict[int, list[Refusal]]:
        """Read the refusals of a pack that had finished, by shard."""
        known: dict[int, list[Refusal]] = {}
        if self._all.exists():
            for line in map(json.loads, self._all.read_bytes().splitlines()):
                known.setdefault(line["shard"], []).append(_refusal(line))
        return known


def _as_recorded(options: PackOptions) -> dict[str, Any]:
    """The options as packs have always recorded them, so that earlier packs can resume.

    Options that are not given are left out; three options have become constants.
    """
    asked = {name: value for name, value in asdict(options).items() if value is not None and name != "shuffle"}
    return {**asked, "seed": 0 if options.shuffle else None, "shard_bytes": SHARD_BYTES, "max_pixels": MAX_PIXELS}


def _lines(refusals: Sequence[Refusal], shard: int | None) -> bytes:
    return b"".join(json.dumps(asdict(refusal) | {"shard": shard}).encode() + b"\n" for refusal in refusals)


def _refusal(line: dict[str, Any]) -> Refusal:
    return Refusal(line["path"], line["reason"], line["detail"])
