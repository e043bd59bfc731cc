"""Train a dual encoder, or resume a run: in one process, under torchrun or under the deepspeed launcher."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.command_line import leave_status
from diptych.config.keys import describe_keys, meant_by
from diptych.config.load import ConfigError, LoadedConfig, files_and_overrides, load_config
from diptych.errors import UserError
from diptych.run_dir import RunDir
from diptych.training.signals import launchers

if TYPE_CHECKING:
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
        from diptych.training.checks import check_run

        checks = (lambda config: check_run(config, world),)
        loaded = load_config(files, overrides, checks, defaults=_defaults_from_weights(files, overrides))
        return settle_precision(loaded, world, will_start=not arguments.dry_run)

    if arguments.dry_run:
        from diptych.plan.dry_run import describe

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


def settle_precision(loaded: LoadedConfig, world: World, *, will_start: bool = True) -> LoadedConfig:
    """Replace training.precision `auto` by what the run, or its trunk, has; or else by what suits the device.

    will_start: whether the run is about to start here; one that is only described is meant for the GPUs that its
        configuration describes, if this machine has none.
    """
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
    elif not will_start and world.device.type != "cuda" and config.machine.gpu_memory_gib is not None:
        settled, reason = "bf16", "auto: on a GPU (machine.gpu_memory_gib)"
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
