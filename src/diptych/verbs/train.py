"""Train a dual encoder, or resume a run: in one process, under torchrun or under the deepspeed launcher."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.command_line import leave_status
from diptych.config.keys import describe_keys, meant_by
from diptych.config.load import ConfigError, LoadedConfig, files_and_overrides, load_config
from diptych.config.problem import Problem
from diptych.config.rules import doubtful
from diptych.config.schema import DataConfig, RunConfig
from diptych.config.stages import config_of_stage, stages_of
from diptych.config.values import config_to_dict, flatten
from diptych.errors import UserError
from diptych.run_dir import RunDir
from diptych.training.signals import launchers
from diptych.wandb_run import refuse_unknown_mode

if TYPE_CHECKING:
    from diptych.model.dual_encoder import TrainedModel
    from diptych.training.parameter_groups import ParameterCounts
    from diptych.world import World


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        nargs="+",
        metavar="CONFIG|key=value",
        help="YAML files, merged left to right, and overrides",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and what would be run")
    parser.add_argument(
        "--keys", action=_PrintKeys, help="print all keys with default, type and meaning: a YAML file to start from"
    )


def explain_option(option: str) -> str | None:
    """The way to write a setting that was given as an option; None if the option resembles no setting."""
    key = meant_by(option.lstrip("-"))
    return key and f"settings are written without dashes: {key}=VALUE"


class _PrintKeys(argparse.Action):
    """Print all keys and exit, as --help does, so that no config has to be named."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(describe_keys())
        parser.exit()


STOPPED = 75
"""The exit status of a run that was stopped and can go on: sysexits.h's EX_TEMPFAIL."""


def run(arguments: argparse.Namespace) -> int:
    """Train, and return the exit status: 0 at the end of the run, STOPPED if it was stopped before.

    Under torchrun it is 0 for both, since torchrun takes any other status for a failure and may restart the ranks.
    """
    launchers()  # before the imports: if the launcher is killed while they run, the run stops at its first step
    from diptych.agreement import decide_on_first_rank
    from diptych.process_group import process_group
    from diptych.world import read_world

    world = read_world()
    # DeepSpeed chooses its accelerator when it is imported, and prints a warning if it has to guess.
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    files, overrides = files_and_overrides(arguments.config)

    def load_checked() -> LoadedConfig:
        checks = (lambda config: check_run(config, world),)
        loaded = load_config(files, overrides, checks, defaults=_defaults_from_weights(files, overrides))
        return settle_precision(loaded, world)

    if arguments.dry_run:
        if world.is_first:
            print(describe(load_checked(), world))
        return 0
    try:
        loaded = load_config(files, overrides)
    except ConfigError:
        if world.is_first:
            load_checked()  # raises these mistakes together with all others
        raise
    from diptych.data.loader_processes import LoaderProcesses, explain_killed_loaders
    from diptych.training.faults import explain_faults
    from diptych.training.loop import train
    from diptych.training.watch import Watch

    machine = loaded.config.machine
    workers = world.loader_workers(machine.loader_workers)
    with (
        # First, so that no process is forked from one with the threads of CUDA, NCCL or gloo.
        LoaderProcesses(workers) as processes,
        explain_killed_loaders(workers),  # which may happen while the ranks meet
        process_group(world, machine.process_group_timeout_seconds) as world,
        explain_faults(loaded.config, world),
        Watch(RunDir(Path(loaded.config.run_dir)), world, machine, processes) as watch,
    ):
        # Rank 0 goes first and alone, since it looks at all shards.
        is_finished = train(decide_on_first_rank(world, load_checked), world, processes, watch)
    return _end(0 if is_finished else STOPPED)


def _end(status: int) -> int:
    """The exit status of this rank, so that the command which started the ranks can end with `status`."""
    leave_status(status)
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else status


def settle_precision(loaded: LoadedConfig, world: World) -> LoadedConfig:
    """Replace training.precision `auto` by what the run, or its trunk, has; or else by what suits the device."""
    from diptych.device import precision_on
    from diptych.training.branch import config_of_checkpoint, place_of

    config, run = loaded.config, RunDir(Path(loaded.config.run_dir))
    if config.training.precision != "auto":
        return loaded
    if run.has_checkpoints():
        settled, reason = run.read_config().training.precision, f"auto: {run.path} was started with it"
    elif config.initial_checkpoint is not None:
        settled = config_of_checkpoint(place_of(config.initial_checkpoint)).training.precision
        reason = f"auto: {config.initial_checkpoint} has it"
    else:
        settled, reason = precision_on(world.device, "auto"), f"auto: on {world.device.type}"
    config = replace(config, training=replace(config.training, precision=settled))
    return LoadedConfig(config, {**loaded.sources, "training.precision": reason})


def _defaults_from_weights(files: Sequence[Path], overrides: Sequence[str]) -> dict[str, Any]:
    """The model and vocabulary that the initial weights imply; empty if a mistake prevents reading them."""
    from diptych.training.initial_weights import defaults_from_initial_weights

    try:
        return defaults_from_initial_weights(load_config(files, overrides))
    except (UserError, OSError):
        return {}  # the check of the whole configuration reports the mistake


def check_run(config: RunConfig, world: World) -> Iterator[Problem]:
    """Yield every reason why this run cannot start on these ranks: data, vocabulary, model, batch."""
    from diptych.data.tokenizer import load_tokenizer
    from diptych.loss import LOSSES, WORD_LOSSES
    from diptych.model.dual_encoder import trained_without_memory
    from diptych.model.freezing import freeze
    from diptych.model.image_tower import check_picture_size
    from diptych.training.branch import check_initial_checkpoint
    from diptych.training.deepspeed_config import deepspeed_config
    from diptych.training.evaluating import open_asked
    from diptych.training.initial_weights import check_initial_weights
    from diptych.training.parameter_groups import parameter_groups, refuse_idle_muon

    @cache
    def model() -> TrainedModel:
        return trained_without_memory(config.model, 1024, config.loss)

    attempts: dict[str, Callable[[], object]] = {
        "run_dir": RunDir(Path(config.run_dir)).check_writable,
        "data.train": lambda: _refuse_empty(config, world),
        "data.cache.folder": lambda: check_cache(config.data),
        "data.groups.file": lambda: _check_groups(config, world),
        "tokenizer.vocabulary": lambda: load_tokenizer(config.tokenizer.vocabulary),
        "model": lambda: check_picture_size(config.model.image, model().image),
        "training.stages": lambda: check_stages(config, world),
        "model.image.name": lambda: refuse_pretrained_tag(config),
        "model.initial_weights": lambda: check_initial_weights(config),
        "initial_checkpoint": lambda: check_initial_checkpoint(config),
        "training.global_batch_size": lambda: world.rows(config.training.global_batch_size),
        "machine.pairs_per_forward": lambda: refuse_parts_with_batch_statistics(config, model),
        "machine.checkpoint_blocks": lambda: refuse_blocks_that_cannot_be_checkpointed(config, model),
        "machine.compile_blocks": lambda: refuse_blocks_that_cannot_be_compiled(config, world, model),
        "machine.deepspeed": lambda: deepspeed_config(config, world.size),
        "evaluation": lambda: open_asked(config),
        "tracking.wandb": lambda: refuse_unknown_mode(config.tracking.wandb),
        "tracking.tensorboard": lambda: refuse_missing_tensorboard(config),
    }
    if config.model.freeze:
        attempts["model.freeze"] = lambda: freeze(model(), config.model.freeze)
    if config.optimizer.groups or config.optimizer.layer_decay is not None:
        attempts["optimizer.groups"] = lambda: parameter_groups(model(), config.optimizer)
    if config.optimizer.name == "muon" and not _is_started(config):
        attempts["optimizer.name"] = lambda: refuse_idle_muon(model())
    reported: set[str] = set()
    for key, attempt in attempts.items():
        try:
            attempt()
        except (UserError, OSError) as error:
            said = str(error)
            if isinstance(error, OSError) and error.filename is not None:
                way_out = "; make it readable" if isinstance(error, PermissionError) else ""
                said = f"{os.fsdecode(error.filename)}: {error.strerror}{way_out}"
            if said in reported:  # a model that cannot be built fails several attempts
                continue
            reported.add(said)
            subject = said.partition(" ")[0].rstrip(":")
            within = subject == key or subject.startswith(f"{key}.")
            yield (subject, said) if within else (key, said if key in said else f"{key}: {said}")
    if config.loss.name not in (names := (*LOSSES, *WORD_LOSSES)):
        yield "loss.name", f"loss.name is {config.loss.name!r}; it must be one of {', '.join(names)}"


def check_stages(config: RunConfig, world: World) -> None:
    """Raise UserError if the image tower has no patch dropout, or cannot take pictures of a stage's size."""
    from diptych.model.dual_encoder import without_memory
    from diptych.model.image_tower import check_picture_size, has_position_embeddings

    if config.training.stages is None:
        return
    stages = stages_of(config)
    tower = without_memory(config.model, 1024, stages=stages).image
    for number, stage in enumerate(stages):
        check_picture_size(stage.model.image, tower, f"training.stages[{number}].image_size")
        is_resampled = stage.model.image.image_size != tower.image_size and has_position_embeddings(tower)
        if is_resampled and config.machine.deterministic and world.device.type == "cuda":
            raise UserError(
                f"training.stages[{number}].image_size {stage.model.image.image_size}: torch has no deterministic "
                f"kernel for GPUs that resamples position embeddings in training; leave out machine.deterministic, or "
                f"image_size"
            )


def refuse_parts_with_batch_statistics(config: RunConfig, model: Callable[[], TrainedModel]) -> None:
    from diptych.model.dual_encoder import has_batch_statistics

    pairs = config.machine.pairs_per_forward
    if pairs is not None and has_batch_statistics(model().state_dict()):
        raise UserError(
            f"machine.pairs_per_forward {pairs}: {config.model.image.name} has batch normalisation, whose statistics "
            f"would be computed over {pairs} pairs at a time; leave the key out, or use an image tower without it"
        )


def refuse_blocks_that_cannot_be_checkpointed(config: RunConfig, model: Callable[[], TrainedModel]) -> None:
    from diptych.model.dual_encoder import checkpoint_blocks

    if config.machine.checkpoint_blocks:
        checkpoint_blocks(model())


def refuse_blocks_that_cannot_be_compiled(config: RunConfig, world: World, model: Callable[[], TrainedModel]) -> None:
    from diptych.training.compiled_blocks import image_blocks
    from diptych.training.deepspeed_config import zero_stage

    if not config.machine.compile_blocks:
        return
    if zero_stage(config, world.size) == 3:
        raise UserError(
            "machine.compile_blocks: at ZeRO stage 3 a block's weights are gathered and freed while it runs, which "
            "cannot be compiled; set machine.zero_stage to 2 or less, or leave the key out"
        )
    image_blocks(model())


def refuse_missing_tensorboard(config: RunConfig) -> None:
    """Raise UserError if the run asks for TensorBoard and it is not installed."""
    if config.tracking.tensorboard and find_spec("tensorboard") is None:
        raise UserError(
            "tracking.tensorboard is true, and TensorBoard is not installed; pip install 'diptych[tensorboard]', "
            "or set it to false"
        )


def _refuse_empty(config: RunConfig, world: World) -> None:
    from diptych.data.mixture import open_mixture, refuse_unknown_fields
    from diptych.data.proportions import shares

    mixture = open_mixture(config.data, index_missing=world.size == 1)
    if not mixture.index.total_samples:
        raise UserError("the shards contain no samples; name shards that do")
    if mixture.weighted:
        shares([weight for _, weight in mixture.weighted], config.training.global_batch_size)
    refuse_unknown_fields(mixture)


def _check_groups(config: RunConfig, world: World) -> None:
    from diptych.data.groups import read_groups
    from diptych.data.mixture import open_mixture

    if config.data.groups.file is not None:
        read_groups(config.data.groups.file, open_mixture(config.data, index_missing=world.size == 1).index)


def check_cache(config: DataConfig) -> None:
    """Raise UserError if shards are elsewhere, and this machine has no folder to keep them in."""
    from diptych.data.shard_cache import ShardCache
    from diptych.remote_files import is_elsewhere

    each = [[source.shards] if isinstance(source.shards, str) else source.shards for source in config.sources]
    if any(is_elsewhere(shards) for shards in chain.from_iterable(each)):
        ShardCache.of(config.cache).check_writable()


def refuse_pretrained_tag(config: RunConfig) -> None:
    """Refuse a tag such as `.openai`, which names pretrained weights, in a run that starts from random weights.

    Nothing is downloaded, so the name would promise too much. With initial weights the tag does no harm.

    Raises:
        ValueError: the tower would start at random although its name has a tag.
    """
    name, _, tag = config.model.image.name.partition(".")
    named = config.model.initial_weights or config.model.image.initial_weights
    if tag and named is None and not _is_started(config):
        raise UserError(
            f"model.image.name {config.model.image.name}: no pretrained weights are downloaded, so .{tag} would start "
            f"at random as any tower does; write {name}, or name a file or folder with its weights in "
            f"model.image.initial_weights"
        )


def _is_started(config: RunConfig) -> bool:
    return (Path(config.run_dir) / "config.yaml").exists()


def describe(loaded: LoadedConfig, world: World) -> str:
    """The text of --dry-run: each resolved value with its origin, then the size, length and memory of the run."""
    from diptych.data.mixture import open_mixture
    from diptych.data.tokenizer import load_tokenizer
    from diptych.model.dual_encoder import rank_dependence, shapes_of, trained_without_memory
    from diptych.model.freezing import freeze
    from diptych.model.interop import why_not_in_open_clips_layout
    from diptych.plan.stages import describe_operations
    from diptych.terminal import counted
    from diptych.training.branch import begins_in_its_cooldown
    from diptych.training.deepspeed_config import zero_stage
    from diptych.training.parameter_groups import count_parameters, describe_muon
    from diptych.world import leftover_variables

    config = loaded.config
    values = [(key, _without_nulls(value)) for key, value in flatten(config_to_dict(config))]
    width = max(len(key) for key, _ in values)
    value_width = max(28, *(len(shown) for _, value in values if len(shown := str(value)) <= 44))  # not a long path
    lines = [f"{key:<{width}}  {value!s:<{value_width}}  {loaded.source_of(key)}" for key, value in values]

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
    lines += [
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
    ]
    memory, too_large = describe_memory(config, world, parameters, vocab_size)
    lines.append(f"memory    {memory}")
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


def _describe_parameters(parameters: ParameterCounts) -> str:
    frozen = parameters.whole - parameters.trained
    return f"{parameters.whole / 1e6:.2f} M parameters" + (f", {frozen / 1e6:.2f} M of them frozen" if frozen else "")


def _without_nulls(value: Any) -> Any:
    """The value, without what is not set in the entries of a list such as stages or sources."""
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        return value
    return [{key: each for key, each in entry.items() if each is not None} for entry in value]


def describe_memory(
    config: RunConfig, world: World, parameters: ParameterCounts, vocab_size: int
) -> tuple[str, str | None]:
    """The memory that a rank needs, in the stage that needs most, and what to change if its GPU has less; None for the
    second if it fits."""
    import torch

    from diptych.device import precision_on
    from diptych.model.activations import activations
    from diptych.model.image_tower import BUILD_ERRORS
    from diptych.training.memory import GIB, memory_of, what_would_fit

    limit, is_here = config.machine.gpu_memory_gib, world.device.type == "cuda"
    if limit is None and is_here:
        limit = torch.cuda.get_device_properties(world.device).total_memory / GIB
    precision = config.training.precision
    if precision == "auto":
        precision = precision_on(world.device, "auto") if limit is None or is_here else "bf16"
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
