"""One training step on all ranks, by DeepSpeed, and the optimizer's state by parameter name.

Parameters are fp32 at every precision (bf16 is autocast), so the weights that a forward uses are the master weights.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from diptych.config.schema import RunConfig
from diptych.data.batch import Batch
from diptych.data.order import hashes
from diptych.errors import UserError
from diptych.loss import LOSSES, LossOutput
from diptych.loss.tiles import BatchStatistics
from diptych.machine import keep_freed_memory
from diptych.model.dual_encoder import DualEncoder, checkpoint_blocks
from diptych.tensor_hashes import caption_identities
from diptych.terminal import counted
from diptych.training.accumulate import backward_in_parts
from diptych.training.deepspeed_config import deepspeed_config
from diptych.training.fragments import Beside, collect, fragments_of, hand_out
from diptych.training.optimizer import SCALE_GROUP, learning_rate_at, make_optimizer
from diptych.training.weight_average import WeightAverage
from diptych.world import World

MOMENTS = ("exp_avg", "exp_avg_sq")


class NonFiniteError(UserError):
    """The loss or the gradient is not a number; the run stops before it can reach a checkpoint."""


@dataclass(frozen=True)
class StepStats:
    """What one step did, equal on all ranks."""

    loss: float
    learning_rate: float
    logit_scale: float
    """What multiplies the cosines: the exponential of the parameter, before this step's update."""
    gradient_norm: float
    """Of the whole model, before clipping."""
    similarities: dict[str, float]
    """The fields of `BatchStatistics`, over the global batch."""
    tallies: tuple[int, ...]
    """The sums over ranks of what each rank passed in."""


@dataclass(frozen=True)
class OptimizerState:
    """AdamW's state, whole tensors by parameter name: any number of ranks and any ZeRO stage can take it up."""

    step: int
    moments: dict[str, dict[str, Tensor]]
    """`exp_avg` and `exp_avg_sq`, each name → f32 of the parameter's shape, on the CPU; empty but on rank 0."""


class Engine:
    """A dual encoder under DeepSpeed.

    Every rank must construct it, step it, and collect and restore its state together. The weights of rank 0 win.
    """

    def __init__(self, model: DualEncoder, config: RunConfig, world: World):
        _prepare_deepspeed(world)
        if world.device.type == "cpu":
            keep_freed_memory()
        self.model = model.to(world.device)
        self._config = config
        self._world = world
        self._loss = LOSSES[config.loss.name]
        if config.machine.checkpoint_blocks:
            checkpoint_blocks(self.model)
        for tensor in self.model.state_dict().values():
            dist.broadcast(tensor, src=0)
        self._engine, *_ = deepspeed.initialize(
            model=_Towers(self.model, config.training.precision),
            optimizer=make_optimizer(self.model, config.optimizer),
            config=deepspeed_config(config, world.size),
            dist_init_required=False,
        )
        self._stage = int(self._engine.zero_optimization_stage())
        if self._stage == 0 and world.size == 1:
            # With nobody to average with, DeepSpeed would still copy all gradients into one row, and back.
            self._engine.enable_backward_allreduce = False
        self._fragments = dict(fragments_of(self.model, self._engine.optimizer, self._stage, world.rank))
        self._start_optimizer_state()
        decay = config.training.ema_decay
        self._average = WeightAverage(self.model, self._fragments, world, decay) if decay is not None else None
        self._way_on = (
            f"Where no checkpoint was saved yet, start again with, for example, optimizer.learning_rate below "
            f"{config.optimizer.learning_rate:g}; to go on from one with other settings, start a new run: a new "
            f"run_dir and model.initial_weights={config.run_dir}"
        )

    def step(self, batch: Batch, samples_seen: int, *, tallies: tuple[int, ...] = ()) -> StepStats:
        """Train on this rank's rows of one global batch.

        samples_seen: before this batch. tallies: numbers to be summed over ranks on the way.

        Raises:
            NonFiniteError: on every rank, when the loss on any is not finite (before the weights change) or the
                gradient is not (after: the weights are lost and must not be saved).
        """
        training = self._config.training
        rate = learning_rate_at(
            samples_seen, training.global_batch_size, training.total_samples, self._config.optimizer
        )
        self._set_learning_rate(rate)
        (loss, statistics), scale = self._backward(batch, samples_seen)
        # Only now that the backward is queued may anything wait for the device.
        (mean_loss, *similarities), sums = self._agree((loss.detach(), *statistics), tallies)
        scale_used = float(scale.detach().exp())
        if not math.isfinite(mean_loss):
            raise NonFiniteError(
                f"the loss after {counted(samples_seen, 'sample')} is {mean_loss}; nothing was changed or saved. "
                f"{self._way_on}"
            )
        norm = self._step_optimizer()
        # Where DeepSpeed sees a norm that is not finite it may also say -1.
        if not 0 <= norm < math.inf:
            raise NonFiniteError(
                f"the gradient after {counted(samples_seen, 'sample')} is not finite (norm {norm}) while the loss is "
                f"{mean_loss}; the weights are lost, the last checkpoint is not. {self._way_on}"
            )
        self._clamp_logit_scale()
        if self._average is not None:
            self._average.update(samples_seen // training.global_batch_size)
        return StepStats(
            loss=mean_loss,
            learning_rate=rate,
            logit_scale=scale_used,
            gradient_norm=norm,
            similarities=dict(zip(BatchStatistics._fields, similarities, strict=True)),
            tallies=tuple(int(number) for number in sums),
        )

    def _backward(self, batch: Batch, samples_seen: int) -> tuple[LossOutput, Tensor]:
        """The loss, its gradients on their way into the parameters; and logit_scale."""
        device, seed = self._world.device, self._config.training.seed
        captions = None
        if self._config.loss.duplicates == "positives":
            captions = caption_identities(batch.tokens.to(device, non_blocking=True))

        parts = batch.parts(self._config.machine.pairs_per_forward)
        first = samples_seen + self._world.rows(self._config.training.global_batch_size)[0]
        firsts = list(itertools.accumulate(map(len, parts), initial=first))
        masks = int(hashes(np.zeros(1), seed, 4).view(np.int64)[0])

        def forward(number: int, part: Batch) -> tuple[Tensor, ...]:
            # Randomness inside the towers depends on the place in the run alone, so there is no state to save.
            torch.manual_seed(int(hashes(np.array([self._world.rank]), seed, samples_seen, number)[0] >> 1))
            images, tokens = (each.to(device, non_blocking=True) for each in (part.images, part.tokens))
            # Masks that can be keyed by a row's place in the run are the same on any ranks and in any parts.
            row_keys = torch.arange(firsts[number], firsts[number + 1], device=device) + masks
            return self._engine(images, tokens, part.lengths, row_keys)

        def loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None) -> LossOutput:
            return self._loss(image, text, scale, bias, captions)

        if len(parts) == 1:
            outputs = forward(0, batch)
            output = loss(*outputs)
            self._engine.backward(output.loss)
            return output, outputs[2]
        with self._one_reduction() as backward:
            return backward_in_parts(parts, forward, loss, backward)

    @contextmanager
    def _one_reduction(self) -> Iterator[Callable[[Tensor, bool], None]]:
        """A backward that may be called several times a step; gradients are reduced over ranks once, after the last."""

        def backward(scalar: Tensor, is_last: bool) -> None:
            if self._stage < 2:
                # Unlike the other way this reduces while the last backward still runs; stages 2 and 3 would each time.
                self._engine.set_gradient_accumulation_boundary(is_last)
            self._engine.backward(scalar, scale_wrt_gas=False)

        with self._engine.coalesce_grad_reduction() if self._stage >= 2 else nullcontext():
            yield backward

    def weights(self) -> dict[str, Tensor]:
        """The model's state dict, on the CPU; complete on rank 0. Every rank must call it."""
        with deepspeed.zero.GatheredParameters(list(self.model.parameters()), enabled=self._stage == 3):
            if not self._world.is_first:
                return {}
            return {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    def averaged_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """`weights()` with the average (EMA) of each weight in its place; None where none is kept. As `weights()`."""
        return self._average.collect(weights, is_shared=self._stage > 0) if self._average is not None else None

    def restore_average(self, averages: dict[str, Tensor] | None) -> None:
        """Take up what rank 0 holds, where averages are kept. Every rank must call it."""
        if self._average is not None:
            self._average.restore(averages)

    def optimizer_state(self) -> OptimizerState:
        """Every rank must call it; the tensors are gathered one by one and kept on rank 0."""
        moments = {
            kind: collect(self._fragments, self._moment(kind), self._world, is_shared=self._stage > 0)
            for kind in MOMENTS
        }
        return OptimizerState(self._steps_taken(), moments)

    def restore_optimizer(self, state: OptimizerState | None) -> None:
        """Take up what rank 0 holds; the others may pass None. Every rank must call it."""
        step = torch.tensor([state.step if state else 0], device=self._world.device)
        dist.broadcast(step, src=0)
        for kind in MOMENTS:
            hand_out(self._fragments, self._moment(kind), state.moments[kind] if state else None, self._world)
        for entry in self._torch_optimizer().state.values():
            entry["step"].fill_(int(step))

    def _agree(self, values: tuple[Tensor, ...], tallies: tuple[int, ...]) -> tuple[list[float], list[float]]:
        """The means of the values over ranks, and the sums of the tallies, in one collective."""
        numbers = [*(float(value) / self._world.size for value in values), *tallies]
        vector = torch.tensor(numbers, dtype=torch.float64, device=self._world.device)
        dist.all_reduce(vector)
        agreed = vector.tolist()
        return agreed[: len(values)], agreed[len(values) :]

    def _set_learning_rate(self, rate: float) -> None:
        for group in self._torch_optimizer().param_groups:
            group["lr"] = rate

    def _step_optimizer(self) -> float:
        if self._stage == 0:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            self._engine.step()
            return norm
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def _clamp_logit_scale(self) -> None:
        """Hold logit_scale ≤ its maximum on the fp32 master, which would else grow on behind a clamped copy."""
        maximum = self._config.training.max_logit_scale
        with torch.no_grad():
            for master in self._masters(SCALE_GROUP):
                master.clamp_(max=maximum)
            scale = self.model.logit_scale
            if self._stage == 3:
                with deepspeed.zero.GatheredParameters([scale], modifier_rank=0):
                    scale.data.clamp_(max=maximum)
            else:
                scale.data.clamp_(max=maximum)

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return self._engine.optimizer.optimizer if self._stage else self._engine.optimizer

    def _masters(self, group_name: str) -> Iterator[Tensor]:
        """The flat fp32 tensors of this rank that hold a group's parameters."""
        optimizer = self._torch_optimizer()
        if self._stage < 3:
            for group in optimizer.param_groups:
                if group["name"] == group_name:
                    yield from group["params"]
            return
        zero = self._engine.optimizer
        for sub_group, flat in enumerate(zero.fp32_partitioned_groups_flat):
            if optimizer.param_groups[zero.sub_group_to_group_id[sub_group]]["name"] == group_name:
                yield flat

    def _start_optimizer_state(self) -> None:
        """Zero moments before the first step, where torch would make them during it: resuming can then fill them."""
        state = self._torch_optimizer().state
        for fragment in self._fragments.values():
            if fragment.flat not in state:
                state[fragment.flat] = {
                    "step": torch.zeros((), dtype=torch.float32, device=fragment.flat.device),
                    **{kind: torch.zeros_like(fragment.flat) for kind in MOMENTS},
                }

    def _moment(self, kind: str) -> Beside:
        state = self._torch_optimizer().state
        return lambda flat: state[flat][kind]

    def _steps_taken(self) -> int:
        return int(next(iter(self._torch_optimizer().state.values()))["step"])


class _Towers(nn.Module):
    """The model's forward under autocast; outside of it DeepSpeed would switch autocast off."""

    def __init__(self, model: DualEncoder, precision: str):
        super().__init__()
        self.model = model
        self._bf16 = precision == "bf16"
        for scalar in self._scalars():
            if hasattr(scalar, "ds_id"):
                deepspeed.zero.register_external_parameter(self, scalar)

    def forward(self, images: Tensor, tokens: Tensor, lengths: Tensor, row_keys: Tensor) -> tuple[Tensor, ...]:
        """Both embeddings, then logit_scale and logit_bias, if there is one, as values of the graph.

        ZeRO-3 takes the parameters themselves away again.
        """
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            image, text = self.model(images, tokens, lengths, row_keys)
        return image, text, *(scalar.clone() for scalar in self._scalars())

    def _scalars(self) -> list[nn.Parameter]:
        """By attribute each time: this is how ZeRO-3 notices that one is wanted."""
        return [each for each in (self.model.logit_scale, self.model.logit_bias) if each is not None]


def _prepare_deepspeed(world: World) -> None:
    """No chatter on stdout, and no compiling of a shared-memory collective (minutes, and a stale lock when killed)."""
    # DeepSpeed insists on the launcher's variable also where there is none.
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    # DeepSpeed 0.19 calls collectives by the names that torch 2.14 renames.
    warnings.filterwarnings("ignore", message="`torch.distributed.(all_gather_into|reduce_scatter)_tensor` is deprec")
    deepspeed.utils.logger.setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
