"""Kill a run again and again, start it again each time, and compare its end with that of an undisturbed run.

Without CONFIG a small run of its own is drilled. Exit status 0 means that both ends are equal bit by bit, 1 that they
are not. The drill starts torchrun on this machine, on all ranks that `--ranks` asks for.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.command_line import path_argument
from diptych.errors import UserError
from diptych.run_dir import RunDir, read_metrics
from diptych.terminal import counted

if TYPE_CHECKING:
    from diptych.config.schema import RunConfig
    from diptych.drill.attempt import Kill

VICTIMS = ("rank", "save", "writer")
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


def train(words: Sequence[str], run: RunDir, num_ranks: int, folder: Path) -> float:
    """Train without disturbing; return the seconds it took.

    Raises:
        UserError: the run fails by itself.
    """
    from diptych.drill.attempt import Attempt

    began = time.monotonic()
    with Attempt([*words, f"run_dir={run.path}"], run, num_ranks, folder / "undisturbed.log") as attempt:
        if status := attempt.wait():
            print(attempt.last_words, file=sys.stderr)
            raise UserError(f"the undisturbed run ended with status {status}; {folder / 'undisturbed.log'} says why")
    return time.monotonic() - began


def disturb(
    words: Sequence[str], run: RunDir, num_ranks: int, kills: int, config: RunConfig, draw: random.Random, folder: Path
) -> list[Kill]:
    """Kill something `kills` times, start the run again whenever its ranks ended, and let it finish; print each kill.

    Raises:
        UserError: the run fails although none of its ranks was killed.
    """
    from diptych.drill.attempt import Attempt, newest_sample

    size, total = config.training.global_batch_size, config.training.total_samples
    done: list[Kill] = []
    print(f"{'kill':>4}  {'what':<18} {'after step':>10}  {'in a save':<9}  {'starts again after step':>23}")
    while True:
        kill, seen = None, saved_samples(run, size)
        with Attempt([*words, f"run_dir={run.path}"], run, num_ranks, folder / "disturbed.log") as attempt:
            while len(done) < kills:
                # Spread the kills that are left evenly, on average, over what is left of the run.
                moment = seen + int(draw.uniform(0, 2 * (total - seen) / (kills - len(done) + 1)))
                kill = attempt.kill_at(moment, draw.choice(VICTIMS), draw)
                if kill is None:
                    break
                done.append(kill)
                tell(len(done), kill, size)
                if kill.ends_run:
                    break
                seen = max(newest_sample(run), seen)
            status = attempt.wait()
        if status == 0:
            return done
        if kill is None or not kill.ends_run:
            print(attempt.last_words, file=sys.stderr)
            raise UserError(f"the run ended with status {status} by itself; {folder / 'disturbed.log'} says why")
        print(f"{saved_samples(run, size) // size:>23}", flush=True)


def tell(number: int, kill: Kill, size: int) -> None:
    in_save = "yes" if kill.in_save else ""
    end = "" if kill.ends_run else f"{'goes on':>23}\n"
    print(f"{number:>4}  {kill.victim:<18} {kill.samples_seen // size:>10}  {in_save:<9}  ", end=end, flush=True)


def saved_samples(run: RunDir, size: int) -> int:
    """The samples seen of the newest checkpoint."""
    from diptych.checkpoint_folder import checkpoints

    found = checkpoints(run.checkpoints) if run.checkpoints.exists() else []
    return int(found[0].name.removeprefix("step_")) * size if found else 0


def differences(whole: RunDir, disturbed: RunDir) -> list[str]:
    """What differs between the last checkpoints of two runs, and which of their files are damaged."""
    from diptych.checkpoint_folder import MANIFEST, CheckpointError, checkpoints, verify

    last = [checkpoints(run.checkpoints)[:1] for run in (whole, disturbed)]
    if not all(last):
        return ["one of the runs has no checkpoint"]
    files, lines = [], []
    for [checkpoint] in last:
        try:
            verify(checkpoint)
        except CheckpointError as error:
            lines.append(str(error))
        listed = json.loads((checkpoint / MANIFEST).read_bytes())["files"]
        files.append({name: each["sha256"] for name, each in listed.items() if name.endswith(".safetensors")})
    lines += [f"{name}: differs" for name in files[0] if files[0][name] != files[1].get(name)]
    losses = [
        {line["samples_seen"]: line["loss"] for line in read_metrics(run.metrics) if "loss" in line}
        for run in (whole, disturbed)
    ]
    wrong = [samples for samples, loss in losses[0].items() if losses[1].get(samples) != loss]
    if wrong:
        lines.append(f"the loss after {counted(wrong[0], 'sample')} is the first that differs, of {len(wrong)}")
    return lines
