"""Kill a run again and again, start it again each time, and compare its end with that of an undisturbed run.

Without CONFIG a small run of its own is drilled. Exit status 0 means that both ends are equal bit by bit, 1 that they
are not. The drill starts torchrun on this machine, on all ranks that `--ranks` asks for.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.command_line import path_argument
from diptych.errors import UserError
from diptych.run_dir import RunDir
from diptych.terminal import counted

if TYPE_CHECKING:
    from diptych.config.schema import RunConfig

CONDITIONS = (
    "machine.deterministic=true",
    "tracking.log_every_steps=1",
    "tracking.wandb=off",
    "tracking.tensorboard=false",
)
"""Settings under which a run can be repeated bit by bit and watched closely; none changes what it learns."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        nargs="*",
        metavar="CONFIG|key=value",
        help="YAML files and overrides as for `diptych train`; set training.total_samples to a few hundred batches",
    )
    parser.add_argument(
        "--folder", type=path_argument, default=Path("runs/drill"), help="where both runs go (runs/drill)"
    )
    parser.add_argument("--ranks", type=int, default=2, help="how many ranks train (2)")
    parser.add_argument("--kills", type=int, default=20, help="how often something is killed (20)")
    parser.add_argument("--seed", type=int, help="seed of what is killed when; by default a new one, which is printed")


def run(arguments: argparse.Namespace) -> None:
    from diptych.drill.differences import differences
    from diptych.drill.disturb import disturb, train

    folder, kills = arguments.folder, arguments.kills
    if arguments.ranks < 1 or kills < 1:
        raise UserError(f"--ranks {arguments.ranks}, --kills {kills}: both must be 1 or more")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--folder {folder}: is not empty; name a new folder, or remove this one")
    folder.mkdir(parents=True, exist_ok=True)
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    words = settings(arguments.config, folder)
    config = loaded(words, folder)
    print(
        f"{counted(config.training.total_samples // config.training.global_batch_size, 'step')} on "
        f"{counted(arguments.ranks, 'rank')}, seed {seed}, in {folder}"
    )
    whole, disturbed = RunDir(folder / "undisturbed"), RunDir(folder / "disturbed")
    seconds = train(words, whole, arguments.ranks, folder)
    print(f"undisturbed: {seconds:.0f} s\n")
    done = disturb(words, disturbed, arguments.ranks, kills, config, random.Random(seed), folder)
    differing = differences(whole, disturbed)
    result = {"seed": seed, "kills": [asdict(kill) for kill in done], "differing": differing}
    (folder / "drill.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print()
    if len(done) < kills:
        print(f"only {counted(len(done), 'kill')}: the run ended before the others; a longer one has room for all")
    if differing or len(done) < kills:
        for line in differing:
            print(line)
        sys.exit(1)
    print(f"{counted(kills, 'kill')}, and the end is that of the undisturbed run, bit by bit")


def settings(words: Sequence[str], folder: Path) -> list[str]:
    """The words for `diptych train`: those of the user, else the small run; then what a drill needs."""
    from diptych.config.load import files_and_overrides

    given = list(words)
    files, _ = files_and_overrides(given)
    if not files:
        from diptych.drill.small_run import write_small_run

        given = [str(write_small_run(folder / "data")), *given]
    return [
        *given,
        *(each for each in CONDITIONS if not any(word.startswith(each.partition("=")[0]) for word in given)),
    ]


def loaded(words: Sequence[str], folder: Path) -> RunConfig:
    from diptych.config.load import files_and_overrides, load_config

    files, overrides = files_and_overrides(words)
    return load_config(files, [*overrides, f"run_dir={folder / 'undisturbed'}"]).config
