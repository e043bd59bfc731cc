"""Hashes of pictures, kept in one small file for each shard, so that no picture is decoded twice.

`SHARDS/_index/select/hashes/00012.tar.hashes`: one JSON line, then a HASHES row for each sample, 809 bytes. It is
written whole; one that belongs to another tar, or is damaged, is written again.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.picture_safety import PictureError, open_picture
from diptych.data.shard_index_file import ShardError
from diptych.errors import UserError
from diptych.terminal import shown
from diptych_shards.pictures.perceptual_hash import STEADY, perceptual_hash
from diptych_shards.pictures.resize import resize
from diptych_shards.run.engine import Engine
from diptych_shards.run.progress import Progress
from diptych_shards.select.picture_places import Place, Unit
from diptych_shards.select.select_folder import read_rows, write_rows

HASH_FOLDER = "hashes"
THUMBNAIL_SIDE = 16
THUMBNAIL_NUMBERS = THUMBNAIL_SIDE * THUMBNAIL_SIDE * 3
HASHES = np.dtype([("pixels", "<u8", 4), ("look", "<u8"), ("state", "u1"), ("thumbnail", "u1", THUMBNAIL_NUMBERS)])
"""sha256 of size and pixels; perceptual hash; one of the states below; the picture at 16 x 16 pixels, RGB, stretched to
a square as for the perceptual hash."""

NO_PICTURE, HASHED, FLAT, NOT_DECODED = 0, 1, 2, 3
"""A FLAT picture has no perceptual hash, one that is NOT_DECODED has no hash at all."""

SECONDS_PER_PICTURE = 120.0
"""No honest picture of 64 megapixels takes longer; a decoder that hangs does."""
PICTURES_AT_ONCE = 128

_FORMAT = "diptych-picture-hashes-2"
Hashed = tuple[np.ndarray, int, int, np.ndarray]
_Task = tuple[Place | None, ...]


def hash_missing(units: Sequence[tuple[Unit, Path]], engine: Engine, progress: Progress) -> None:
    """Write the hash file of each unit, if it is not there yet; the tasks are parts of units.

    Raises:
        UserError: a picture cannot be read, or a tar is damaged there.
    """
    missing = [(unit, path) for unit, path in units if read_hashes(unit, path) is None]
    total = sum(unit.num_pictures for unit, _ in units)
    progress.add(total - sum(unit.num_pictures for unit, _ in missing))
    tasks = _Tasks([unit for unit, _ in missing])
    work = partial(_hash_task, os.getpid())
    results = zip(tasks, engine.map(work, tasks, lost=_lost, may_crash=True), strict=True)
    for unit, path in missing:
        parts = [np.zeros(0, HASHES)]
        for task, rows in islice(results, _num_tasks(unit)):
            parts.append(_one_by_one(task, engine, work) if rows is None else rows)
            progress.add(len(parts[-1]), apart=(parts[-1]["state"] == NOT_DECODED).sum())
        write_rows(path, {"format": _FORMAT, "identity": unit.identity}, np.concatenate(parts).tobytes())
        progress.shard_is_done(unit.name)


def read_hashes(unit: Unit, path: Path) -> np.ndarray | None:
    """The HASHES rows of a unit; None if they are missing or damaged, or the unit changed."""
    body = read_rows(path, {"format": _FORMAT, "identity": unit.identity})
    if body is None or len(body) != unit.num_pictures * HASHES.itemsize:
        return None
    return np.frombuffer(body, HASHES)


class _Tasks(Sequence[_Task]):
    """Parts of units, made when they are asked for: the places of all pictures would not fit in memory."""

    def __init__(self, units: Sequence[Unit]):
        self._parts = [
            (unit, start) for unit in units for start in range(0, unit.num_pictures, PICTURES_AT_ONCE)
        ]  # fmt: skip

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: Any) -> Any:
        unit, start = self._parts[number]
        return tuple(unit.places(start, min(start + PICTURES_AT_ONCE, unit.num_pictures)))


def _num_tasks(unit: Unit) -> int:
    return -(-unit.num_pictures // PICTURES_AT_ONCE)


def _hash_task(command: int, task: _Task) -> np.ndarray:
    """The HASHES rows of a task.

    command: the id of the command's own process; any other process is ended if a decoder hangs.
    """
    rows = np.zeros(len(task), HASHES)
    for row, place in enumerate(task):
        if place is not None:
            with nullcontext() if os.getpid() == command else _deadline():
                rows[row] = _hash_place(place)
    return rows


def _hash_place(place: Place) -> Hashed:
    try:
        return hash_picture(place.read())
    except ShardError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{shown(place.path)}: {error.strerror}") from error


def hash_picture(encoded: bytes) -> Hashed:
    """The values of a HASHES row."""
    try:
        picture = open_picture(encoded)
    except PictureError:
        return _NOT_DECODED
    digest = hashlib.sha256(f"{picture.width}x{picture.height}:".encode())
    digest.update(picture.tobytes())
    look = perceptual_hash(picture, margin=STEADY)
    thumbnail = np.asarray(resize(picture, (THUMBNAIL_SIDE, THUMBNAIL_SIDE))).ravel()
    return np.frombuffer(digest.digest(), "<u8"), look or 0, FLAT if look is None else HASHED, thumbnail


_NOT_DECODED = (np.zeros(4, "<u8"), 0, NOT_DECODED, np.zeros(THUMBNAIL_NUMBERS, np.uint8))


def _one_by_one(task: _Task, engine: Engine, work: Callable[[_Task], np.ndarray]) -> np.ndarray:
    """The rows of a task that cost processes: one of its pictures crashes its decoder."""
    rows = engine.map(
        work, [(place,) for place in task], lost=lambda _: np.array([_NOT_DECODED], HASHES), may_crash=True
    )
    return np.concatenate(list(rows))


def _lost(task: _Task) -> None:
    return None


@contextmanager
def _deadline() -> Iterator[None]:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_PICTURE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
