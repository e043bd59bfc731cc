"""The hash function of `data/draws.py` for tensors, computed on their device."""

from __future__ import annotations

import torch
from torch import Tensor


def hashes(values: Tensor, state: Tensor | int = 0) -> Tensor:
    """Hash each i64 of `values` to an i64, keyed by a state that broadcasts with them (SplitMix64: Steele, 2014)."""
    return _mixed(values * _signed(0x9E3779B97F4A7C15) + state)


def caption_identities(tokens: Tensor) -> Tensor:
    """An i64 for each caption of i[batch length] tokens: equal if the tokens are equal, and the same in every process.

    It depends on the tokens and not on the text: captions that differ only in case, or beyond the context length, have
    the same embedding.
    """
    places = hashes(torch.arange(tokens.shape[1], device=tokens.device))
    return hashes(tokens.long(), places).sum(1)


def _mixed(state: Tensor) -> Tensor:
    """SplitMix64's finaliser: signed integers wrap around as unsigned ones do, and `_shifted` shifts in zeros."""
    state = state + _signed(0x9E3779B97F4A7C15)
    state = (state ^ _shifted(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shifted(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, bits: int) -> Tensor:
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64)
