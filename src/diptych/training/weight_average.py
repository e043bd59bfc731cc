"""The exponential moving average of the weights (EMA), which often evaluates better than the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diptych.training.fragments import Fragment, collect, hand_out
from diptych.world import World


class WeightAverage:
    """Kept in fp32 of what this rank updates: as large as one of the optimizer's moments, and shared out as those are.

    Running statistics are averaged too, since they have to fit the averaged weights.
    """

    def __init__(self, model: nn.Module, fragments: Mapping[str, Fragment], world: World, decay: float):
        self._fragments = fragments
        self._world = world
        self._decay = decay
        flats = {id(fragment.flat): fragment.flat.detach() for fragment in fragments.values()}
        self._of = {key: flat.clone() for key, flat in flats.items()}
        # A buffer of whole numbers counts, and one that is in no state dict never changes.
        names = model.state_dict().keys()
        buffers = {n: b for n, b in model.named_buffers() if n in names and b.is_floating_point()}
        self._buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        self._averages = [*self._of.values(), *self._buffers.values()]
        self._values = [*flats.values(), *buffers.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take up the weights after a step; `step` of them were taken before. Nothing waits for the device."""
        torch._foreach_lerp_(self._averages, self._values, 1 - decay_of(step, self._decay))

    def collect(self, weights: Mapping[str, Tensor], *, is_shared: bool) -> dict[str, Tensor]:
        """The averages in place of the weights, a state dict; complete on rank 0, and every rank must call it."""
        averages = collect(self._fragments, self._beside, self._world, is_shared=is_shared)
        if not self._world.is_first:
            return {}
        return {**weights, **averages, **{name: buffer.cpu().clone() for name, buffer in self._buffers.items()}}

    def restore(self, averages: Mapping[str, Tensor] | None) -> None:
        """Take up what rank 0 holds; the others may pass None. Every rank must call it."""
        hand_out(self._fragments, self._beside, averages, self._world)
        if averages is not None:  # running statistics are of use on rank 0 alone, which saves them
            for name, buffer in self._buffers.items():
                buffer.copy_(averages[name])

    def _beside(self, flat: Tensor) -> Tensor:
        return self._of[id(flat)]


def decay_of(step: int, decay: float) -> float:
    """How much of the average stays at a step: less in the first, or the random start would weigh for thousands.

    As in TensorFlow's `ExponentialMovingAverage`; from step 9 / (1 - decay) on it is the configured one.
    """
    return min(decay, (1 + step) / (10 + step))
