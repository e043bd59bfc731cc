"""Describe a run before it starts: its settings, size, length and memory, as `diptych train --dry-run` prints them."""

from __future__ import annotations

from typing import Any

import torch

from diptych.config.load import LoadedConfig
from diptych.config.rules import doubtful
from diptych.config.schema import RunConfig
from diptych.config.stages import config_of_stage, stages_of
from diptych.config.values import config_to_dict, flatten
from diptych.data.mixture import open_mixture
from diptych.data.tokenizer import load_tokenizer
from diptych.model.activations import activations
from diptych.model.dual_encoder import rank_dependence, shapes_of, trained_without_memory
from diptych.model.freezing import freeze
from diptych.model.open_clip_layout import why_not_in_open_clips_layout
from diptych.model.trunk import BUILD_ERRORS
from diptych.plan.stages import describe_operations
from diptych.terminal import counted
from diptych.training.branch import begins_in_its_cooldown
from diptych.training.deepspeed_config import zero_stage
from diptych.training.memory import GIB, memory_of, what_would_fit
from diptych.training.parameter_groups import ParameterCounts, count_parameters, describe_muon
from diptych.world import World, leftover_variables


def describe(loaded: LoadedConfig, world: World) -> str:
    """The text of --dry-run: each resolved value with its origin, then the size, length and memory of the run.

    loaded: with a settled training.precision.
    """
    config = loaded.config
    mixture = open_mixture(config.data)
    index = mixture.index
    vocab_size = load_tokenizer(config.tokenizer.vocabulary).vocab_size
    model = trained_without_memory(config.model, vocab_size, config.loss)
    shapes = shapes_of(model)
    freeze(model, config.model.freeze)
    parameters = count_parameters(model, config.optimizer)
    size, total, machine = config.training.global_batch_size, config.training.total_samples, config.machine
    shares = sorted(set(world.rows_of_ranks(size)))
    each = counted(shares[0], "sample") if shares[1:] == [] else f"{shares[0]:,} or {counted(shares[1], 'sample')}"
    data = f"{counted(index.total_samples, 'sample')} in {counted(len(index.shards), 'shard')}"
    warmup, cooldown = config.optimizer.warmup_samples // size, config.optimizer.cooldown_samples // size
    memory, too_large = _describe_memory(config, world, parameters, vocab_size)
    lines = [
        *_settings(loaded),
        "",
        f"model     {_describe_parameters(parameters)}, {config.training.precision}",
        *([f"optimizer {describe_muon(model)}"] if config.optimizer.name == "muon" else ()),
        f"data      {data}, {mixture.describe_epochs(total)}",
        *(f"source    {line}" for line in mixture.describe(total)),
        f"steps     {total // size:,} of {counted(size, 'sample')}; warm-up {counted(warmup, 'step')}"
        + (f", cool-down {counted(cooldown, 'step')}" if cooldown else ""),
        *(f"stages    {line}" for line in (describe_operations(config, vocab_size) if config.training.stages else ())),
        f"ranks     {world.size} on {world.device.type}, {each} each, "
        f"ZeRO stage {zero_stage(config, world.size)}, "
        f"{counted(world.loader_workers(machine.loader_workers), 'loader worker')} each",
        f"memory    {memory}",
    ]
    notes = [*doubtful(config, index.total_samples), rank_dependence(shapes, world.size)]
    notes.append(begins_in_its_cooldown(config))
    notes += mixture.doubtful(config.data, size, world.share_of_machine)
    notes += [too_large] if too_large else []
    notes += [leftover_variables()] if world.size > 1 else []
    if config.loss.name == "visual_ngrams":
        notes.append("the n-grams are counted at the start; each of them adds an output, which is not counted here")
    if not config.loss.predicts_words and (why := why_not_in_open_clips_layout(config.model)):
        notes.append(f"`diptych export --layout open_clip` will refuse this model: {why}")
    lines += [f"note      {note}" for note in notes if note]
    return "\n".join(lines)


def _settings(loaded: LoadedConfig) -> list[str]:
    """A line for each resolved value, with its origin."""
    values = [(key, _without_nulls(value)) for key, value in flatten(config_to_dict(loaded.config))]
    width = max(len(key) for key, _ in values)
    value_width = max(28, *(len(shown) for _, value in values if len(shown := str(value)) <= 44))  # not a long path
    return [f"{key:<{width}}  {value!s:<{value_width}}  {loaded.source_of(key)}" for key, value in values]


def _describe_parameters(parameters: ParameterCounts) -> str:
    frozen = parameters.whole - parameters.trained
    return f"{parameters.whole / 1e6:.2f} M parameters" + (f", {frozen / 1e6:.2f} M of them frozen" if frozen else "")


def _without_nulls(value: Any) -> Any:
    """The value, without what is not set in the entries of a list such as stages or sources."""
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        return value
    return [{key: each for key, each in entry.items() if each is not None} for entry in value]


def _describe_memory(
    config: RunConfig, world: World, parameters: ParameterCounts, vocab_size: int
) -> tuple[str, str | None]:
    """The memory that a rank needs, in the stage that needs most, and what to change if its GPU has less; None for the
    second if it fits."""
    limit, precision = config.machine.gpu_memory_gib, config.training.precision
    if limit is None and world.device.type == "cuda":
        limit = torch.cuda.get_device_properties(world.device).total_memory / GIB
    try:
        device = "cpu" if limit is None else "cuda"
        each = [
            (config_of_stage(config, stage), activations(stage.model, vocab_size, device, precision, config.loss))
            for stage in stages_of(config)
        ]
    except BUILD_ERRORS as error:
        return f"not known of this image tower ({(str(error) or type(error).__name__).splitlines()[0]})", None
    of_stages = [(memory_of(part, world, parameters, towers), part, towers) for part, towers in each]
    memory, part, towers = max(of_stages, key=lambda stage: stage[0].total)
    if limit is None:
        return str(memory), None
    return str(memory), what_would_fit(memory, limit, part, world, parameters, towers)
