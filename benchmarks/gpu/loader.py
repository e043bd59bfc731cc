"""Train with the real loader, and measure how long the GPU waits for pictures."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.gpu.section import Section
from benchmarks.gpu.setting import CONFIGS, Scale
from PIL import Image

from diptych.data.shard_writer import ShardWriter
from diptych.machine import usable_cpus

PIXELS, QUALITY = 224, 90
SHARDS = 4


def train_on_shards(section: Section) -> dict[str, Any]:
    """Run `diptych train` on JPEGs of the model's picture size, with the default number of loader workers."""
    scale = section.scale
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder) / "shards", scale)
        words = [sys.executable, "-m", "diptych", "train", str(CONFIGS / "vit_b_32.yaml"), *scale.overrides]
        words += [
            f"data.train={folder}/shards",
            f"run_dir={folder}/run",
            f"training.global_batch_size={scale.loader_pairs}",
            f"training.total_samples={scale.loader_pairs * scale.loader_steps}",
            f"optimizer.warmup_samples={scale.loader_pairs}",
            f"tracking.log_every_steps={max(1, scale.loader_steps // 6)}",
            "tracking.wandb=off",
            "machine.loader_workers=auto",
        ]
        environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=section.seconds_left())
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-300:])
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "data_wait_fraction" in line]
    kept = ("samples_per_second", "data_wait_fraction", "mfu", "gpu_memory_gib")
    return {"cpus": usable_cpus(), "pairs": scale.loader_pairs, **{name: logged[-1].get(name) for name in kept}}


def write_shards(folder: Path, scale: Scale) -> None:
    """Write shards of smooth noise, whose JPEGs take about as long to decode as photographs."""
    folder.mkdir(parents=True)
    with ThreadPoolExecutor(usable_cpus()) as pool:
        pictures = list(pool.map(jpeg, range(scale.pictures)))
    for shard in range(SHARDS):
        with ShardWriter(folder, shard) as writer:
            for number in range(shard, scale.pictures, SHARDS):
                caption = f"a picture of number {number} for a measurement"
                writer.add(f"{number:09}", {"jpg": pictures[number], "txt": caption.encode()})


def jpeg(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (PIXELS // 4, PIXELS // 4, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=QUALITY)
    return data.getvalue()
