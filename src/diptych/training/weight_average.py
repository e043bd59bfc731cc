"""Keep an exponential moving average of the weights (EMA), which often evaluates better than the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diptych.training.fragments import Fragment, gather_into, hand_out
from diptych.world import World


class WeightAverage:
    """The average of the weights that this rank updates, in fp32.

    It is as large as one of the optimizer's moments, and divided among ranks in the same way. Running statistics are
    averaged too, since they must fit the averaged weights.
    """

    def __init__(self, model: nn.Module, fragments: Mapping[str, Fragment], world: World, decay: float):
        self._fragments = fragments
        self._world = world
        self._decay = decay
        flats = {id(fragment.flat): fragment.flat.detach() for fragment in fragments.values()}
        self._of = {key: flat.clone() for key, flat in flats.items()}
        # Leave out integer buffers, which are counters, and buffers outside the state dict, which never change.
        names = model.state_dict().keys()
        buffers = {n: b for n, b in model.named_buffers() if n in names and b.is_floating_point()}
        self.buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        """The averages of the running statistics."""
        self._averages = [*self._of.values(), *self.buffers.values()]
        self._values = [*flats.values(), *buffers.values()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after step number `step` (counted from 0) to the average, without waiting for the device."""
        torch._foreach_lerp_(self._averages, self._values, 1 - decay_of(step, self._decay))

    def copy_into(self, weights: Mapping[str, Tensor], *, is_shared: bool) -> None:
        """Replace the weights of a whole state dict by their averages, equal on all ranks. Every rank must call it."""
        gather_into(weights, self._fragments, self.companion_of, is_shared=is_shared)
        for name, buffer in self.buffers.items():
            weights[name].copy_(buffer)
            if self._world.size > 1:
                dist.broadcast(weights[name], src=0)

    def restore(self, averages: Mapping[str, Tensor] | None) -> None:
        """Load the averages that rank 0 passes; the other ranks may pass None. Every rank must call it."""
        hand_out(self._fragments, self.companion_of, averages, self._world)
        if averages is not None:  # only rank 0 needs the running statistics, since it saves them
            for name, buffer in self.buffers.items():
                buffer.copy_(averages[name])

    def companion_of(self, flat: Tensor) -> Tensor:
        """The average of a flat tensor."""
        return self._of[id(flat)]


def decay_of(step: int, decay: float) -> float:
    """The share of the average that is kept at a step.

    It is smaller in the first steps; otherwise the random initial weights would count for thousands of steps. The
    formula is that of TensorFlow's `ExponentialMovingAverage`; from about step 9 / (1 - decay) on it gives `decay`.
    """
    return min(decay, (1 + step) / (10 + step))
