"""Write and read checkpoints, each of which is complete or does not exist.

A checkpoint is written to `step_N.partial/` and hashed; the manifest is written last, everything is fsynced, and the
directory is renamed. A folder without a valid manifest is not a checkpoint. Weights and moments are safetensors by
parameter name, so nothing is unpickled, and a run can resume on any number of ranks and at any ZeRO stage. `model/` in
a checkpoint is a model folder that can be used by itself, and so is `ema/`, with the averaged weights of a run that
keeps them.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from diptych.checkpoint_folder import (
    EMA,
    FORMAT,
    MANIFEST,
    MODEL,
    PROGRESS,
    describe,
    name_of,
    remove_checkpoint,
)
from diptych.config.schema import RunConfig
from diptych.config.values import config_to_dict
from diptych.data.tokenizer import Tokenizer
from diptych.files import flush
from diptych.model_folder import WEIGHTS_FILE, save_model_folder
from diptych.tensor_files import save_tensors
from diptych.training.deepspeed_config import zero_stage
from diptych.training.engine import MOMENTS, OptimizerState

RECORDED_VERSIONS = ("diptych", "torch", "deepspeed", "timm", "webdataset", "numpy", "safetensors")


@dataclass(frozen=True)
class Progress:
    """How far a run has come; with it the data can be resumed at the right sample."""

    samples_seen: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """Reason → how many samples, since the start of the run."""
    tracker_id: str = ""
    data: str = ""
    """Fingerprint of the shards."""
    vocabulary: str = ""
    """Fingerprint of the tokenizer."""
    order: int = 1
    """The version of the order of the samples; checkpoints that do not record it have version 1."""
    seconds: float = 0.0
    """Time spent training so far."""
    skipped_steps: int = 0
    """Steps without finite numbers, since the start of the run."""
    skipped_in_a_row: int = 0
    """How many of them came since the last good step."""
    spikes: int = 0
    """Steps whose loss was a spike (see `trouble`), since the start of the run."""
    spikes_in_a_row: int = 0
    losses: list[float] = field(default_factory=list)
    """The newest finite losses, with which the next one is compared."""
    roll_backs: list[list[int]] = field(default_factory=list)
    """For each roll-back, the samples seen of the checkpoint that was loaded, and those before the first batch that was
    trained on after it. Nothing that was seen between them is in the weights."""

    @property
    def trains_from(self) -> int:
        """Batches before this position are passed over; they belong to a roll-back."""
        return self.roll_backs[-1][1] if self.roll_backs else 0

    @property
    def weights_after(self) -> int:
        """The samples seen when the weights took this form; less than `samples_seen` right after a roll-back."""
        return self.roll_backs[-1][0] if self.samples_seen <= self.trains_from else self.samples_seen


@dataclass(frozen=True)
class Checkpoint:
    progress: Progress
    weights: dict[str, Tensor]
    optimizer: OptimizerState
    averages: dict[str, Tensor] | None = None
    """Moving averages of the weights (EMA); None if the run keeps none."""

    @property
    def num_bytes(self) -> int:
        """The size of its tensors on the disk, which is nearly all of the checkpoint."""
        tensors = [self.weights, *self.optimizer.moments.values(), self.averages or {}]
        return sum(tensor.nbytes for named in tensors for tensor in named.values())


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, config: RunConfig, tokenizer: Tokenizer, *, num_ranks: int
) -> Path:
    """Write a checkpoint under `folder` and return its path; only rank 0 calls it.

    Raises:
        OSError: it cannot be written (full disk, no permission); nothing has changed under `folder`.
    """
    samples_seen = checkpoint.progress.samples_seen
    final = folder / name_of(samples_seen // config.training.global_batch_size)
    partial = final.with_name(f"{final.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_model_folder(partial / MODEL, checkpoint.weights, config.model, tokenizer)
        if checkpoint.averages is not None:
            save_model_folder(partial / EMA, checkpoint.averages, config.model, tokenizer)
        _save_optimizer(partial / "optimizer.safetensors", checkpoint.optimizer)
        _write(partial / PROGRESS, _json(asdict(checkpoint.progress)))
        _write(partial / "config.json", _json(config_to_dict(config)))
        manifest = {
            "format": FORMAT,
            "samples_seen": samples_seen,
            "num_ranks": num_ranks,
            "zero_stage": zero_stage(config, num_ranks),
            "versions": {"python": platform.python_version(), **{n: version(n) for n in RECORDED_VERSIONS}},
            "files": {str(path.relative_to(partial)): describe(path) for path in _files(partial)},
        }
        _write(partial / MANIFEST, _json(manifest))
        flush(partial)
        # A step that is saved again after a resume has the same bytes; the newer replaces the older.
        if final.exists():
            remove_checkpoint(final)
        partial.rename(final)
        flush(folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def read_progress(path: Path) -> Progress:
    return Progress(**json.loads((path / PROGRESS).read_text()))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that has passed `verify`."""
    progress = read_progress(path)
    tensors = load_file(path / "optimizer.safetensors")
    step = int(tensors.pop("step"))
    moments: dict[str, dict[str, Tensor]] = {kind: {} for kind in MOMENTS}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        moments[kind][name] = tensor
    averages = load_file(path / EMA / WEIGHTS_FILE) if (path / EMA).is_dir() else None
    return Checkpoint(progress, load_file(path / MODEL / WEIGHTS_FILE), OptimizerState(step, moments), averages)


def _save_optimizer(path: Path, state: OptimizerState) -> None:
    tensors = {f"{kind}.{name}": tensor for kind in MOMENTS for name, tensor in state.moments[kind].items()}
    save_tensors({**tensors, "step": torch.tensor(state.step)}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
