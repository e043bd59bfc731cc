"""Runs in the environment of ours or of the peer: loads an epoch of the shards named in each line that comes in.

Usage: contestant.py ours|open_clip. A line that comes in is a JSON object {"shards": …, "augmentation": …};
the answer is a line with the number of pairs and the processor seconds that they took.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

BATCH = 64
PIXELS = 224
CONTEXT_LENGTH = 77


def open_clip(shards: str, augmentation: str) -> Callable[[int], Iterator[Any]]:
    """The loader of open_clip's training with its transform and tokenizer, as its command line would make it."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, get_tokenizer, image_transform
    from open_clip_train.data import get_wds_dataset

    chosen = Namespace(
        train_data=f"{shards}/00000.tar",
        train_num_samples=_num_samples(shards),
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=BATCH,
        world_size=1,
        workers=0,
        seed=0,
    )
    transform = image_transform(PIXELS, is_train=True, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD)
    info = get_wds_dataset(chosen, transform, True, tokenizer=get_tokenizer("ViT-B-32"))

    def epoch(number: int) -> Iterator[Any]:
        info.set_epoch(number)
        return iter(info.dataloader)

    return epoch


def ours(shards: str, augmentation: str) -> Callable[[int], Iterator[Any]]:
    """Our loader in one process."""
    from diptych.config.schema import DataConfig, ImageTowerConfig
    from diptych.data.decoder import Decoder
    from diptych.data.loader import batches
    from diptych.data.loader_processes import LoaderProcesses
    from diptych.data.order import SampleOrder
    from diptych.data.shards import open_index
    from diptych.data.tokenizer import load_tokenizer

    index = open_index(shards)
    config = DataConfig(train=shards, augmentation=augmentation)  # type: ignore[arg-type]
    order = SampleOrder(index.counts, seed=0, global_batch_size=BATCH, shuffle_window=config.shuffle_window)
    tokenizer = load_tokenizer("clip")
    steps = index.total_samples // BATCH

    def epoch(number: int) -> Iterator[Any]:
        decode = Decoder(config, ImageTowerConfig(image_size=PIXELS), seed=0)
        first, stop = number * steps, (number + 1) * steps
        return batches(
            index,
            order,
            decode,
            tokenizer,
            context_length=CONTEXT_LENGTH,
            rows=(0, BATCH),
            first=first,
            stop=stop,
            processes=LoaderProcesses(0),
        )

    return epoch


def _num_samples(shards: str) -> int:
    with open(Path(shards) / "_index" / "00000.tar.index", "rb") as file:
        return int(json.loads(file.readline())["samples"])


def main() -> None:
    loader = {"open_clip": open_clip, "ours": ours}[sys.argv[1]]
    torch.set_num_threads(1)
    opened = cache(loader)
    epochs: dict[str, int] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        number = epochs[line] = epochs.get(line, -1) + 1
        batches = opened(**asked)(number)
        next(batches)  # what a run pays once
        start = time.process_time()
        pairs = sum(BATCH for _ in batches)
        print(json.dumps({"pairs": pairs, "seconds": time.process_time() - start}), flush=True)


if __name__ == "__main__":
    main()
