"""Leave out repeated pictures, and those that a model will be evaluated on."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np

from diptych.data.picture_safety import PictureReason
from diptych.data.shards import ShardIndex
from diptych.errors import UserError
from diptych.terminal import shown
from diptych_shards.refusals import Refusal
from diptych_shards.run.engine import Engine
from diptych_shards.run.progress import Progress
from diptych_shards.select.dedup_options import DedupOptions, check_not_weaker, preferences
from diptych_shards.select.duplicates import (
    MEANINGS,
    NOTHING,
    REASONS,
    Decision,
    Duplicates,
    LookAlikes,
    classes,
    repeated,
)
from diptych_shards.select.embeddings import KeyTable, gather_embeddings
from diptych_shards.select.hashes import (
    FLAT,
    HASH_FOLDER,
    HASHED,
    NO_PICTURE,
    NOT_DECODED,
    THUMBNAIL_NUMBERS,
    hash_missing,
    read_hashes,
)
from diptych_shards.select.picture_places import ShardUnit, Unit, units_at
from diptych_shards.select.select_folder import alone_in, select_folder
from diptych_shards.select.similar_embeddings import approximate_pairs, similar_pairs
from diptych_shards.select.staleness import verdicts_to_consider
from diptych_shards.select.verdicts import Verdict, VerdictWriter, kept_by_all


@dataclass(frozen=True)
class DedupReport:
    """The outcome of `dedup`."""

    counts: Counter[str]
    """Samples by reason; the reason of kept ones is empty."""
    flat: int
    not_decoded: int
    without_embedding: int
    left_out_by_others: int
    """Samples that other verdicts leave out."""
    largest_group: int
    """The size of the largest group: a kept sample with all that are left out for it."""
    not_compared: list[Refusal]
    """Files of evaluation sets that are not pictures, or do not decode."""


def dedup(shards: Path, index: ShardIndex, options: DedupOptions, engine: Engine) -> DedupReport:
    """Write the verdict `options.name` next to the shards.

    Raises:
        UserError: the options do not fit these shards, an evaluation set holds no pictures, or one cannot be read.
        ShardError: the index of a shard is damaged.
    """
    if any(os.path.realpath(location) == os.path.realpath(shards) for location in options.against):
        raise UserError("--against names the shards themselves: all of them would be left out")
    folder = select_folder(shards)
    with alone_in(folder):
        check_not_weaker(shards, options)
        considered = verdicts_to_consider(shards, index, options.name)
        pictures = _Pictures(index, folder / HASH_FOLDER, options.against)
        takes_part = np.ones(pictures.total, bool)
        takes_part[pictures.num_evaluation :] = _kept(considered, index)
        # Hashing takes hours: check first all that may be wrong with the options.
        preference = preferences(index, options.prefer) if options.prefer else None
        embedded = _Embedded(pictures, options, takes_part, folder) if options.embeddings else None
        pictures.hash(engine)
        hashes = pictures.read(takes_part)
        decision = _decide(pictures, hashes, embedded, options, preference, folder)
        _write(shards, index, options, considered, decision, pictures)
        likes = decision.like[decision.like >= pictures.num_evaluation]
        return DedupReport(
            counts=Counter({REASONS[code]: int(n) for code, n in enumerate(np.bincount(decision.codes)) if n}),
            flat=int((hashes.states == FLAT).sum()),
            not_decoded=int((hashes.states[pictures.num_evaluation :] == NOT_DECODED).sum()),
            not_compared=pictures.not_compared(hashes),
            without_embedding=embedded.num_samples_without if embedded else 0,
            left_out_by_others=int((~takes_part).sum()),
            largest_group=int(np.bincount(likes - pictures.num_evaluation).max()) + 1 if len(likes) else 1,
        )


def _kept(considered: Sequence[Verdict], index: ShardIndex) -> np.ndarray:
    """Whether all these verdicts keep each sample, as bool."""
    return np.concatenate([kept_by_all(considered, index, number) for number in range(len(index.shards))])


def _decide(
    pictures: _Pictures,
    hashes: _Hashes,
    embedded: _Embedded | None,
    options: DedupOptions,
    preference: np.ndarray | None,
    scratch: Path,
) -> Decision:
    found = Duplicates(pictures.num_evaluation, pictures.total - pictures.num_evaluation, preference)
    positions, digests = pictures.digests_of(
        repeated(hashes.prefixes[hashes.has_pixels], np.flatnonzero(hashes.has_pixels))
    )
    found.add_equal(positions, classes(digests))
    if embedded:
        embedded.add_to(found, options)
    if options.exact_only:
        return found.decide()
    looking = np.flatnonzero((hashes.states == HASHED) & found.is_first)
    looks = LookAlikes(looking, hashes.looks[looking], options.distance)
    # A file without a name: nothing of it remains when this process ends, even if it is killed.
    with tempfile.TemporaryFile(dir=scratch) as file:
        return found.decide(looks, pictures.thumbnails_of(looks.positions, file))


@dataclass(frozen=True)
class _Hashes:
    """The hashes of all pictures, by position."""

    prefixes: np.ndarray
    looks: np.ndarray
    states: np.ndarray

    @property
    def has_pixels(self) -> np.ndarray:
        has_pixels: np.ndarray = (self.states == HASHED) | (self.states == FLAT)
        return has_pixels


class _Pictures:
    """All pictures: of the evaluation sets, then of the shards."""

    def __init__(self, index: ShardIndex, folder: Path, against: Sequence[str]):
        self._index = index
        evaluation: list[Unit] = []
        self._left_out: list[Refusal] = []
        for location in against:
            units, refusals = units_at(location)
            evaluation += units
            self._left_out += [replace(each, path=os.path.join(location, each.path)) for each in refusals]
        shards = [ShardUnit(index, number) for number in range(len(index.shards))]
        self._units = [
            *((unit, folder / f"against-{unit.identity[:32]}.hashes") for unit in evaluation),
            *((unit, folder / f"{unit.name}.hashes") for unit in shards),
        ]
        self._evaluation_names = [name for unit in evaluation for name in unit.names()]
        self.num_evaluation = len(self._evaluation_names)
        self.total = self.num_evaluation + len(index)

    def hash(self, engine: Engine) -> None:
        progress = Progress(self.total, apart="not decoded")
        try:
            hash_missing(self._units, engine, progress)
        finally:
            progress.close()

    def read(self, takes_part: np.ndarray) -> _Hashes:
        """Read the hashes of all pictures.

        takes_part: bool for each picture; the others count as samples without a picture.
        """
        prefixes, looks = np.empty(self.total, np.uint64), np.empty(self.total, np.uint64)
        states = np.empty(self.total, np.uint8)
        for first, rows in self._rows():
            part = slice(first, first + len(rows))
            prefixes[part], looks[part], states[part] = rows["pixels"][:, 0], rows["look"], rows["state"]
        states[~takes_part] = NO_PICTURE
        return _Hashes(prefixes, looks, states)

    def digests_of(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The positions, in order, and the digest of each as u64[n, 4]."""
        found = [np.zeros((0, 4), np.uint64)]
        for first, rows in self._rows():
            start, stop = np.searchsorted(positions, (first, first + len(rows)))
            found.append(rows["pixels"][positions[start:stop] - first])
        return positions, np.concatenate(found)

    def not_compared(self, hashes: _Hashes) -> list[Refusal]:
        """The files of evaluation sets that no sample was compared with."""
        broken = np.flatnonzero(hashes.states[: self.num_evaluation] == NOT_DECODED)
        return self._left_out + [Refusal(name, PictureReason.DECODE_ERROR.value) for name in self.names(broken)]

    def thumbnails_of(self, positions: np.ndarray, file: IO[bytes]) -> np.ndarray:
        """The thumbnails at these positions, in order: u8[n, numbers], written to the file and mapped from it."""
        for first, rows in self._rows():
            start, stop = np.searchsorted(positions, (first, first + len(rows)))
            file.write(rows["thumbnail"][positions[start:stop] - first].tobytes())
        file.flush()
        shape = (len(positions), THUMBNAIL_NUMBERS)
        return np.asarray(np.memmap(file, np.uint8, "r", shape=shape)) if len(positions) else np.zeros(shape, np.uint8)

    def names(self, positions: np.ndarray) -> list[str]:
        """Name a few pictures: a sample by its key, an evaluation picture by its path."""
        return [
            self._evaluation_names[position]
            if position < self.num_evaluation
            else self._index.sample(*self._index.locate(position - self.num_evaluation)).key
            for position in positions.tolist()
        ]

    def keys(self) -> KeyTable:
        numbers = range(len(self._index.shards))
        rows = ((number, row) for number in numbers for row in range(self._index.shards[number].samples))
        return KeyTable((self._index.sample(*row).key for row in rows), len(self._index))

    def evaluation_keys(self) -> KeyTable:
        return KeyTable(iter(self._evaluation_names), self.num_evaluation)

    def _rows(self) -> Iterator[tuple[int, np.ndarray]]:
        """The HASHES rows of each unit, after the position of its first picture."""
        first = 0
        for unit, path in self._units:
            rows = read_hashes(unit, path)
            if rows is None:
                raise UserError(f"{shown(path)} changed during the run; start the same command again")
            yield first, rows
            first += len(rows)


class _Embedded:
    """The pictures that have an embedding."""

    def __init__(self, pictures: _Pictures, options: DedupOptions, takes_part: np.ndarray, scratch: Path):
        assert options.embeddings is not None
        tables = [(options.embeddings, pictures.keys(), pictures.num_evaluation)]
        if options.against_embeddings:
            tables.append((options.against_embeddings, pictures.evaluation_keys(), 0))
        self._vectors, self._positions = gather_embeddings(tables, takes_part, options.embedding_column, scratch)
        num_samples = int(takes_part[pictures.num_evaluation :].sum())
        self.num_samples_without = num_samples - int((self._positions >= pictures.num_evaluation).sum())

    def add_to(self, found: Duplicates, options: DedupOptions) -> None:
        pairs = approximate_pairs if options.approximate else similar_pairs
        progress = Progress(len(self._vectors), "embedding")
        try:
            for one, other in pairs(self._vectors, options.min_cosine, progress.add):
                found.add_pairs(self._positions[one], self._positions[other])
        finally:
            progress.close()


def _write(
    shards: Path,
    index: ShardIndex,
    options: DedupOptions,
    considered: Sequence[Verdict],
    decision: Decision,
    pictures: _Pictures,
) -> None:
    facts = {
        "command": "dedup",
        "options": options.given(),
        "considered": {verdict.name: verdict.sha256 for verdict in considered},
        "meanings": MEANINGS,
    }
    ends = np.cumsum(index.counts)
    with VerdictWriter(shards, options.name, index, facts) as verdict:
        for start, end in zip(ends - index.counts, ends, strict=True):
            like = decision.like[start:end]
            named = np.flatnonzero(like != NOTHING)
            duplicates: list[str | None] = [None] * len(like)
            for row, name in zip(named.tolist(), pictures.names(like[named]), strict=True):
                duplicates[row] = os.fsencode(name).decode("utf-8", "backslashreplace")
            verdict.add([REASONS[code] for code in decision.codes[start:end].tolist()], duplicates)
