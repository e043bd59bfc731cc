"""Measure the model while it trains, on all ranks, without changing anything of the training."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from diptych.agreement import decide_on_first_rank
from diptych.checkpoint_folder import TOKEN_HEAD
from diptych.config.schema import RunConfig
from diptych.device import plain_arithmetic
from diptych.encoder import Encoder, WordEncoder
from diptych.errors import UserError
from diptych.evaluation import EVALUATORS
from diptych.evaluation.data_sets import DataSet, data_set, open_data, prompts_for
from diptych.evaluation.evaluator import AVERAGED, Number, number_name, numbers
from diptych.evaluation.features import Features
from diptych.evaluation.pictures import Pictures
from diptych.model.dual_encoder import load_weights, model_of
from diptych.model.word_predictor import WordPredictor
from diptych.training.job import Job
from diptych.training.signals import StopRequest
from diptych.world import World

logger = logging.getLogger(__name__)

Made = TypeVar("Made")
Asked = dict[str, dict[str, DataSet]]
"""Evaluator → name → data set."""


class FailedOnARankError(Exception):
    """Work that ranks do together failed on one of them; every rank raises it, with the reason."""


@dataclass(frozen=True)
class Together:
    """The ranks of a run, as an evaluator shares its work among them."""

    world: World
    is_stopped: Callable[[], bool]
    """Whether this rank was asked to stop; the evaluation then ends, since a signal leaves little time."""

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def size(self) -> int:
        return self.world.size

    def together(self, make: Callable[[], Made], /) -> list[Made]:
        """What `make` returns on each rank, on every rank.

        Calls may be nested, and ranks may fail at different places: whichever call a failed rank comes to next is
        answered by the calls that the others are in.

        Raises:
            FailedOnARankError: it raised on a rank, or a rank was asked to stop.
        """
        fault, value = "", None
        try:
            value = make()
            fault = "the run was asked to stop" if self.is_stopped() else ""
        except FailedOnARankError:
            raise
        except Exception as error:  # whatever fails costs a line, and the run goes on
            logger.info("an evaluation failed on this rank", exc_info=True)
            fault = str(error).partition("\n")[0] or type(error).__name__
        outcomes: list[Any] = [(fault, value)] * self.size
        if self.size > 1:
            dist.all_gather_object(outcomes, (fault, value), group=self.world.control)
        for rank, (why, _) in enumerate(outcomes):
            if why:
                raise FailedOnARankError(f"{why} (rank {rank})" if rank else why)
        return [value for _, value in outcomes]


class Evaluations:
    """What is measured during a run; every rank must construct it, and call `measure` together."""

    def __init__(self, job: Job, stop: StopRequest):
        self._job = job
        self._ranks = Together(job.world, lambda: stop.requested)
        opened: list[Asked] = []
        # First on rank 0, whose mistakes end all ranks with one line.
        decide_on_first_rank(job.world, lambda: opened.append(open_asked(job.config)))
        self._asked = opened[0] if opened else open_asked(job.config)

    def is_due(self, before: int, after: int) -> bool:
        """Whether an evaluation is due between two counts of samples seen."""
        config = self._job.config
        every = config.evaluation.every_samples or config.samples_between_checkpoints
        return bool(self._asked) and after // every > before // every

    def measure(self, samples_seen: int) -> dict[str, Any]:
        """Measure the model as it is now, and record the numbers on rank 0; return what a checkpoint says of them."""
        began = time.monotonic()
        found: dict[str, Number] = {}
        faults: dict[str, str] = {}
        with plain_arithmetic():
            for suffix in _suffixes(self._job.config):
                features: Features | None = None
                for evaluator, data_name, data in _each(self._asked):
                    name = data_name + suffix
                    try:
                        if features is None:
                            features = self._features(averaged=suffix == AVERAGED)
                        found |= self._ranks.together(partial(_numbers, evaluator, name, data, features))[0]
                    except FailedOnARankError as error:
                        faults[f"{evaluator} of {name}"] = str(error)
                        # A rank that failed right after an exchange does not have what the others have kept of it.
                        features = None
        values = {name: number.value for name, number in found.items()}
        if self._job.metrics is not None:
            for what, why in faults.items():
                logger.warning("%s was not measured after %d samples: %s", what, samples_seen, why)
            self._job.metrics.evaluation(
                samples_seen,
                values,
                intervals={name: number.interval for name, number in found.items() if number.interval},
                failed=faults,
                seconds=round(time.monotonic() - began, 3),
            )
        return {"values": values, **self._score(values)}

    def _features(self, *, averaged: bool) -> Features:
        """The features of the weights as they are now, or of their average.

        Raises:
            FailedOnARankError: the device of a rank has no room for another copy of the weights.
        """
        copies: list[dict[str, Tensor]] = []
        encoders: list[Encoder | WordEncoder] = []
        # The ranks copy the weights together, and only once all of them have room.
        self._ranks.together(lambda: copies.append(self._job.engine.room_for_copy()))
        self._job.engine.copy_weights(copies[0], averaged=averaged)
        self._ranks.together(lambda: encoders.append(_encoder(self._job, copies[0])))
        return Features(encoders[0], self._ranks)

    def _score(self, values: Mapping[str, float]) -> dict[str, Any]:
        """The number by which the best checkpoint is chosen, as a score of which more is better; empty if unknown."""
        best = self._job.config.evaluation.best or next(_headlines(self._asked, _suffixes(self._job.config)))
        if best not in values:
            return {}
        return {"best": best, "score": -values[best] if best.endswith("/loss") else values[best]}


def open_asked(run: RunConfig) -> Asked:
    """Open all data that the config of a run names.

    Raises:
        UserError: some cannot be used, or `best` names no number that is measured.
    """
    config = run.evaluation
    locations = {
        "zero_shot": config.zero_shot,
        "retrieval": config.retrieval,
        "validation": {"validation": config.validation} if config.validation is not None else {},
    }
    opened = {
        evaluator: {name: _open(evaluator, name, location) for name, location in each.items()}
        for evaluator, each in locations.items()
        if each
    }
    try:
        prompts = prompts_for(list(opened.get("zero_shot", {}).values()), config.classes)
    except UserError as error:
        raise UserError(str(error).replace("--classes YAML", "evaluation.classes=YAML")) from error
    asked = {
        evaluator: {name: data_set(pictures, prompts) for name, pictures in each.items()}
        for evaluator, each in opened.items()
    }
    if config.best is not None and config.best not in (known := list(_headlines(asked, _suffixes(run)))):
        raise UserError(
            f"evaluation.best is {config.best!r}; it must be one of {', '.join(known) or 'none, without data'}"
        )
    return asked


def _open(evaluator: str, name: str, location: str) -> Pictures:
    key = f"evaluation.{evaluator}" + ("" if evaluator == name else f".{name}")
    try:
        return open_data(location, EVALUATORS[evaluator].reads, fewest=EVALUATORS[evaluator].fewest_pictures)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _each(asked: Asked) -> Iterator[tuple[str, str, DataSet]]:
    for evaluator, each in asked.items():
        for name, data in each.items():
            yield evaluator, name, data


def _suffixes(config: RunConfig) -> tuple[str, ...]:
    """What is added to the names of data, for each set of weights that is measured: the weights, and their average."""
    return ("",) if config.training.ema_decay is None else ("", AVERAGED)


def _headlines(asked: Asked, suffixes: Sequence[str]) -> Iterator[str]:
    """The names of the numbers that stand for the others, in the order in which they are measured."""
    for suffix in suffixes:
        for evaluator, name, _ in _each(asked):
            for number in EVALUATORS[evaluator].headline:
                yield f"{name}{suffix}/{number}"


def _numbers(evaluator: str, name: str, data: DataSet, features: Features) -> dict[str, Number]:
    """The numbers of an evaluator by their names among all of the model; those that are not finite are left out."""
    return {
        number_name(evaluator, name, number.name, fits=False): number
        for number in numbers(EVALUATORS[evaluator].measure(features, data))
        if math.isfinite(number.value)
    }


def _encoder(job: Job, weights: dict[str, Tensor]) -> Encoder | WordEncoder:
    """An encoder with these weights, which become its own."""
    if (words := job.engine.words) is not None:
        with torch.random.fork_rng(devices=[]):  # initial values are drawn, and replaced
            predictor = WordPredictor(job.config.model, words.num_outputs)
        load_weights(predictor, weights)
        return WordEncoder(predictor, words, job.tokenizer, job.config.model, job.world.device)
    weights = {name: weights[name] for name in weights if not name.startswith(f"{TOKEN_HEAD}.")}
    model = model_of(job.config.model, job.tokenizer.vocab_size, weights)
    return Encoder(model, job.tokenizer, job.config.model, job.world.device)
