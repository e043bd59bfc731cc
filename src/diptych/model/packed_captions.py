"""Process captions without padding: all tokens of a batch in one sequence, with causal attention within each caption.

Under a causal mask a caption's features do not depend on anything after its end, so leaving out the padding does not
change them. Captions from the web fill about a quarter of the context, so most of what a text tower computes with
padding would be for the padding.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None  # type: ignore[assignment]


@dataclass(frozen=True)
class PackedCaptions:
    """The layout of packed tokens: captions sorted by length, so that equally long ones are next to each other."""

    places: Tensor
    """i64[tokens]: for each packed token, its place in the flat i[batch * length] of the padded batch."""
    positions: Tensor
    """i64[tokens]: for each packed token, its position in its caption."""
    ends: Tensor
    """i64[batch]: for each caption of the batch, the packed token at its end."""
    bounds: Tensor
    """i32[batch + 1]: the first token of each packed caption, then the number of all tokens."""
    groups: tuple[tuple[int, int], ...]
    """(number of captions, their length) of each run of equally long captions."""
    has_varlen_kernel: bool
    """Whether the device has a kernel for captions of different lengths, in half precision."""

    @staticmethod
    def of(lengths: Tensor, padded_length: int, device: torch.device) -> PackedCaptions:
        """Compute the layout from the captions' lengths, i[batch], at least 1 each.

        If the lengths are on the CPU, nothing waits for the device.
        """
        host = lengths.cpu().long()
        order = host.argsort(stable=True)
        ordered = host[order]
        stops = ordered.cumsum(0)
        positions = torch.arange(int(stops[-1])) - (stops - ordered).repeat_interleave(ordered)
        places = (order * padded_length).repeat_interleave(ordered) + positions
        ends = torch.empty_like(stops)
        ends[order] = stops - 1
        sizes, counts = ordered.unique_consecutive(return_counts=True)
        return PackedCaptions(
            places=places.to(device, non_blocking=True),
            positions=positions.to(device, non_blocking=True),
            ends=ends.to(device, non_blocking=True),
            bounds=F.pad(stops, (1, 0)).int().to(device, non_blocking=True),
            groups=tuple(zip(counts.tolist(), sizes.tolist(), strict=True)),
            has_varlen_kernel=has_varlen_kernel(device),
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention within each caption; inputs and result are f[tokens heads head_width]."""
        is_half = query.dtype in (torch.bfloat16, torch.float16)
        if self.has_varlen_kernel and is_half and query.shape[-1] % 8 == 0:
            longest = self.groups[-1][1]
            mixed = varlen_attn(query, key, value, self.bounds, self.bounds, longest, longest, window_size=(-1, 0))
            assert isinstance(mixed, Tensor)
            return mixed
        sizes = [count * length for count, length in self.groups]
        parts = zip(self.groups, *(each.split(sizes) for each in (query, key, value)), strict=True)
        return torch.cat([_attend_to_equals(*group, *part) for group, *part in parts])


def has_varlen_kernel(device: torch.device) -> bool:
    """Whether torch has an attention kernel for sequences of different lengths on this device (GPUs since Ampere)."""
    if device.type != "cuda" or varlen_attn is None:
        return False
    is_causal_by_window = "window_size" in inspect.signature(varlen_attn).parameters  # not yet in torch 2.10
    return is_causal_by_window and torch.cuda.get_device_capability(device) >= (8, 0)


def _attend_to_equals(count: int, length: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention within each of `count` captions of the same length."""
    if length == 1:
        return value
    query, key, value = (each.unflatten(0, (count, length)).transpose(1, 2) for each in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(0, 1)
