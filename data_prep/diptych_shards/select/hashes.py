"""What pictures hash to, kept in one small file a shard, so that no picture is decoded twice.

`SHARDS/_index/select/hashes/00012.tar.hashes`: one JSON line, then a HASHES row for each sample, 41 bytes. It is
written whole; one that belongs to another tar, or is damaged, is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash

from diptych.data.picture_safety import PictureError
from diptych.data.shard_index_file import ShardError
from diptych.files import commit_file
from diptych_shards.crew import Crew
from diptych_shards.pictures.perceptual_hash import perceptual_hash
from diptych_shards.progress import Progress
from diptych_shards.refusals import shown
from diptych_shards.select.errors import SelectError
from diptych_shards.select.pictures import Place, Unit, decoded

HASHES = np.dtype([("pixels", "<u8", 4), ("look", "<u8"), ("state", "u1")])
"""sha256 of size and pixels; perceptual hash; one of the states below."""

NO_PICTURE, HASHED, FLAT, NOT_DECODED = 0, 1, 2, 3
"""What is FLAT has no perceptual hash, what is NOT_DECODED has none at all."""

_FORMAT = "diptych-picture-hashes-1"
_PLACES_AT_ONCE = 32

Hashed = tuple[bytes, int, int]
"""One row of HASHES."""


def hash_unit(unit: Unit, path: Path, crew: Crew[Place, Hashed | SelectError], progress: Progress) -> None:
    """Write the hash file of the unit, if it is not there yet.

    Raises:
        SelectError: a picture cannot be read, or the tar is damaged there.
    """
    if read_hashes(unit.identity, len(unit.places), path) is not None:
        progress.add(len(unit.places))
    else:
        _write_hashes(unit, path, _hash_all(unit, crew, progress))


def hash_picture(place: Place) -> Hashed | SelectError:
    """Decode one picture; runs in worker processes. An error is given back, as one that is raised there is a bug."""
    try:
        pixels = decoded(place.read())
    except PictureError:
        return bytes(32), 0, NOT_DECODED
    except ShardError as error:
        return SelectError(f"{shown(place.path)}: {error}")
    except OSError as error:
        return SelectError(f"{shown(place.path)}: {error.strerror}")
    height, width = pixels.shape[:2]
    digest = hashlib.sha256(f"{width}x{height}:".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    look = perceptual_hash(pixels)
    return digest.digest(), look or 0, FLAT if look is None else HASHED


def decoder_crashed(place: Place) -> Hashed | SelectError:
    return bytes(32), 0, NOT_DECODED


def read_hashes(identity: str, num_pictures: int, path: Path) -> np.ndarray | None:
    """The HASHES rows of a unit; None if they are not there as they were written."""
    try:
        line, _, body = path.read_bytes().partition(b"\n")
        header = json.loads(line)
        is_whole = (
            header["format"] == _FORMAT
            and header["identity"] == identity
            and header["xxh3"] == xxhash.xxh3_64_hexdigest(body)
            and len(body) == num_pictures * HASHES.itemsize
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return np.frombuffer(body, HASHES) if is_whole else None


def _write_hashes(unit: Unit, path: Path, rows: np.ndarray) -> None:
    body = rows.tobytes()
    header = {"format": _FORMAT, "identity": unit.identity, "xxh3": xxhash.xxh3_64_hexdigest(body)}
    path.parent.mkdir(parents=True, exist_ok=True)
    commit_file(path, json.dumps(header).encode() + b"\n" + body)


def _hash_all(unit: Unit, crew: Crew[Place, Hashed | SelectError], progress: Progress) -> np.ndarray:
    rows = np.zeros(len(unit.places), HASHES)
    places = [(row, place) for row, place in enumerate(unit.places) if place is not None]
    progress.add(len(rows) - len(places))
    for (row, _), hashed in zip(places, crew.map(_batches(places)), strict=True):
        if isinstance(hashed, SelectError):
            raise hashed
        digest, look, state = hashed
        rows[row] = (np.frombuffer(digest, "<u8"), look, state)
        progress.add(1, refused=state == NOT_DECODED)
    return rows


def _batches(places: Sequence[tuple[int, Place]]) -> Iterator[list[Place]]:
    for start in range(0, len(places), _PLACES_AT_ONCE):
        yield [place for _, place in places[start : start + _PLACES_AT_ONCE]]
