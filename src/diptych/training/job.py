"""Prepare a run: open its data, build model and engine, and load the newest valid checkpoint."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from diptych.agreement import decide_on_first_rank
from diptych.checkpoint_folder import CheckpointError, newest_valid
from diptych.config.load import ConfigError
from diptych.config.rules import doubtful
from diptych.config.schema import RunConfig
from diptych.config.stages import Stage, stage_at, stages_of
from diptych.data.batch import Batch
from diptych.data.decoder import Decoder
from diptych.data.earlier_order import EarlierSampleOrder
from diptych.data.groups import GroupedOrder, fingerprint_with, read_groups
from diptych.data.loader import batches
from diptych.data.loader_processes import LoaderProcesses
from diptych.data.mixture import Mixture, open_mixture
from diptych.data.order import ORDER_VERSION, Order, SampleOrder
from diptych.data.tokenizer import Tokenizer, load_tokenizer
from diptych.data.unique_captions import UniqueCaptions, caption_hashes
from diptych.loss.words import TokenClassification
from diptych.model.dual_encoder import DualEncoder, TrainedModel, load_weights, rank_dependence
from diptych.model.flops import TrainingFlops
from diptych.model.word_predictor import WordPredictor
from diptych.run_dir import RunDir
from diptych.terminal import counted
from diptych.training.accumulate import random_layer
from diptych.training.branch import begins_in_its_cooldown, config_of_checkpoint, place_of
from diptych.training.caption_counts import caption_counts, initial_biases, word_loss
from diptych.training.checkpoint import Checkpoint, Progress, load_checkpoint
from diptych.training.engine import Engine
from diptych.training.initial_weights import start_from
from diptych.training.metrics import Metrics
from diptych.training.parameter_groups import describe_muon
from diptych.training.step_stats import StepStats
from diptych.world import World

logger = logging.getLogger(__name__)


@dataclass
class Job:
    config: RunConfig
    run: RunDir
    world: World
    mixture: Mixture
    order: Order
    tokenizer: Tokenizer
    engine: Engine
    progress: Progress
    """How far the run had come when this process started."""
    metrics: Metrics | None
    """None on all ranks but 0."""
    batches: Generator[Batch, None, None]
    """This rank's rows of the global batches from `progress` to the end of the run."""
    known_valid: set[Path] = field(default_factory=set)
    """Checkpoints that need not be hashed again."""
    _flops: dict[int, TrainingFlops] = field(default_factory=dict)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        return stages_of(self.config)

    def stage_from(self, samples_seen: int) -> Stage:
        """The stage of the batch that begins after so many samples."""
        return stage_at(self.stages, samples_seen // self.config.training.global_batch_size)

    def stage_of(self, stats: StepStats) -> Stage:
        return self.stage_from(stats.samples_seen - self.config.training.global_batch_size)

    def begins_stage(self, stats: StepStats) -> bool:
        """Whether a step is the first one of a stage that follows another."""
        before = stats.samples_seen - 2 * self.config.training.global_batch_size
        return before >= 0 and self.stage_of(stats) is not self.stage_from(before)

    def flops_of(self, stage: Stage) -> TrainingFlops:
        """The operations of a pair in this stage."""
        if stage.number not in self._flops:
            # An n-gram is an output too.
            words = self.engine.words
            num_outputs = self.tokenizer.vocab_size if words is None else words.num_outputs
            self._flops[stage.number] = TrainingFlops(stage.model, num_outputs, self.config.loss)
        return self._flops[stage.number]

    def flops_until(self, samples_seen: int) -> float:
        """The operations of the run up to a number of samples, with captions that fill the context."""
        size = self.config.training.global_batch_size
        batches = samples_seen // size
        return sum(
            max(0, min(stage.batches.stop, batches) - stage.batches.start)
            * size
            * self.flops_of(stage).of_pair(stage.model.text.context_length)
            for stage in self.stages
        )

    def record_samples(self) -> None:
        if self.metrics is not None:
            self.metrics.event("samples", samples_seen=self.progress.samples_seen, path=self.run.samples.name)

    def record_end(self, progress: Progress, *, stopped_by: str = "") -> None:
        if self.metrics is not None:
            how = {"reason": "stopped", "by": stopped_by} if stopped_by else {"reason": "finished"}
            self.run.record_end(**how, samples_seen=progress.samples_seen)
            self.metrics.event("end", samples_seen=progress.samples_seen, seconds=round(progress.seconds, 1))

    def close(self) -> None:
        self.batches.close()
        if self.metrics is not None:
            self.metrics.close()

    def __str__(self) -> str:
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.engine.model.parameters())
        config, seen = self.config.training, self.progress.samples_seen
        return (
            f"{self.run.path}: {parameters / 1e6:.1f} M parameters, {counted(self.order.total, 'sample')} in "
            f"{counted(len(self.mixture.index.shards), 'shard')}\n"
            f"  {self.mixture.describe_epochs(config.total_samples)}, batch {config.global_batch_size} over "
            f"{counted(self.world.size, 'rank')} on {self.world.device.type}"
            + (f", going on after {counted(seen, 'sample')}" if seen else "")
            + (f"\n  {describe_muon(self.engine.model)}" if self.config.optimizer.name == "muon" else "")
        )


def prepare(config: RunConfig, run: RunDir, world: World, processes: LoaderProcesses) -> Job:
    """Prepare everything that a run works with; every rank must call it. The processes begin to load.

    Only rank 0 reads checkpoints; it passes their contents to the others.

    Raises:
        ValueError: a shard, vocabulary or model is missing, or the shards are not those the run was started with.
    """
    tokenizer = load_tokenizer(config.tokenizer.vocabulary)
    # Only rank 0 lists the shards. It sends 7 MB for 100,000 of them, where hundreds of ranks would ask a shared disk
    # about each.
    mixture = decide_on_first_rank(world, lambda: open_mixture(config.data, index_missing=world.size == 1))
    data, groups = mixture.fingerprint, None
    if config.data.groups.file is not None:
        groups = read_groups(config.data.groups.file, mixture.index)
        data = fingerprint_with(groups, data)
    torch.manual_seed(config.training.seed)
    model, pair_loss = new_model(config, tokenizer, mixture, world)
    known_valid: set[Path] = set()
    taken_up: list[Checkpoint] = []

    def take_up() -> Progress:
        path, faults = newest_valid(run.checkpoints)
        if path is None and faults:
            raise CheckpointError("\n".join([*faults, _no_checkpoint_is_whole(run)]))
        for fault in faults:
            logger.warning("skipped a damaged checkpoint: %s", fault)
        is_branch = path is None and config.initial_checkpoint is not None
        if is_branch:
            path = place_of(config.initial_checkpoint or "")
        if path is None:
            start_from(model, config.model)
            return Progress(
                tracker_id=uuid.uuid4().hex[:8],
                data=data,
                vocabulary=tokenizer.fingerprint,
                order=ORDER_VERSION,
            )
        checkpoint = load_checkpoint(path)
        before, started = (config_of_checkpoint(path), path) if is_branch else (run.read_config(), run.path)
        _refuse_other_input(checkpoint.progress, config, data, tokenizer, started)
        _refuse_other_masks(config, before, started, model)
        load_weights(model, checkpoint.weights)
        taken_up.append(checkpoint)
        if is_branch:
            return replace(checkpoint.progress, tracker_id=uuid.uuid4().hex[:8])
        known_valid.add(path)
        return checkpoint.progress

    progress = decide_on_first_rank(world, take_up)
    order = order_of(config, mixture, progress.order, groups)
    if config.data.unique_captions_in_batch:
        # Rank 0 writes the file that all read.
        decide_on_first_rank(world, lambda: caption_hashes(mixture.index, run.path).size)
        order = with_unique_captions(order, config, mixture, run)
    if world.is_first:
        notes = [*doubtful(config, mixture.index.total_samples), rank_dependence(model.state_dict(), world.size)]
        notes += mixture.doubtful(config.data, config.training.global_batch_size, world.share_of_machine)
        notes.append(begins_in_its_cooldown(config))
        for note in filter(None, notes):
            logger.warning("%s", note)
    # Before the engine, so that the first batch is loaded in the seconds that the engine takes.
    loading = start_loading(config, world, mixture, order, tokenizer, progress, processes)
    engine = Engine(model, config, world, pair_loss)
    if progress.samples_seen:
        engine.restore_optimizer(taken_up[0].optimizer if taken_up else None)
        engine.restore_average(taken_up[0].averages if taken_up else None)
    metrics = None
    if world.is_first:
        run.record_start(config)
        metrics = Metrics(run.metrics, config, samples_seen=progress.samples_seen, tracker_id=progress.tracker_id)
        metrics.event("start", samples_seen=progress.samples_seen, ranks=world.size)
    return Job(config, run, world, mixture, order, tokenizer, engine, progress, metrics, loading, known_valid)


def new_model(
    config: RunConfig, tokenizer: Tokenizer, mixture: Mixture, world: World
) -> tuple[TrainedModel, nn.Module | None]:
    """The model with random weights, and what computes the loss of each pair from its logits of words, if it has some.

    What the captions must be counted for is counted on rank 0; every rank must call it.
    """
    loss, training, counts = config.loss, config.training, None
    if loss.predicts_words or loss.has_token_head:
        folder = Path(config.run_dir)
        counts = decide_on_first_rank(world, lambda: caption_counts(config, mixture, tokenizer, folder))
    if loss.predicts_words:
        assert counts is not None
        words = word_loss(loss, counts)
        predictor = WordPredictor(config.model, words.num_outputs, stages=stages_of(config))
        predictor.words.bias.data.copy_(initial_biases(loss, counts))
        return predictor, words
    encoder = DualEncoder(
        config.model,
        tokenizer.vocab_size,
        training.initial_logit_scale,
        training.initial_logit_bias,
        token_head=loss.has_token_head,
        stages=stages_of(config),
    )
    return encoder, TokenClassification(counts.num_captions, counts.with_token) if counts is not None else None


def start_loading(
    config: RunConfig,
    world: World,
    mixture: Mixture,
    order: Order,
    tokenizer: Tokenizer,
    progress: Progress,
    processes: LoaderProcesses,
) -> Generator[Batch, None, None]:
    """Start to load this rank's rows of the global batches from `progress` to the end of the run."""
    size = config.training.global_batch_size
    return batches(
        mixture.index,
        order,
        Decoder(config.data, config.model.image, config.training.seed, mixture, stages_of(config)),
        tokenizer,
        context_length=config.model.text.context_length,
        rows=world.rows(size),
        first=progress.samples_seen // size,
        stop=config.training.total_samples // size,
        processes=processes,
        pin_memory=world.device.type == "cuda",
    )


def order_of(
    config: RunConfig, mixture: Mixture, version: int = ORDER_VERSION, groups: np.ndarray | None = None
) -> Order:
    """The order of a run's samples; `version` is that of the run's checkpoints.

    groups: the group of each sample, if the config names a file of them.

    Raises:
        ConfigError: a later version of diptych started the run.
    """
    size, window, seed = config.training.global_batch_size, config.data.shuffle_window, config.training.seed
    counts = mixture.index.counts
    if not 1 <= version <= ORDER_VERSION:
        raise ConfigError(
            f"{config.run_dir} was started with version {version} of the order of samples; this diptych knows 1 to "
            f"{ORDER_VERSION}; go on with the version of diptych that started it, or set run_dir to a new directory"
        )
    if groups is not None:
        how = config.data.groups
        return GroupedOrder(groups, seed=seed, global_batch_size=size, power=how.power, neighbours=how.neighbours)
    if version == 1:
        return EarlierSampleOrder(counts, seed=seed, global_batch_size=size, shuffle_window=window)
    return SampleOrder(
        counts,
        seed=seed,
        global_batch_size=size,
        shuffle_window=window,
        streams=config.data.streams,
        sources=mixture.weighted,
        fills_from_shard=version > 2,
    )


def with_unique_captions(order: Order, config: RunConfig, mixture: Mixture, run: RunDir) -> UniqueCaptions:
    """The order with each caption once in a batch."""
    captions = caption_hashes(mixture.index, run.path)
    return UniqueCaptions(order, config.training.global_batch_size, captions, mixture.numbers_of)


def _refuse_other_masks(config: RunConfig, was: RunConfig, started: Path, model: TrainedModel) -> None:
    """Refuse a change of machine.pairs_per_forward if layers draw random masks, since they would draw other ones.

    Raises:
        ConfigError: the value differs, and the model has such a layer.
    """
    now, before = config.machine.pairs_per_forward, was.machine.pairs_per_forward
    if now != before and (layer := random_layer(model)):
        raise ConfigError(
            f"machine.pairs_per_forward is {now}, {started} was started with {before}: the layer {layer} draws its "
            f"random masks for that many pairs at a time, so another value gives another run; set it back, or set "
            f"run_dir to a new directory"
        )


def _no_checkpoint_is_whole(run: RunDir) -> str:
    return (
        f"no checkpoint of {run.path} is valid, so the run cannot go on; it does not start over by itself, since that "
        f"would replace them; to start over, move or delete {run.checkpoints}, or set run_dir to a new directory"
    )


def _refuse_other_input(progress: Progress, config: RunConfig, data: str, tokenizer: Tokenizer, started: Path) -> None:
    """Refuse shards, groups or a vocabulary whose content has changed since the start; their paths may change.

    Raises:
        ConfigError: one line for each of the two that has changed.
    """
    way_out = "put it back, or set run_dir to a new directory"
    differing = []
    if progress.data != data:
        keys = f"data.train {config.data.train}"
        if config.data.groups.file is not None:
            keys += f" with data.groups.file {config.data.groups.file}"
        differing.append(f"{keys}: is not the data that {started} was started with; {way_out}")
    if progress.vocabulary != tokenizer.fingerprint:
        differing.append(
            f"tokenizer.vocabulary {config.tokenizer.vocabulary}: is not the vocabulary that {started} was started "
            f"with; {way_out}"
        )
    if differing:
        raise ConfigError("\n".join(differing))
