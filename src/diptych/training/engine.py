"""Train a step on all ranks with DeepSpeed, and read and restore the optimizer's state by parameter name.

Parameters are fp32 at every precision (bf16 is autocast), so the weights that a forward uses are the master weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from diptych.checkpoint_folder import EMA, MODEL, TOKEN_HEAD
from diptych.config.schema import RunConfig
from diptych.config.stages import stage_at, stages_of
from diptych.data.batch import Batch
from diptych.data.draws import hashes
from diptych.device import precision_on, set_arithmetic
from diptych.loss import WordLoss
from diptych.loss.objective import Objective, Outputs
from diptych.machine import keep_freed_memory
from diptych.model.dual_encoder import TrainedModel, checkpoint_blocks, load_weights
from diptych.model.freezing import freeze
from diptych.tensor_hashes import caption_identities
from diptych.training.accumulate import backward_in_parts, num_parts
from diptych.training.compiled_blocks import compile_blocks
from diptych.training.deepspeed_config import clips_on_device, deepspeed_config, offloads_optimizer, prepare_deepspeed
from diptych.training.fragments import (
    CompanionOf,
    Fragment,
    fragments_of,
    frozen_fragments,
    gather_into,
    hand_out,
)
from diptych.training.half_moments import ADAMW_MOMENTS
from diptych.training.in_flight import Readout, StopWatch, to_device
from diptych.training.muon import MUON_MOMENTS, Muon
from diptych.training.optimizer import learning_rate_at, make_optimizer, start_state
from diptych.training.parameter_groups import SCALE_GROUP, TOWERS, hidden_matrices, tower_of
from diptych.training.snapshot import Share, SharePart
from diptych.training.step_stats import StepInFlight, StepStats
from diptych.training.towers import Towers
from diptych.training.weight_average import WeightAverage
from diptych.world import World

MOMENTS = (*ADAMW_MOMENTS, *MUON_MOMENTS)
"""AdamW's two, and Muon's for the parameters that it updates."""

PARTS = (*TOWERS, None)
"""The parts of the model whose norms are measured: each tower, and (None) the parameters outside of both."""


@dataclass(frozen=True)
class OptimizerState:
    """The state as whole tensors by parameter name, so that any number of ranks and any ZeRO stage can load it."""

    step: int
    moments: dict[str, dict[str, Tensor]]
    """Each of MOMENTS: parameter name → f32 or bf16 of its shape, on the CPU; only on rank 0."""


class Engine:
    """A model that is trained by DeepSpeed.

    All ranks must construct it, step it, and collect and restore its state together. All start from rank 0's weights.

    pair_loss: computes the loss of each pair from the model's logits of words, if it gives some.
    """

    def __init__(self, model: TrainedModel, config: RunConfig, world: World, pair_loss: nn.Module | None = None):
        precision = precision_on(world.device, config.training.precision)
        set_arithmetic(world.device, precision, deterministic=config.machine.deterministic)
        prepare_deepspeed(world)
        if world.device.type == "cpu":
            keep_freed_memory()
        self.model = model.to(world.device)
        freeze(self.model, config.model.freeze)
        self._config = config
        self._world = world
        self._stages = stages_of(config)
        self._rows_of_ranks = world.rows_of_ranks(config.training.global_batch_size)
        self._objective = Objective(config.loss, self._rows_of_ranks)
        self._num_parts = num_parts(self._rows_of_ranks, config.machine.pairs_per_forward)
        if config.machine.checkpoint_blocks:
            checkpoint_blocks(self.model)
        for tensor in self.model.state_dict().values():
            dist.broadcast(tensor, src=0)
        names = self.model.state_dict().keys()
        self._running_statistics = [buffer for name, buffer in self.model.named_buffers() if name in names]
        """The running statistics of batch normalisation, which a forward changes."""
        self._matrices = hidden_matrices(self.model) if config.optimizer.name == "muon" else []
        """The names of the parameters that Muon updates, in the same order on all ranks."""
        pair_loss = pair_loss and pair_loss.to(world.device)
        self.words = pair_loss if isinstance(pair_loss, WordLoss) else None
        """What the outputs of a model mean that predicts words; None for a dual encoder, also with a token head."""
        towers = self._towers = Towers(self.model, precision, pair_loss)
        if config.machine.compile_blocks:
            compile_blocks(
                self.model, towers, -(-self._rows_of_ranks[world.rank] // self._num_parts), self._stages, world
            )
        optimizer = make_optimizer(self.model, config.optimizer, precision)
        self._engine, *_ = deepspeed.initialize(
            model=towers,
            optimizer=optimizer,
            config=deepspeed_config(config, world.size, spans_machines=world.spans_machines),
            dist_init_required=False,
        )
        self._stage = int(self._engine.zero_optimization_stage())
        if self._stage == 0 and world.size == 1:
            # On a single rank DeepSpeed would still copy all gradients to a buffer and back.
            self._engine.enable_backward_allreduce = False
        self._clips_itself = clips_on_device(config, world.size)
        self._offloads = offloads_optimizer(config)
        self._fragments = dict(fragments_of(self.model, self._engine.optimizer, self._stage, world.rank))
        if isinstance(optimizer, Muon):
            optimizer.place([self._fragments[name] for name in self._matrices])
        self._start_optimizer_state()
        self._update_after: torch.cuda.Event | None = None
        decay = config.training.ema_decay
        # A token head is not part of the model that is used in the end, so nobody needs its average.
        averaged = _by_folder(self._fragments)[MODEL]
        self._average = WeightAverage(self.model, averaged, world, decay) if decay is not None else None

    def step(
        self,
        batch: Batch,
        samples_seen: int,
        *,
        tallies: tuple[int, ...] = (),
        waited_seconds: float = 0.0,
        measures_update: bool = False,
    ) -> StepInFlight:
        """Train on this rank's rows of one global batch; at ZeRO stages 0 to 2 nothing here waits for the device.

        If loss or gradient are not finite on any rank, no rank changes its weights, moments or running statistics.

        samples_seen: samples of the run before this batch.
        tallies: numbers that are summed over ranks along with the step.
        waited_seconds: how long this rank waited for this batch.
        measures_update: compute `update_ratios`; costs another pass over the weights and a copy of them.
        """
        watch = StopWatch(self._world.device)
        training = self._config.training
        rate = learning_rate_at(
            samples_seen, training.global_batch_size, training.total_samples, self._config.optimizer
        )
        stage = stage_at(self._stages, samples_seen // training.global_batch_size)
        rate *= stage.learning_rate_scale
        self._set_learning_rate(rate)
        self.model.image.leave_out_patches(stage.patch_dropout)
        running = [buffer.clone() for buffer in self._running_statistics]
        loss, measured, scale, is_bad = self._backward(batch, samples_seen, watch)
        watch.mark("backward")
        agreed = self._agree(loss, measured, tallies, waited_seconds, is_bad)
        used = scale.detach().exp().double()
        before = [weights.clone() for weights in self._our_weights()] if measures_update else None
        if self._update_after is not None:
            torch.cuda.current_stream().wait_event(self._update_after)
            self._update_after = None
        norm, skips = self._step_optimizer(agreed, first_square=1 + len(measured))
        for buffer, unchanged in zip(self._running_statistics, running, strict=True):
            buffer.copy_(torch.where(skips > 0, unchanged, buffer))
        self._clamp_logit_scale()
        if self._average is not None:
            self._average.update(samples_seen // training.global_batch_size)
        updates = self._squares_of_update(before) if before else agreed[:0]
        watch.mark("update")
        readout = Readout(torch.cat([norm[None], skips[None], used, agreed, updates]))
        seen = samples_seen + training.global_batch_size
        names = tuple(measured)
        return StepInFlight(lambda: self._stats(readout.read(), names, rate, seen, len(tallies), watch))

    def _stats(
        self, numbers: list[float], names: tuple[str, ...], rate: float, seen: int, num_tallies: int, watch: StopWatch
    ) -> StepStats:
        """Unpack the numbers that `step` packed, in the same order."""
        number = iter(numbers)

        def take(count: int) -> list[float]:
            return list(itertools.islice(number, count))

        norm, skips, scale, loss = take(4)
        similarities, squares = take(len(names)), take(len(PARTS))
        tallies, waits, bad = take(num_tallies), take(self._world.size), take(self._world.size)
        changes, sizes = take(len(PARTS)), take(len(PARTS))
        return StepStats(
            samples_seen=seen,
            loss=loss,
            learning_rate=rate,
            logit_scale=scale,
            gradient_norm=norm,
            tower_gradient_norms={
                tower: _root(square) for tower, square in zip(TOWERS, squares, strict=False) if not self._offloads
            },
            update_ratios={
                tower: _root(change / size) for tower, change, size in zip(TOWERS, changes, sizes, strict=False) if size
            },
            is_skipped=skips > 0,
            bad_ranks=tuple(rank for rank, is_bad in enumerate(bad) if is_bad),
            similarities=dict(zip(names, similarities, strict=True)),
            tallies=tuple(int(tally) for tally in tallies),
            waits=tuple(waits),
            seconds=watch.seconds(),
        )

    def _backward(
        self, batch: Batch, samples_seen: int, watch: StopWatch
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """Run forward, loss and backward.

        Returns the loss, numbers about it, logit_scale, and whether a row of the outputs is not finite.
        """
        device, seed = self._world.device, self._config.training.seed
        captions = None
        if self._config.loss.duplicates == "positives":
            captions = caption_identities(batch.tokens.to(device, non_blocking=True))

        parts = batch.parts(self._num_parts)
        first = samples_seen + sum(self._rows_of_ranks[: self._world.rank])
        firsts = list(itertools.accumulate(map(len, parts), initial=first))
        masks = int(hashes(np.zeros(1), seed, 4).view(np.int64)[0])
        is_bad = torch.zeros((), dtype=torch.bool, device=device)

        def forward(number: int, part: Batch) -> Outputs:
            # Randomness inside the towers depends only on the place in the run, so there is no state to save.
            torch.manual_seed(int(hashes(np.array([self._world.rank]), seed, samples_seen, number)[0] >> 1))
            images, tokens = (each.to(device, non_blocking=True) for each in (part.images, part.tokens))
            # Masks computed from a row's place in the run do not depend on the number of ranks or parts.
            row_keys = torch.arange(firsts[number], firsts[number + 1], device=device) + masks
            return self._towers.unpacked(self._engine(images, tokens, part.lengths, row_keys))

        def loss(outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
            is_bad.copy_(~torch.stack([rows.detach().sum() for rows in outputs.rows]).sum().isfinite())
            value, measured = self._objective(outputs, captions)
            watch.mark("forward")
            return value, measured

        if len(parts) == 1:
            outputs = forward(0, batch)
            value, measured = loss(outputs)
            self._engine.backward(value)
            return value, measured, self._scale_of(outputs.scalars), is_bad
        with self._one_reduction() as backward:
            value, measured, scalars = backward_in_parts(parts, forward, loss, backward)
            return value, measured, self._scale_of(scalars), is_bad

    def _scale_of(self, scalars: tuple[Tensor, ...]) -> Tensor:
        """logit_scale, f32[1]; NaN for a model without one."""
        return scalars[0] if scalars else torch.full((1,), torch.nan, device=self._world.device)

    @contextmanager
    def _one_reduction(self) -> Iterator[Callable[[Tensor, bool], None]]:
        """Yield a backward that may be called several times a step; gradients are reduced over ranks once, at last."""

        def backward(scalar: Tensor, is_last: bool) -> None:
            if self._stage < 2:
                # This lets DeepSpeed reduce during the last backward; at stages 2 and 3 it would reduce in each one.
                self._engine.set_gradient_accumulation_boundary(is_last)
            self._engine.backward(scalar, scale_wrt_gas=False)

        with self._engine.coalesce_grad_reduction() if self._stage >= 2 else nullcontext():
            yield backward

    def weights(self, *, averaged: bool = False) -> dict[str, Tensor]:
        """The model's state dict on the CPU, as `copy_weights` makes it; only on rank 0. Every rank must call it."""
        room = self.room_for_copy()
        self.copy_weights(room, averaged=averaged)
        return {name: tensor.cpu() for name, tensor in room.items()} if self._world.is_first else {}

    def room_for_copy(self) -> dict[str, Tensor]:
        """Tensors on this rank's device for a copy of the model's state dict; their values are undefined."""
        tensors: dict[str, Any] = self.model.state_dict(keep_vars=True)
        return {
            name: torch.empty(getattr(tensor, "ds_shape", tensor.shape), dtype=tensor.dtype, device=self._world.device)
            for name, tensor in tensors.items()
        }

    @torch.no_grad()
    def copy_weights(self, room: dict[str, Tensor], *, averaged: bool) -> None:
        """Copy the weights of the model to `room_for_copy`, equal on all ranks. Every rank must call it.

        It needs no memory in addition, so no rank fails alone while the others wait for it.

        averaged: copy the moving average (EMA) instead of what has one; averages must be kept.
        """
        buffers = dict(self.model.named_buffers())
        for name, tensor in self.model.state_dict().items():
            if self._stage < 3 or name in buffers:
                room[name].copy_(tensor)
            if name in buffers:  # each rank has its own running statistics, and checkpoints those of rank 0
                dist.broadcast(room[name], src=0)
        if self._stage == 3:
            fragments = {**self._fragments, **dict(frozen_fragments(self.model, self._world.rank))}
            gather_into(room, fragments, lambda flat: flat, is_shared=True)
        if averaged:
            assert self._average is not None
            self._average.copy_into(room, is_shared=self._stage > 0)

    def restore_weights(self, weights: dict[str, Tensor] | None) -> None:
        """Load a state dict that rank 0 passes, also between two steps. Every rank must call it."""
        with deepspeed.zero.GatheredParameters(
            list(self.model.parameters()), modifier_rank=0, enabled=self._stage == 3
        ):
            if weights is not None:
                load_weights(self.model, weights)
        kept = self.model.state_dict() if self._stage < 3 else dict(self.model.named_buffers())
        for tensor in kept.values():
            dist.broadcast(tensor, src=0)
        if self._stage:
            hand_out(self._fragments, Tensor.detach, weights, self._world)

    def has_finite_weights(self) -> bool:
        """Whether this rank's share of the weights is finite; the step after the one that broke them would tell."""
        norms = torch._foreach_norm(self._our_weights())
        return bool(torch.stack(norms).sum().isfinite())

    def restore_average(self, averages: dict[str, Tensor] | None) -> None:
        """Load the averages that rank 0 passes, if averages are kept. Every rank must call it."""
        if self._average is not None:
            self._average.restore(averages)

    def share(self) -> Share:
        """What this rank saves: its parts of moments and averages; rank 0 also what it has whole of the weights.

        At ZeRO stage 0, where all ranks have everything, each saves as many elements as the others. The tensors are
        those in use, apart from running statistics, which are copies: a forward changes them before the next update.
        """
        rank, size = self._world.rank, self._world.size

        def parts(companion_of: CompanionOf, fragments: dict[str, Fragment]) -> dict[str, SharePart]:
            if self._stage == 0:
                fragments = {name: each.divided(rank, size) for name, each in fragments.items()}
            return {
                name: SharePart(each.start, each.of(companion_of(each.flat)), each.shape)
                for name, each in fragments.items()
            }

        divided: dict[str, dict[str, SharePart]] = {}
        whole: dict[str, dict[str, Tensor]] = {}
        if self._world.is_first:
            buffers = dict(self.model.named_buffers())
            whole |= _by_folder(
                {
                    name: tensor.clone() if name in buffers else tensor
                    for name, tensor in self.model.state_dict().items()
                    if name in buffers or self._stage < 3
                }
            )
        frozen = dict(frozen_fragments(self.model, rank)) if self._stage == 3 else {}
        if self._stage == 3:
            divided |= _by_folder(parts(lambda flat: flat, {**self._fragments, **frozen}))
        if self._average is not None:
            averages = parts(self._average.companion_of, _by_folder(self._fragments)[MODEL])
            divided[EMA] = {**averages, **_by_folder(parts(lambda flat: flat, frozen))[MODEL]}
            if self._world.is_first:
                whole[EMA] = dict(self._average.buffers)
        step = next(iter(self._torch_optimizer().state.values()))["step"]
        moments = {kind: parts(self._moment(kind), self._fragments_with(kind)) for kind in MOMENTS}
        return Share(step, moments, divided, whole)

    def update_after(self, event: torch.cuda.Event | None) -> None:
        """Have the next update of the weights wait on the device for an event, such as the end of a copy of them."""
        self._update_after = event

    def optimizer_state(self) -> OptimizerState:
        """The optimizer's state; its tensors only on rank 0. Every rank must call it."""
        moments: dict[str, dict[str, Tensor]] = {}
        for kind in MOMENTS:
            fragments, moment, device = self._fragments_with(kind), self._moment(kind), self._world.device
            wholes = {
                name: torch.empty(each.shape, dtype=moment(each.flat).dtype, device=device)
                for name, each in fragments.items()
            }
            gather_into(wholes, fragments, moment, is_shared=self._stage > 0)
            moments[kind] = {name: whole.cpu() for name, whole in wholes.items()} if self._world.is_first else {}
        return OptimizerState(self._steps_taken(), moments)

    def restore_optimizer(self, state: OptimizerState | None) -> None:
        """Load the state that rank 0 passes; the other ranks may pass None. Every rank must call it."""
        step = torch.tensor([state.step if state else 0], device=self._world.device)
        dist.broadcast(step, src=0)
        for kind in MOMENTS:
            moments = state.moments[kind] if state else None
            hand_out(self._fragments_with(kind), self._moment(kind), moments, self._world)
        for entry in self._torch_optimizer().state.values():
            entry["step"].fill_(int(step))

    def _agree(
        self,
        loss: Tensor,
        measured: dict[str, Tensor],
        tallies: tuple[int, ...],
        waited_seconds: float,
        is_bad: Tensor,
    ) -> Tensor:
        """Reduce all numbers of a step over ranks in one collective.

        Returns f64: the means of the loss and of the numbers about it, the squared gradient norms of PARTS, the sums of
        the tallies, the seconds that each rank waited, and 1 for each rank whose outputs are not finite.
        """
        world = self._world
        means = torch.stack([loss.detach(), *measured.values()]).double() / world.size
        squares = self._squares((tower_of(group["name"]), gradients) for group, gradients in self._gradients())
        waits, ours = [0.0] * world.size, [0.0] * world.size
        waits[world.rank], ours[world.rank] = waited_seconds, 1.0
        numbers = to_device([*map(float, tallies), *waits, *ours], world.device)
        numbers[-world.size :] *= is_bad
        vector = torch.cat([means, squares, numbers])
        dist.all_reduce(vector)
        return vector

    def _squares(self, tensors: Iterable[tuple[str | None, list[Tensor]]]) -> Tensor:
        """f64[PARTS]: the squared norm of each part, scaled so that the sum over ranks is that of the whole tensor.

        tensors: on this rank's device, or in host memory if the optimizer is offloaded.
        """
        device = self._world.device
        norms: dict[str | None, list[Tensor]] = {part: [] for part in PARTS}
        for part, ours in tensors:
            norms[part] += torch._foreach_norm(ours) if ours else []
        nothing = torch.zeros((), dtype=torch.float64, device=device)
        sums = [torch.stack(n).double().square().sum().to(device) if n else nothing for n in norms.values()]
        squares = torch.stack(sums)
        # At stage 0 every rank has the whole tensors.
        return squares / self._world.size if self._stage == 0 else squares

    def _squares_of_update(self, before: list[Tensor]) -> Tensor:
        """f64[2 PARTS]: squared norms of the change that the step made, and of the weights before it."""
        towers = [tower_of(name) for name in self._fragments]
        changes = torch._foreach_sub(self._our_weights(), before)
        vector = torch.cat([self._squares(zip(towers, ([t] for t in side), strict=True)) for side in (changes, before)])
        dist.all_reduce(vector)
        return vector

    def _gradients(self) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
        """Each parameter group and this rank's share of its gradients, averaged over ranks; padding is zero."""
        if self._stage == 0:
            for group in self._torch_optimizer().param_groups:
                yield group, [p.grad for p in group["params"] if p.grad is not None]
            return
        groups = self._groups_of_masters()
        for number, gradients in self._engine.optimizer.averaged_gradients.items():
            yield groups[number], list(gradients or ())

    def _set_learning_rate(self, rate: float) -> None:
        for group in self._torch_optimizer().param_groups:
            group["lr"] = rate * group["learning_rate_scale"]

    def _step_optimizer(self, agreed: Tensor, first_square: int) -> tuple[Tensor, Tensor]:
        """Clip the gradient and step; return the gradient's norm and whether the step was skipped, f64[] each.

        AdamW's fused kernel divides by `grad_scale`, and changes nothing if `found_inf` is 1.

        first_square: the place in `agreed` of the first squared gradient norm.
        """
        norm = agreed[first_square : first_square + len(PARTS)].sum().sqrt()
        skips = ~(agreed[0].isfinite() & norm.isfinite())
        optimizer: Any = self._torch_optimizer()  # its scaling of gradients is not in torch's stubs
        optimizer.found_inf = skips.float().to(self._masters()[0].device)
        clip = self._config.optimizer.gradient_clip_norm
        if self._clips_itself and clip is not None:
            optimizer.grad_scale = (norm / clip).clamp(min=1).float()
        self._engine.step()
        if self._offloads:  # then DeepSpeed alone has the gradients, and says inf or -1 where it skipped the step
            norm = torch.as_tensor(self._engine.get_global_grad_norm()).to(agreed)
            skips = skips | ~(norm.isfinite() & (norm >= 0))
        return norm, skips.double()

    def _clamp_logit_scale(self) -> None:
        """Keep logit_scale at its maximum or below, in the model and in the fp32 master, which would otherwise grow."""
        scale, maximum = self.model.logit_scale, self._config.training.max_logit_scale
        if scale is None or not scale.requires_grad:
            return
        with torch.no_grad():
            for group, master in zip(self._groups_of_masters(), self._masters(), strict=True):
                if group["name"] == SCALE_GROUP:
                    master.clamp_(max=maximum)
            if self._stage == 3:
                with deepspeed.zero.GatheredParameters([scale], modifier_rank=0):
                    scale.data.clamp_(max=maximum)
            else:
                scale.data.clamp_(max=maximum)

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        optimizer = self._engine.optimizer
        inner: torch.optim.Optimizer = optimizer.optimizer if self._stage else optimizer
        return inner

    def _masters(self) -> list[Tensor]:
        """The fp32 tensors that the optimizer updates on this rank: parameters, or flat shares of several."""
        if self._stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [tensor for group in self._torch_optimizer().param_groups for tensor in group["params"]]

    def _our_weights(self) -> list[Tensor]:
        """This rank's elements of each parameter, in fp32.

        At stage 3 the flat tensors contain more: the last rank's are padded, with whatever the memory held.
        """
        return [each.of(each.flat.detach()) for each in self._fragments.values()]

    def _groups_of_masters(self) -> list[dict[str, Any]]:
        """The parameter group of each of `_masters`."""
        groups = self._torch_optimizer().param_groups
        if self._stage == 3:
            return [groups[number] for _, number in sorted(self._engine.optimizer.sub_group_to_group_id.items())]
        return [group for group in groups for _ in group["params"]]

    def _start_optimizer_state(self) -> None:
        """Create zero moments before the first step, so that resuming can fill them; torch creates them in the step."""
        state = self._torch_optimizer().state
        for name, fragment in self._fragments.items():
            if fragment.flat not in state:
                is_muon = name in self._matrices
                state[fragment.flat] = start_state(fragment.flat, self._config.optimizer, is_muon=is_muon)

    def _fragments_with(self, kind: str) -> dict[str, Fragment]:
        """The fragments of the parameters that have this moment."""
        state = self._torch_optimizer().state
        return {name: each for name, each in self._fragments.items() if kind in state[each.flat]}

    def _moment(self, kind: str) -> CompanionOf:
        state = self._torch_optimizer().state
        return lambda flat: state[flat][kind]

    def _steps_taken(self) -> int:
        return int(next(iter(self._torch_optimizer().state.values()))["step"])


def _root(square: float) -> float:
    """The square root; NaN for NaN, and for a number that rounding made negative."""
    return math.sqrt(square) if 0 <= square else math.nan


Kept = TypeVar("Kept")


def _by_folder(kept: Mapping[str, Kept]) -> dict[str, dict[str, Kept]]:
    """What is kept for each tensor, by the folder of a checkpoint that has it: the model's, or the token head's."""
    folders: dict[str, dict[str, Kept]] = {MODEL: {}}
    for name, each in kept.items():
        folders.setdefault(TOKEN_HEAD if name.startswith(f"{TOKEN_HEAD}.") else MODEL, {})[name] = each
    return folders
