"""The hashes of `data/order.py`, of tensors and on their device: random numbers that depend on their key alone."""

from __future__ import annotations

import torch
from torch import Tensor


def hashes(values: Tensor, state: Tensor | int = 0) -> Tensor:
    """i64, one for each of i64 `values`, keyed by a state that broadcasts with them (SplitMix64: Steele, 2014)."""
    return _mixed(values * _signed(0x9E3779B97F4A7C15) + state)


def caption_identities(tokens: Tensor) -> Tensor:
    """i64[batch] of i[batch length]: equal where two captions have the same tokens, in every process.

    Of the tokens and not of the text: captions that differ in case alone, or only beyond the context length, are one to
    the text tower, which gives them the same embedding.
    """
    places = hashes(torch.arange(tokens.shape[1], device=tokens.device))
    return hashes(tokens.long(), places).sum(1)


def _mixed(state: Tensor) -> Tensor:
    """Integers wrap around, as unsigned ones do; the shifts are those of unsigned ones."""
    state = state + _signed(0x9E3779B97F4A7C15)
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64)
