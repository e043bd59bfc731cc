"""Measure losses, whole steps and the largest batch, and compare them with open_clip's in the same process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import open_clip
import torch
from benchmarks.gpu.section import Section
from benchmarks.gpu.setting import (
    VOCABULARY,
    Scale,
    make_batch,
    our_engine,
    peak_gib,
    peer_model,
    recipe,
    seconds_a_step,
    start_memory,
    synchronize,
)
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from diptych.config.schema import RunConfig
from diptych.device import set_arithmetic
from diptych.loss import LOSSES
from diptych.machine import peak_teraflops
from diptych.model.flops import TrainingFlops
from diptych.training.engine import Engine
from diptych.training.parameter_groups import parameter_groups
from diptych.world import World

DIM = 512
ROUNDS = 5
STEP = 32
"""The precision of the search for the largest batch, in pairs."""


def compare_loss(kind: str, pairs: int, place: World) -> dict[str, Any]:
    """Measure forward and backward of our loss and the peer's on one rank: milliseconds, and MiB of extra memory."""
    set_arithmetic(place.device, "fp32", deterministic=False)
    theirs: Callable[..., Tensor] = SigLipLoss() if kind == "sigmoid" else ClipLoss()

    def ours(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return LOSSES[kind](image, text, scale, bias if kind == "sigmoid" else None, None).loss

    def peer(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return theirs(image, text, scale.exp(), *([bias] if kind == "sigmoid" else []))

    result: dict[str, Any] = {}
    for name, loss in (("ours", ours), ("peer", peer)):
        try:
            milliseconds, mebibytes, value = _loss_costs(loss, pairs, place)
        except torch.OutOfMemoryError:
            result[name] = "out of memory"
            continue
        result |= {f"{name}_ms": milliseconds, f"{name}_mib": mebibytes, f"{name}_value": value}
    return result


def _loss_costs(loss: Callable[..., Tensor], pairs: int, place: World) -> tuple[float, float | None, float]:
    generator = torch.Generator(device=place.device).manual_seed(0)
    image, text = (
        torch.nn.functional.normalize(
            torch.randn(pairs, DIM, device=place.device, generator=generator)
        ).requires_grad_()
        for _ in range(2)
    )
    scale, bias = (torch.tensor([start], device=place.device, requires_grad=True) for start in (2.66, -10.0))

    def once() -> float:
        for each in (image, text, scale, bias):
            each.grad = None
        synchronize(place)
        began = time.perf_counter()
        loss(image, text, scale, bias).backward()
        synchronize(place)
        return time.perf_counter() - began

    once()
    seconds = statistics.median(once() for _ in range(ROUNDS))
    start_memory(place)
    before = peak_gib(place)
    once()
    peak = peak_gib(place)
    beyond = None if peak is None or before is None else round((peak - before) * 1024, 1)
    return round(seconds * 1000, 2), beyond, loss(image, text, scale, bias).item()


def our_speed(name: str, scale: Scale, place: World, *, compiled: bool = False) -> dict[str, Any]:
    start_memory(place)
    config = recipe(name, scale, scale.pairs[name], **({"compile_blocks": True} if compiled else {}))
    batch = make_batch(config, place)
    began = time.perf_counter()
    engine = our_engine(config, place)
    loss = engine.step(batch, 0).read().loss
    first = time.perf_counter() - began
    seconds = seconds_a_step(lambda number: engine.step(batch, number * len(batch)), scale.timed_steps, place)
    return {
        **_speed(config, seconds, float(batch.lengths.float().mean()), place),
        "until_first_step_s": round(first, 1),
        "loss": loss,
    }


def peer_speed(name: str, scale: Scale, place: World, *, compiled: bool = False) -> dict[str, Any]:
    """Measure open_clip's model and loss as its training loop calls them, with the same optimizer."""
    start_memory(place)
    set_arithmetic(place.device, "fp32", deterministic=False)
    config = recipe(name, scale, scale.pairs[name])
    began = time.perf_counter()
    model, loss_of = peer_model(config, place.device), open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.optimizer), lr=1e-6, betas=(0.9, 0.98), eps=1e-6, fused=True
    )
    batch = make_batch(config, place)
    mean, std = (
        torch.tensor(of, device=place.device).view(3, 1, 1) for of in (config.model.image.mean, config.model.image.std)
    )
    images = batch.images.to(place.device).float().div_(255).sub_(mean).div_(std)
    tokens = batch.tokens.to(place.device).long()
    forward: Callable[..., Any] = torch.compile(model, backend=scale.peer_backend) if compiled else model

    def step(number: int) -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(place.device.type, dtype=torch.bfloat16):
            loss = loss_of(*forward(images, tokens))
        loss.backward()
        optimizer.step()
        return loss

    loss = step(0).item()
    first = time.perf_counter() - began
    seconds = seconds_a_step(step, scale.timed_steps, place)
    return {
        **_speed(config, seconds, config.model.text.context_length, place),
        "until_first_step_s": round(first, 1),
        "loss": loss,
    }


def _speed(config: RunConfig, seconds: float, tokens: float, place: World) -> dict[str, Any]:
    """Speed and memory of a step; FLOPs are counted for captions of `tokens` tokens."""
    pairs = config.training.global_batch_size
    teraflops = TrainingFlops(config.model, VOCABULARY).of_pair(tokens) * pairs / seconds / 1e12
    peak = peak_teraflops(torch.cuda.get_device_name(place.device)) if place.device.type == "cuda" else None
    return {
        "samples_per_second": round(pairs / seconds, 1),
        "ms_a_step": round(seconds * 1000, 2),
        "teraflops": round(teraflops, 3),
        "mfu": round(teraflops / peak, 3) if peak else None,
        "peak_gib": peak_gib(place),
    }


def largest_batch(section: Section, **machine: Any) -> dict[str, Any]:
    """Find the largest batch of ViT-L/14 on this GPU: double it until it does not fit, then bisect."""
    scale, place = section.scale, section.place
    start_memory(place)
    config = recipe("vit_l_14", scale, scale.largest, **machine)
    engine = our_engine(config, place)
    fits: dict[int, float | None] = {}
    too_large = None
    pairs = scale.largest
    while pairs <= scale.most and section.seconds_left() > 10:
        is_fitting, peak = _try_step(engine, recipe("vit_l_14", scale, pairs, **machine), place)
        if is_fitting:
            fits[pairs] = peak
        else:  # an engine whose step failed halfway cannot be used again
            too_large = pairs
            del engine
            start_memory(place)
            engine = our_engine(config, place)
        largest = max(fits, default=0)
        pairs = 2 * largest if too_large is None else (largest + too_large) // 2 // STEP * STEP
        if pairs <= largest:
            break
    largest = max(fits, default=0)
    return {"pairs": largest, "peak_gib": fits.get(largest), "does_not_fit": too_large}


def _try_step(engine: Engine, config: RunConfig, place: World) -> tuple[bool, float | None]:
    """Whether the step fits into memory, and its peak."""
    batch = make_batch(config, place)
    start_memory(place)
    try:
        engine.step(batch, 0).read()
    except torch.OutOfMemoryError:
        return False, None
    return True, peak_gib(place)


def step_in_parts(scale: Scale, place: World) -> dict[str, Any]:
    """Measure an exact step of ViT-L/14 over many more pairs, in parts and with checkpointed blocks."""
    start_memory(place)
    pairs, at_once = scale.in_parts
    config = recipe("vit_l_14", scale, pairs, pairs_per_forward=at_once, checkpoint_blocks=True)
    engine, batch = our_engine(config, place), make_batch(config, place)
    began = time.perf_counter()
    engine.step(batch, 0).read()
    return {"pairs": pairs, "seconds": round(time.perf_counter() - began, 2), "peak_gib": peak_gib(place)}
