"""Runs in the environment of ours or of the peer: one evaluation, by the command line of its side.

Usage: contestant.py ours|clip_benchmark FOLDER WORD…, where the words are those of the command. What the comparison
needs besides the command's own numbers goes to FOLDER: the cosines of pictures and texts as 0.npy, 1.npy, …, and in
towers.json the processor seconds that the two towers took, in one thread.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    side, folder, words = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    seconds: Counter[str] = Counter()
    sys.argv = [side, *words]
    {"ours": ours, "clip_benchmark": clip_benchmark}[side](folder, seconds)
    (folder / "towers.json").write_text(json.dumps(seconds))


def ours(folder: Path, seconds: Counter[str]) -> None:
    from diptych.cli import main
    from diptych.evaluation import retrieval, zero_shot
    from diptych.model.dual_encoder import DualEncoder

    time_towers(DualEncoder, seconds)
    number = itertools.count()

    def saving(compute: Callable[..., Any]) -> Callable[..., Any]:
        def computed(*arrays: Any) -> Any:
            cosines = compute(*arrays)
            np.save(folder / f"{next(number)}.npy", cosines)
            return cosines

        return computed

    for evaluator in (zero_shot, retrieval):
        evaluator.similarities = saving(evaluator.similarities)
    main()


def clip_benchmark(folder: Path, seconds: Counter[str]) -> None:
    from clip_benchmark import cli
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
    from open_clip import CLIP, add_model_config

    add_model_config(folder.parent / "model")
    time_towers(CLIP, seconds)
    classify, in_batches = zeroshot_classification.run_classification, zeroshot_retrieval.batchify

    def run_classification(*arguments: Any, **options: Any) -> Any:
        logits, labels = classify(*arguments, **options)
        np.save(folder / "0.npy", logits.numpy() / 100)
        return logits, labels

    def batchify(function: Callable[..., Any], scores: Any, *arguments: Any, **options: Any) -> Any:
        if not (folder / "0.npy").exists():  # the first call has f32[texts pictures], a later one its transpose
            np.save(folder / "0.npy", scores.T.numpy())
        return in_batches(function, scores, *arguments, **options)

    zeroshot_classification.run_classification = run_classification
    zeroshot_retrieval.batchify = batchify
    cli.main()


def time_towers(model: type, seconds: Counter[str]) -> None:
    """Add to `image` and `text` the processor seconds of this thread; a tower runs in it on the CPU, if it has one."""
    for tower in ("image", "text"):
        encode = getattr(model, f"encode_{tower}")

        def timed(*arguments: Any, encode: Any = encode, tower: str = tower, **options: Any) -> Any:
            began = time.thread_time()
            embeddings = encode(*arguments, **options)
            seconds[tower] += time.thread_time() - began
            return embeddings

        setattr(model, f"encode_{tower}", functools.wraps(encode)(timed))


if __name__ == "__main__":
    main()
