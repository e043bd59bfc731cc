"""Find out whether a run was trained on the pictures with which it is evaluated."""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from tqdm import tqdm

from diptych.daemon_threads import in_threads
from diptych.data.shard_index_file import PICTURE_SUFFIXES
from diptych.data.shards import ShardIndex, open_index
from diptych.errors import UserError
from diptych.evaluation.embedding import MOST_THREADS
from diptych.evaluation.pictures import Pictures
from diptych.evaluation.similarity import Array
from diptych.machine import usable_cpus
from diptych.remote_files import is_elsewhere
from diptych.yaml_documents import parse_yaml

if TYPE_CHECKING:
    from diptych_shards.select.copies import HashedShards

MOST_SAMPLES = 50_000_000
"""Larger training data are not searched; a sample takes 25 bytes of index."""
MOST_ORIGINALS = 1_000_000
"""In larger training data the json members are not read, at some 20 µs each; they identify pictures that were resized
before training."""
SEEN_SHARE = 0.1
"""Results are marked if at least this share was seen; a few per cent do not change the accuracy (paper, section 5)."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """Which pictures of an evaluation the model was trained on."""

    mask: Array
    """bool[pictures]"""
    copy_of: Array
    """i64[pictures]: the number of a training sample that shows the same; negative if none is known."""

    def facts(self) -> dict[str, Any]:
        share = float(self.mask.mean())
        return {"seen_in_training": share >= SEEN_SHARE, "share_seen_in_training": share}


UNKNOWN = {"seen_in_training": None, "share_seen_in_training": None}
"""As `Seen.facts`, if the training data cannot be searched."""


class TrainingData:
    """The shards that a run was trained on, to be searched for pictures of evaluations."""

    def __init__(self, index: ShardIndex, hashed: HashedShards | None = None):
        self._index = index
        self._hashed = hashed

    @property
    def finds_copies(self) -> bool:
        """Whether copies that were recoded or resized are found too."""
        return self._hashed is not None

    def picture(self, number: int) -> tuple[str, bytes]:
        """The name and the encoded picture of a sample."""
        sample = self._index.sample(*self._index.locate(number))
        suffix = str(sample.picture_suffix)
        return sample.name, self._index.read(sample, suffix)[suffix]

    def seen(self, pictures: Pictures, places: Array) -> Seen:
        """Find out which of the pictures at these places, of which there is at least one, were trained on.

        Pictures are compared byte by byte with the stored ones, and with their originals if the json members record
        the sha256 of those, as `pack` and `build` do. If the shards are hashed, copies that were recoded or resized are
        found too.
        """
        digests = []
        originals = sha256_of_originals(self._index) if len(self._index) <= MOST_ORIGINALS else frozenset()
        seen = np.zeros(len(places), dtype=bool)
        for number, place in enumerate(places):
            picture = pictures.read(int(place))
            digests.append(xxhash.xxh3_64_intdigest(picture))
            seen[number] = hashlib.sha256(picture).hexdigest() in originals
        hashes = np.array(digests, np.uint64)
        for number in range(len(self._index.shards)):
            seen |= np.isin(hashes, self._index.member_hashes(number, PICTURE_SUFFIXES))
        copy_of = (
            np.full(len(places), -1) if self._hashed is None else self._hashed.copies_of(_hash_rows(pictures, places))
        )
        return Seen(seen | (copy_of >= 0), copy_of)


def training_data(run_dir: Path) -> TrainingData | None:
    """The training data of a run; None if they are not on this machine or too many to search."""
    try:
        return TrainingData(_training_index(run_dir))
    except UserError as error:
        logger.info("%s", error)
        return None


def hashed_training_data(run_dir: Path) -> TrainingData:
    """The training data of a run, with a perceptual hash of each picture; those without one are decoded, with progress.

    Raises:
        UserError: they cannot be searched, or one of their pictures cannot be read.
    """
    from diptych_shards.run.engine import LocalEngine  # here: loads the libraries that shards are built with
    from diptych_shards.select.copies import HashedShards

    index = _training_index(run_dir)
    return TrainingData(index, HashedShards(index, LocalEngine(usable_cpus()), run_dir / "training_hashes"))


def _training_index(run_dir: Path) -> ShardIndex:
    try:
        config = parse_yaml((run_dir / "config.yaml").read_text(encoding="utf-8"))
        locations = _locations(config["data"]["train"])
        if away := [each for each in locations if is_elsewhere(each)]:
            raise UserError(f"{away[0]} is not on this machine; all of it would be fetched")
        index = open_index(locations)
    except (OSError, UserError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"the training data of {run_dir} cannot be searched: {error}") from error
    if len(index) > MOST_SAMPLES:
        raise UserError(
            f"the training data of {run_dir} are {len(index):,} samples; at most {MOST_SAMPLES:,} are searched"
        )
    return index


def _locations(train: Any) -> list[str]:
    """The locations in the value of data.train: one, several, or those of sources."""
    if isinstance(train, list):
        return [location for one in train for location in _locations(one)]
    return _locations(train["shards"]) if isinstance(train, dict) else [train]


def _hash_rows(pictures: Pictures, places: Array) -> Array:
    """The HASHES row of each picture, as `dedup` makes it."""
    from diptych_shards.select.hashes import HASHES, hash_picture

    rows = np.zeros(len(places), HASHES)
    threads = max(1, min(MOST_THREADS, usable_cpus()))
    with (
        closing(in_threads(lambda place: hash_picture(pictures.read(int(place))), places, threads, "hash")) as hashes,
        tqdm(total=len(places), desc="hashing", unit="picture", disable=None, leave=False) as progress,
    ):
        for row, hashed in enumerate(hashes):
            rows[row] = hashed
            progress.update()
    return rows


@lru_cache(maxsize=1)
def sha256_of_originals(training: ShardIndex) -> frozenset[str]:
    """The sha256 of the files from which the stored pictures were made, if the json members record it."""
    found: set[str] = set()
    for number, shard in enumerate(training.shards):
        try:
            for sample in training.samples(number):
                for document in training.read(sample, "json").values():
                    facts = _parsed(document)
                    found.add(str(facts.get("sha256")) if isinstance(facts, dict) else "")
        except (OSError, UserError) as error:
            logger.info("%s: %s", shard.path, error)
    return frozenset(found)


def _parsed(document: bytes) -> Any:
    try:
        return json.loads(document)
    except (ValueError, RecursionError):
        return None
