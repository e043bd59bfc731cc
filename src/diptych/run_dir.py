"""The directory of a run, which holds its whole record.

config.yaml       the resolved configuration; a resumed run must agree with it in every setting that decides results
environment.txt   versions and machine of every start
metrics.jsonl     all numbers, one line a logged step; every dashboard is fed from it
metrics_redone.jsonl   lines of steps that were repeated after a restart
log/              rank_N.log
checkpoints/      step_N/
caption_counts_HASH.safetensors   in how many captions each token is, for runs whose loss needs it
bad_steps/        step_N.json: the samples of a step whose loss or gradient was not finite, or whose loss jumped
end.json          how the last command ended: finished, stopped or hung, and the reason; missing otherwise
heartbeats/       rank_N.json: process, phase and samples of each rank, written every five seconds
stacks/           rank_N.txt: the stacks of each rank when one hung
lock              held by the process that trains here
seen_by_all_ranks   for a moment at each start: whether all machines have this directory
samples.png       the first batch as the model sees it, samples.txt its captions, samples.json both for the report
wandb.json        which wandb run belongs to it, if any
report.html
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import sys
from contextlib import ExitStack
from datetime import datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import yaml

from diptych.checkpoint_folder import step_folders
from diptych.config.load import ConfigError, LoadedConfig, config_from_dict
from diptych.config.schema import DataConfig, RunConfig
from diptych.config.values import differing_keys, dump_config
from diptych.errors import UserError
from diptych.files import check_writable, commit_file
from diptych.locks import LockedError, locked
from diptych.terminal import counted
from diptych.yaml_documents import parse_yaml

logger = logging.getLogger(__name__)

FREE_KEYS = (
    *("run_dir", "machine", "tracking", "checkpoint", "evaluation"),
    *("data.train", "data.cache.folder", "data.cache.bytes", "data.groups.file", "tokenizer.vocabulary"),
)
"""Keys and sections that may change from one start to the next: how the run is executed and watched, and where its
input is stored. What it computes may not change. (The content of the input is compared with the checkpoint.)"""


_until_the_end = ExitStack()
"""Holds the lock of the run directory until this process ends."""


class RunDir:
    def __init__(self, path: Path):
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.log = path / "log"
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples.png"
        self.bad_steps = path / "bad_steps"
        self.wandb = path / "wandb.json"
        self.end = path / "end.json"
        self.heartbeats = path / "heartbeats"
        self.stacks = path / "stacks"

    def check_writable(self) -> None:
        """Check that a run can be written here, without leaving any file.

        Raises:
            UserError: it cannot.
        """
        for place in (self.config_file, self.log / "rank_0.log", self.checkpoints / "step_0"):
            check_writable(place, "set run_dir to one that can be")

    def prepare(self, loaded: LoadedConfig) -> None:
        """Create the directory, or check that it belongs to this run, and lock it; only rank 0 calls it.

        Raises:
            ConfigError: it contains another run (one line per differing key), or another process is training in it.
        """
        if self.config_file.exists():
            # A run without a checkpoint has nothing to lose, and its config may have been the mistake.
            if self.has_checkpoints():
                self._refuse_another_run(loaded.config)
        elif left := [path.name for path in (self.checkpoints, self.metrics, self.log) if path.exists()]:
            raise ConfigError(
                f"{self.path}: holds {', '.join(left)} but no config.yaml, so it is not a run of ours; set run_dir"
            )
        try:
            for folder in (self.path, self.log, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"run_dir {self.path} cannot be made ({error.strerror}); set run_dir to a folder that can"
            ) from None
        self._keep_others_out()
        if not self.config_file.exists():
            commit_file(self.config_file, dump_config(loaded.config).encode())

    def record_start(self, config: RunConfig) -> None:
        """Write config and environment once all checks have passed; only rank 0 calls it."""
        self.end.unlink(missing_ok=True)
        commit_file(self.config_file, dump_config(config).encode())
        with (self.path / "environment.txt").open("a", encoding="utf-8") as file:
            file.write(describe_environment())

    def heartbeat_of(self, rank: int) -> Path:
        return self.heartbeats / f"rank_{rank}.json"

    def record_end(self, reason: str, **details: Any) -> None:
        """Write for launchers how the run ended; if that fails, log a warning."""
        try:
            commit_file(self.end, json.dumps({"reason": reason, **details}).encode() + b"\n")
        except OSError as error:
            logger.warning("%s cannot be written: %s", self.end, error)

    def read_config(self) -> RunConfig:
        """The configuration of the run.

        Raises:
            ConfigError: there is no run here, or its config cannot be read.
        """
        try:
            values: Any = parse_yaml(self.config_file.read_text(encoding="utf-8"))
            return config_from_dict(values)
        except FileNotFoundError:
            raise ConfigError(f"{self.path}: is not a run directory (no config.yaml)") from None
        except OSError as error:
            raise ConfigError(f"{self.config_file}: cannot be read ({error.strerror}); make it readable") from None
        except (yaml.YAMLError, UnicodeDecodeError, ConfigError) as error:
            said = " ".join(str(getattr(error, "problem", None) or error).split())
            raise ConfigError(f"{self.config_file}: is damaged: {said}; restore it, or name another run") from None

    def has_checkpoints(self) -> bool:
        """Whether the run was ever saved, so that it can be resumed."""
        return self.config_file.exists() and bool(step_folders(self.checkpoints))

    def is_training(self) -> bool:
        """Whether a process is training here now; False also if the directory cannot be locked."""
        try:
            with locked(self.path, "training"):
                return False
        except LockedError:
            return True
        except (UserError, OSError):
            return False

    def _keep_others_out(self) -> None:
        try:
            _until_the_end.enter_context(locked(self.path, "training"))
        except LockedError as error:
            if not error.is_ours:
                raise ConfigError(
                    f"{self.path}: {error.holder} is training here; let it finish or stop it, "
                    f"or set run_dir to a new directory"
                ) from None
        except UserError as error:
            logger.warning("%s; make sure that only one command trains here", error)

    def _refuse_another_run(self, config: RunConfig) -> None:
        was = self.read_config()
        differing = [
            f"{self.path}: holds a run with {key} = {old!r}, this one has {new!r}"
            for key, old, new in differing_keys(was, config)
            if key not in FREE_KEYS and key.partition(".")[0] not in FREE_KEYS
        ]
        if was.data.mixing != config.data.mixing:
            differing.append(
                f"{self.path}: holds a run whose data.train has the weights and captions {_shown(was.data)}, this one "
                f"has {_shown(config.data)}"
            )
        if differing:
            raise ConfigError("\n".join([*differing, "set run_dir to a new directory, or the settings back"]))


def _shown(data: DataConfig) -> str:
    return ", ".join(f"{weight} {captions}" for weight, captions in data.mixing) or "of a single source"


class _LogFile(logging.FileHandler):
    """A log file that drops lines when the disk is full, instead of printing a traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def log_to(run_dir: RunDir, rank: int) -> None:
    """Write the log of each rank to its own file, and warnings of rank 0 to stderr as well."""
    root = logging.getLogger("diptych")
    root.setLevel(logging.INFO)
    root.propagate = False
    root.handlers.clear()
    file = _LogFile(run_dir.log / f"rank_{rank}.log", encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(file)
    if rank == 0:
        console = logging.StreamHandler(sys.stderr)
        console.setLevel(logging.WARNING)
        console.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(console)


def describe_environment() -> str:
    """A paragraph for environment.txt: when the run was started, on which machine, with which versions."""
    installed = sorted({_named(each) for each in distributions()}, key=str.lower)
    lines = [
        f"started {datetime.now().isoformat(timespec='seconds')}",
        f"machine {platform.platform()}, {counted(os.cpu_count() or 1, 'core')}",
        f"python {platform.python_version()}",
        *installed,
    ]
    return "\n".join(lines) + "\n\n"


def _named(package: Distribution) -> str:
    """NAME==VERSION of an installed package; `package.metadata` would parse its whole description."""
    text = package.read_text("METADATA") or package.read_text("PKG-INFO") or ""
    headers = dict(_NAME_OR_VERSION.findall(text.partition("\n\n")[0]))
    return f"{headers.get('Name')}=={headers.get('Version')}"


_NAME_OR_VERSION = re.compile(r"^(Name|Version): (.*)$", re.MULTILINE)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The records in metrics.jsonl; a line that a kill cut short is left out."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines
