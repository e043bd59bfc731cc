"""Find out whether a run was trained on the pictures with which it is evaluated."""

from __future__ import annotations

import hashlib
import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from diptych.data.shard_index_file import PICTURE_SUFFIXES
from diptych.data.shards import ShardIndex, open_index
from diptych.errors import UserError
from diptych.evaluation.pictures import Pictures
from diptych.evaluation.similarity import Array
from diptych.remote_files import is_elsewhere
from diptych.yaml_documents import parse_yaml

MOST_SAMPLES = 50_000_000
"""Larger training data are not searched; a sample takes 25 bytes of index."""
MOST_ORIGINALS = 1_000_000
"""In larger training data the json members are not read, at some 20 µs each; they identify pictures that were resized
before training."""
SEEN_SHARE = 0.1
"""Results are marked if at least this share was seen; a few per cent do not change the accuracy (paper, section 5)."""

logger = logging.getLogger(__name__)


def training_index(run_dir: Path) -> ShardIndex | None:
    """The shards that a run was trained on; None if they are not on this machine or too many to search."""
    try:
        config = parse_yaml((run_dir / "config.yaml").read_text(encoding="utf-8"))
        locations = _locations(config["data"]["train"])
        if any(map(is_elsewhere, locations)):  # all of it would be fetched
            return None
        index = open_index(locations)
    except (OSError, UserError, KeyError, TypeError, ValueError) as error:
        logger.info("the training data of %s cannot be found: %s", run_dir, error)
        return None
    return index if index.total_samples <= MOST_SAMPLES else None


def _locations(train: Any) -> list[str]:
    """The locations in the value of data.train: one, several, or those of sources."""
    if isinstance(train, list):
        return [location for one in train for location in _locations(one)]
    return _locations(train["shards"]) if isinstance(train, dict) else [train]


def seen_in_training(pictures: Pictures, places: Array, training: ShardIndex | None) -> dict[str, Any]:
    """The share of these pictures that is in the training shards; None if unknown.

    Pictures are compared byte by byte with the stored ones, and with their originals if the json members record the
    sha256 of those, as `pack` and `build` do.
    """
    if training is None or not len(places):
        return {"seen_in_training": None, "share_seen_in_training": None}
    digests = []
    originals = sha256_of_originals(training) if training.total_samples <= MOST_ORIGINALS else frozenset()
    seen = np.zeros(len(places), dtype=bool)
    for number, place in enumerate(places):
        picture = pictures.read(int(place))
        digests.append(xxhash.xxh3_64_intdigest(picture))
        seen[number] = hashlib.sha256(picture).hexdigest() in originals
    hashes = np.array(digests, np.uint64)
    for number in range(len(training.shards)):
        seen |= np.isin(hashes, training.member_hashes(number, PICTURE_SUFFIXES))
    share = float(seen.mean())
    return {"seen_in_training": share >= SEEN_SHARE, "share_seen_in_training": share}


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
