"""Whether a run was trained on the pictures on which it is measured."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from diptych.data.shard_index_file import PICTURE_SUFFIXES
from diptych.data.shards import ShardIndex, open_index
from diptych.errors import UserError
from diptych.evaluation.pictures import Pictures
from diptych.evaluation.similarity import Array
from diptych.yaml_documents import parse_yaml

MOST_SAMPLES = 50_000_000
"""Of training data that are looked through, 25 bytes of index each; more are not."""
SEEN_SHARE = 0.1
"""From this share on, results are marked: a few per cent change no accuracy (paper, section 5)."""

logger = logging.getLogger(__name__)


def training_index(run_dir: Path) -> ShardIndex | None:
    """The shards that a run was trained on; None where they are not here, or too many to look through."""
    try:
        config = parse_yaml((run_dir / "config.yaml").read_text(encoding="utf-8"))
        index = open_index(config["data"]["train"])
    except (OSError, UserError, KeyError, TypeError, ValueError) as error:
        logger.info("the training data of %s are not here: %s", run_dir, error)
        return None
    return index if index.total_samples <= MOST_SAMPLES else None


def seen_in_training(pictures: Pictures, places: Array, training: ShardIndex | None) -> dict[str, Any]:
    """Which share of these pictures is in the training shards, byte for byte; None where that is not known."""
    if training is None or not len(places):
        return {"seen_in_training": None, "share_seen_in_training": None}
    hashes = np.array([xxhash.xxh3_64_intdigest(pictures.read(int(place))) for place in places], np.uint64)
    seen = np.zeros(len(hashes), dtype=bool)
    for number in range(len(training.shards)):
        seen |= np.isin(hashes, training.member_hashes(number, PICTURE_SUFFIXES))
    share = float(seen.mean())
    return {"seen_in_training": share >= SEEN_SHARE, "share_seen_in_training": share}
