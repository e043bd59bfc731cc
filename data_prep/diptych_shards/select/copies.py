"""Find which pictures have a copy among the samples of shards, recoded or resized, as `dedup` recognises it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from diptych.data.shards import ShardIndex
from diptych_shards.run.engine import Engine
from diptych_shards.run.progress import Progress
from diptych_shards.select.duplicates import NOTHING, look_the_same
from diptych_shards.select.hashes import FLAT, HASH_FOLDER, HASHED, hash_missing, read_hashes
from diptych_shards.select.near_hashes import USUAL_DISTANCE, NearHashes
from diptych_shards.select.picture_places import ShardUnit
from diptych_shards.select.select_folder import alone_in, select_folder

_THUMBNAILS_AT_ONCE = 10_000


class HashedShards:
    """Shards whose pictures are hashed; `dedup` uses the same files, so no picture is decoded for both."""

    def __init__(self, index: ShardIndex, engine: Engine, spare: Path):
        """Hash the pictures that have no hash yet.

        spare: a folder for the hashes of shards that are in a folder where nothing can be written.

        Raises:
            UserError: a picture cannot be read, a tar is damaged there, or `dedup` is hashing these shards.
        """
        self._index = index
        units = [ShardUnit(index, number) for number in range(len(index.shards))]
        self._files = [(unit, _hash_file(Path(index.shards[unit.number].path), unit, spare)) for unit in units]
        missing = [(unit, path) for unit, path in self._files if read_hashes(unit, path) is None]
        progress = Progress(sum(unit.num_pictures for unit, _ in missing), "picture hashed", apart="not decoded")
        with ExitStack() as held:
            for folder in sorted({path.parent.parent for _, path in missing}):
                held.enter_context(alone_in(folder))
            try:
                hash_missing(missing, engine, progress)
            finally:
                progress.close()

    def copies_of(self, pictures: np.ndarray) -> np.ndarray:
        """i64: for each of some HASHES rows the number of a sample that is a copy of it; NOTHING if there is none.

        A copy has the same pixels, or looks the same: perceptual hashes at most four bits apart, and thumbnails that
        agree. A picture that is cropped, mirrored or written over is no copy.
        """
        found = np.full(len(pictures), NOTHING)
        hashed = np.flatnonzero(pictures["state"] == HASHED)
        near = NearHashes(pictures["look"][hashed], USUAL_DISTANCE)
        of_pixels: dict[bytes, list[int]] = {}
        for own in np.flatnonzero(_has_pixels(pictures)).tolist():
            of_pixels.setdefault(pictures["pixels"][own].tobytes(), []).append(own)
        first = 0
        for rows in self._rows():
            for row in np.flatnonzero(_has_pixels(rows) & np.isin(rows["pixels"][:, 0], pictures["pixels"][:, 0])):
                found[of_pixels.get(rows["pixels"][row].tobytes(), [])] = first + row
            looking = np.flatnonzero(rows["state"] == HASHED)
            for one, other in near.pairs(rows["look"][looking]):
                own, row = hashed[one], looking[other]
                for start in range(0, len(own), _THUMBNAILS_AT_ONCE):
                    part = slice(start, start + _THUMBNAILS_AT_ONCE)
                    ours, theirs = own[part], row[part]
                    unknown = found[ours] == NOTHING
                    ours, theirs = ours[unknown], theirs[unknown]
                    alike = look_the_same(pictures["thumbnail"][ours], rows["thumbnail"][theirs])
                    found[ours[alike]] = first + theirs[alike]
            first += len(rows)
        return found

    def _rows(self) -> Iterator[np.ndarray]:
        """The HASHES rows of each shard."""
        for unit, path in self._files:
            rows = read_hashes(unit, path)
            assert rows is not None, f"{path} was removed"
            yield rows


def _has_pixels(rows: np.ndarray) -> np.ndarray:
    has_pixels: np.ndarray = np.isin(rows["state"], (HASHED, FLAT))
    return has_pixels


def _hash_file(tar: Path, unit: ShardUnit, spare: Path) -> Path:
    """The file with a shard's hashes; in the spare folder if it is missing or of another tar, and cannot be written."""
    next_to_tar = select_folder(tar.parent) / HASH_FOLDER / f"{unit.name}.hashes"
    if _can_be_written(next_to_tar.parent) or read_hashes(unit, next_to_tar) is not None:
        return next_to_tar
    return spare / HASH_FOLDER / f"{unit.identity[:32]}.hashes"


def _can_be_written(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)
