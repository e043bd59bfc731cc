"""Check that a run can start on these ranks: its data, vocabulary, model and machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from diptych.config.problem import Problem
from diptych.config.schema import DataConfig, RunConfig
from diptych.config.stages import stages_of
from diptych.data.groups import read_groups
from diptych.data.mixture import open_mixture, refuse_unknown_fields
from diptych.data.proportions import shares
from diptych.data.shard_cache import ShardCache
from diptych.data.tokenizer import load_tokenizer
from diptych.errors import UserError
from diptych.loss import LOSSES, WORD_LOSSES
from diptych.model.dual_encoder import (
    TrainedModel,
    checkpoint_blocks,
    has_batch_statistics,
    trained_without_memory,
    without_memory,
)
from diptych.model.freezing import freeze
from diptych.model.image_tower import check_picture_size, has_position_embeddings
from diptych.remote_files import is_elsewhere
from diptych.run_dir import RunDir
from diptych.training.branch import check_initial_checkpoint
from diptych.training.compiled_blocks import image_blocks
from diptych.training.deepspeed_config import deepspeed_config, zero_stage
from diptych.training.evaluating import open_asked
from diptych.training.initial_weights import check_initial_weights
from diptych.training.parameter_groups import parameter_groups, refuse_idle_muon, refuse_idle_token_head
from diptych.wandb_run import refuse_unknown_mode
from diptych.world import World


def check_run(config: RunConfig, world: World) -> Iterator[Problem]:
    """Yield every reason why this run cannot start on these ranks: data, vocabulary, model, batch."""

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
    if config.optimizer.name == "muon" and not RunDir(Path(config.run_dir)).has_checkpoints():
        attempts["optimizer.name"] = lambda: refuse_idle_muon(model())
    if config.loss.has_token_head and config.model.freeze and not RunDir(Path(config.run_dir)).has_checkpoints():
        attempts["loss.token_head.weight"] = lambda: refuse_idle_token_head(model())
    reported: set[str] = set()
    for key, attempt in attempts.items():
        try:
            attempt()
        except (UserError, OSError) as error:
            said = _in_words(error)
            if said not in reported:  # a model that cannot be built fails several attempts
                reported.add(said)
                yield _problem(key, said)
    if config.loss.name not in (names := (*LOSSES, *WORD_LOSSES)):
        yield "loss.name", f"loss.name is {config.loss.name!r}; it must be one of {', '.join(names)}"


def _in_words(error: UserError | OSError) -> str:
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    way_out = "; make it readable" if isinstance(error, PermissionError) else ""
    return f"{os.fsdecode(error.filename)}: {error.strerror}{way_out}"


def _problem(key: str, said: str) -> Problem:
    """The message, with the key that it begins with if that is this key or one inside it, else with this key."""
    subject = said.partition(" ")[0].rstrip(":")
    if subject == key or subject.startswith(f"{key}."):
        return subject, said
    return key, said if key in said else f"{key}: {said}"


def check_stages(config: RunConfig, world: World) -> None:
    """Raise UserError if the image tower has no patch dropout, or cannot take pictures of a stage's size."""
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
    pairs = config.machine.pairs_per_forward
    if pairs is not None and has_batch_statistics(model().state_dict()):
        raise UserError(
            f"machine.pairs_per_forward {pairs}: {config.model.image.name} has batch normalisation, whose statistics "
            f"would be computed over {pairs} pairs at a time; leave the key out, or use an image tower without it"
        )


def refuse_blocks_that_cannot_be_checkpointed(config: RunConfig, model: Callable[[], TrainedModel]) -> None:
    if config.machine.checkpoint_blocks:
        checkpoint_blocks(model())


def refuse_blocks_that_cannot_be_compiled(config: RunConfig, world: World, model: Callable[[], TrainedModel]) -> None:
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
    mixture = open_mixture(config.data, index_missing=world.size == 1)
    if not mixture.index.total_samples:
        raise UserError("the shards contain no samples; name shards that do")
    if mixture.weighted:
        shares([weight for _, weight in mixture.weighted], config.training.global_batch_size)
    refuse_unknown_fields(mixture)


def _check_groups(config: RunConfig, world: World) -> None:
    if config.data.groups.file is not None:
        read_groups(config.data.groups.file, open_mixture(config.data, index_missing=world.size == 1).index)


def check_cache(config: DataConfig) -> None:
    """Raise UserError if shards are elsewhere, and this machine has no folder to keep them in."""
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
    return RunDir(Path(config.run_dir)).config_file.exists()
