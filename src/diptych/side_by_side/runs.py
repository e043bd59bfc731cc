"""Read the records of several runs: configuration, metrics and results."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diptych.checkpoint_folder import MANIFEST
from diptych.config.load import load_config
from diptych.config.schema import RunConfig
from diptych.config.values import config_to_dict, flatten
from diptych.errors import UserError
from diptych.evaluation.results_file import read_results
from diptych.files import no_such_path, short_names
from diptych.learning_curves import by_samples, training_facts
from diptych.run_dir import RunDir, read_metrics

EXPECTED = "expected run directories, as `diptych train` makes them"
NAMES_THE_RUN = ("run_dir",)
"""Keys that differ between any two runs, and say nothing about them."""


@dataclass(frozen=True)
class ComparedRun:
    """What is known of a run."""

    name: str
    """The shortest end of its path that no other run has."""
    path: Path
    config: RunConfig | None
    """None if it cannot be read."""
    records: Sequence[Mapping[str, Any]]
    """The lines of metrics.jsonl."""
    results: Mapping[str, Any]
    """evaluation.json; empty if there is none."""
    notes: tuple[str, ...]
    """What is missing."""

    @cached_property
    def metrics(self) -> list[Mapping[str, Any]]:
        """The logged steps, in order of samples seen."""
        return by_samples(self.records)

    @cached_property
    def facts(self) -> dict[str, str]:
        """Facts about its training, by name."""
        return dict(training_facts(self.metrics, self.records))


def read_runs(paths: Sequence[Path]) -> list[ComparedRun]:
    """Read the runs, in the order given; a checkpoint stands for its run.

    Raises:
        UserError: one is not a run, is named twice, has results that cannot be read, or there is only one.
    """
    folders = [_run_folder(path) for path in paths]
    if len(folders) < 2:
        raise UserError(f"{paths[0]} is one run; give at least two to compare")
    times = Counter(os.path.realpath(folder) for folder in folders)
    if twice := [path for path, folder in zip(paths, folders, strict=True) if times[os.path.realpath(folder)] > 1]:
        raise UserError(f"{' and '.join(map(str, twice))} are the same run; give each run once")
    return [_read(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)]


def differing_settings(runs: Sequence[ComparedRun]) -> list[tuple[str, list[str]]]:
    """(key, value in each run) of the configuration, for each key whose value is not the same in all.

    A key that a run's config.yaml lacks has its default; `?` is the value in a run whose config cannot be read.
    """
    known = [dict(flatten(config_to_dict(run.config))) if run.config else None for run in runs]
    keys = dict.fromkeys(key for values in known if values for key in values)
    found = []
    for key in keys:
        values = [_as_yaml(each.get(key)) if each is not None else "?" for each in known]
        if key not in NAMES_THE_RUN and len({value for value in values if value != "?"}) > 1:
            found.append((key, values))
    return found


def _as_yaml(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _run_folder(path: Path) -> Path:
    if not path.exists():
        raise no_such_path(path, EXPECTED)
    run = path.absolute().parent.parent if (path / MANIFEST).is_file() else path
    if not path.is_dir():
        raise UserError(f"{path} is a file; {EXPECTED}")
    if (run / "config.yaml").is_file() or (run / "metrics.jsonl").is_file():
        return run
    what = "a model folder" if (path / "model.safetensors").is_file() else "not a run (no config.yaml)"
    raise UserError(f"{path} is {what}; {EXPECTED}")


def _read(folder: Path, name: str) -> ComparedRun:
    run_dir, notes = RunDir(folder), []
    config = None
    try:
        config = load_config([run_dir.config_file]).config
    except UserError as error:
        notes.append(f"its settings are left out: {str(error).splitlines()[0]}")
    records = read_metrics(run_dir.metrics) if run_dir.metrics.is_file() else []
    if progress := _progress(run_dir, config, by_samples(records)):
        notes.append(progress)
    results = read_results(folder / "evaluation.json", "move it away, and evaluate the run again")
    if not results:
        notes.append(f"it has no results; `diptych evaluate {folder}` measures it")
    return ComparedRun(name, folder, config, records, results, tuple(notes))


def _progress(run_dir: RunDir, config: RunConfig | None, steps: Sequence[Mapping[str, Any]]) -> str:
    """How far a run is that has not finished; empty for one that has."""
    if not steps:
        return "it has not logged a step yet"
    seen = steps[-1]["samples_seen"]
    # The last step is always logged; what is left of the samples after it is less than a batch.
    if config is None or seen + config.training.global_batch_size > config.training.total_samples:
        return ""
    of_all = f"{seen:,} of its {config.training.total_samples:,} samples"
    is_training = not run_dir.end.exists() and run_dir.is_training()
    return f"it is still training, at {of_all}" if is_training else f"it stopped after {of_all}"
