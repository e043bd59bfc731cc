"""What a checkpoint holds, and how it is read again.

A checkpoint is written to `step_N.partial/`; the manifest, which lists size and hash of every file, is written last,
everything is fsynced, and the directory is renamed. A folder without a valid manifest is not a checkpoint. Tensors are
in safetensors files by parameter name, so nothing is unpickled, and a run can resume on any number of ranks and at any
ZeRO stage. `model/` in a checkpoint is a model folder that can be used by itself, and so is `ema/`, with the averaged
weights of a run that keeps them. `optimizer/` has a file of each rank with its parts of the moments: each part is flat
and begins at the element that `starts` in the file's metadata gives for its parameter. In format 1 the file
`optimizer.safetensors` has the whole moments.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from diptych.checkpoint_folder import EMA, MODEL, PROGRESS, TOKEN_HEAD, CheckpointError, read_manifest
from diptych.model_folder import WEIGHTS_FILE
from diptych.training.engine import MOMENTS, OptimizerState

OPTIMIZER_FILE = "optimizer.safetensors"
"""The optimizer's state in a checkpoint of format 1."""


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
    """Those of the model, and of its token head if it has one."""
    optimizer: OptimizerState
    averages: dict[str, Tensor] | None = None
    """Moving averages of the weights (EMA); None if the run keeps none."""


def read_progress(path: Path) -> Progress:
    """Read how far the run had come at this checkpoint.

    Raises:
        CheckpointError: a later version of diptych has written a field that this one does not know.
    """
    values = json.loads((path / PROGRESS).read_text())
    if unknown := sorted(values.keys() - {each.name for each in fields(Progress)}):
        raise CheckpointError(
            f"{path / PROGRESS} has {', '.join(unknown)}, which this version of diptych does not know; "
            "resume with the version that wrote it"
        )
    return Progress(**values)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that has passed `verify`."""
    progress, files = read_progress(path), read_manifest(path)
    weights = load_file(path / MODEL / WEIGHTS_FILE)
    if f"{TOKEN_HEAD}/{WEIGHTS_FILE}" in files:
        weights |= load_file(path / TOKEN_HEAD / WEIGHTS_FILE)
    averages = load_file(path / EMA / WEIGHTS_FILE) if f"{EMA}/{WEIGHTS_FILE}" in files else None
    if OPTIMIZER_FILE in files:
        optimizer = _optimizer_in_one_file(path / OPTIMIZER_FILE)
    else:
        optimizer = _join_shares([path / name for name in sorted(files) if name.startswith("optimizer/")], weights)
    return Checkpoint(progress, weights, optimizer, averages)


def _join_shares(files: Sequence[Path], weights: Mapping[str, Tensor]) -> OptimizerState:
    """Put whole moments together from the parts that the ranks have saved; a moment has the shape of its weight.

    Raises:
        CheckpointError: a part is missing.
    """
    step = 0
    moments: dict[str, dict[str, Tensor]] = {kind: {} for kind in MOMENTS}
    num_found: Counter[str] = Counter()
    for file in files:
        with safe_open(file, "pt") as share:
            starts = json.loads(share.metadata()["starts"])
            for key in share.keys():
                part = share.get_tensor(key)
                if key == "step":
                    step = int(part)
                    continue
                kind, _, name = key.partition(".")
                whole = moments[kind].setdefault(name, torch.empty(weights[name].shape, dtype=part.dtype))
                whole.view(-1)[starts[name] : starts[name] + part.numel()] = part
                num_found[key] += part.numel()
    for kind, tensors in moments.items():
        for name, whole in tensors.items():
            if num_found[f"{kind}.{name}"] != whole.numel():
                raise CheckpointError(f"{files[0].parent}: parts of {kind}.{name} are missing")
    return OptimizerState(step, moments)


def _optimizer_in_one_file(file: Path) -> OptimizerState:
    """Read the state from a checkpoint of format 1."""
    tensors = load_file(file)
    step = int(tensors.pop("step"))
    moments: dict[str, dict[str, Tensor]] = {kind: {} for kind in MOMENTS}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        moments[kind][name] = tensor
    return OptimizerState(step, moments)
