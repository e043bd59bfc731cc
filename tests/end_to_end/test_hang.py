"""A rank that hangs ends the run with one line that names it, and the stacks of all ranks on disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import yaml

from diptych.data.order import SampleOrder
from diptych.data.shards import open_index
from diptych.run_dir import read_metrics
from diptych.training.places import PHASES, Place, blame
from diptych.verbs.train import STOPPED
from tests.commands import PATIENCE_SECONDS, ROOT, forked_launcher, free_port, gone, start
from tests.data.remote_store import Proxy, answer
from tests.end_to_end.conftest import STEPS, outcome
from tests.end_to_end.test_resume import GOES_ON, after_some_steps, num_logged, stopped_step
from tests.warm import ENVIRONMENT, Warm

SECONDS = 4
"""`machine.step_timeout_seconds`, many times the duration of a step even on a busy machine."""
FEW_SECONDS = 1
"""The same, where the watch must let longer steps pass."""


HOST = socket.gethostname()
STREAM = ("data.streams=1", "data.shuffle_window=32")
"""So that a run needs one shard after another."""
LINES = {
    "rank 0": "hung: the process that holds the store of the ranks, rank 0 or its launcher, does not answer",
    "rank 1": f"hung: rank 1 of 2 (on {HOST}) does not answer: stopped, or its machine is lost",
    "a loader process of rank 1": f"hung: rank 1 of 2 (on {HOST}) waits for its batch after ",
}
"""Who was stopped → what is printed."""


def refuse_other_lines(whose: str, said: str, run_dir: Path) -> None:
    """Check what two ranks printed and wrote, one of which was stopped."""
    lines = [line for line in said.splitlines() if "hung: " in line]
    # Without the store, which rank 0 holds, ranks cannot agree on who prints.
    assert len(lines) == 1 or (whose == "rank 0" and len(lines) == 2), lines
    assert LINES[whose] in lines[0]
    assert lines[0].endswith(f"if it was only slow, set machine.step_timeout_seconds above {SECONDS}")
    assert "Traceback" not in said and "lost the other" not in said
    for rank in range(2):
        stacks = (run_dir / "stacks" / f"rank_{rank}.txt").read_text()
        assert "most recent call first" in stacks and "in go_on" in stacks


def test_a_stopped_process_is_named_by_its_rank(warm, recipe, tmp_path):
    runs = {"rank 0": tmp_path / "of_rank", "a loader process of rank 1": tmp_path / "of_loader"}
    started, stopped, families = {}, {}, []
    try:
        for whose, run_dir in runs.items():
            words = ("train", recipe, f"run_dir={run_dir}", f"machine.step_timeout_seconds={SECONDS}")
            started[whose] = warm.start_ranks(2, *words)
        for whose, run_dir in runs.items():
            after_some_steps(started[whose][0], run_dir, 4)
            victim = started[whose][int(whose[-1])]
            stopped[whose] = victim.family()[1] if "loader" in whose else victim.family()[0]
            families += [process for rank in started[whose] for process in rank.family()]
            stopped[whose].suspend()
        for whose, run_dir in runs.items():
            ranks = started[whose]
            assert {rank.wait() for rank in ranks if rank.pid != stopped[whose].pid} == {1}
            ranks[int(whose[-1])].wait()  # it was woken to write its stacks
            refuse_other_lines(whose, "".join(rank.said for rank in ranks), run_dir)
            end = json.loads((run_dir / "end.json").read_text())
            assert end == {"reason": "hung", "ranks": [int(whose[-1])]}
        assert gone(families)
    finally:
        for rank in chain.from_iterable(started.values()):
            rank.kill()


STUCK = """
import ctypes, time, torch, torch.distributed
from datetime import timedelta
from pathlib import Path
from diptych.agreement import on_any_rank
from diptych.config.schema import MachineConfig
from diptych.data.loader_processes import LoaderProcesses
from diptych.run_dir import RunDir
from diptych.training import watch
from diptych.process_group import process_group
from diptych.world import read_world

watch.ANSWER_SECONDS, watch.MARGIN_SECONDS, watch.EXCHANGE_SECONDS = 5, 8, 0.2
with process_group(read_world(), 60) as world:
    machine = MachineConfig(process_group_timeout_seconds=3)
    with watch.Watch(RunDir(Path({folder!r})), world, machine, LoaderProcesses(0)) as watched:
        {work}
"""
"""Two ranks of which the second hangs; work: what they do."""
IN_C = """watch.ANSWER_SECONDS = 1  # the second does not answer
        watched.open_files()
        watched.enter("step", 64)
        if world.rank == 1:
            ctypes.PyDLL(None).sleep(60)  # with Python's lock, so that no other thread runs
        torch.distributed.all_reduce(torch.ones(1))
"""
AFTER_WORK = """watched.enter({phase!r}, 64)
        if world.rank == 1:
            for _ in range(60):
                time.sleep(0.1)  # it works twice as long as ranks may take that do nothing
            print("worked", flush=True)
            time.sleep(60)
        on_any_rank(world, False)
"""
ENDLESS = """watch.LONGEST_PHASE = 2
        watched.enter("evaluation", 64)
        while world.rank == 1:
            time.sleep(0.1)
        on_any_rank(world, False)
"""


def start_stuck_ranks(folder: Path, work: str) -> list[Warm]:
    """Two ranks that do this work, of which the second hangs; what they print goes to a file of the folder."""
    folder.mkdir()
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    environment = os.environ | ENVIRONMENT | meeting
    with (folder / "said").open("w") as said, open(os.devnull) as nothing:
        return [
            Warm(
                "tests.warm:interpret",
                STUCK.format(folder=str(folder), work=work),
                files=(nothing.fileno(), said.fileno(), said.fileno()),
                environment=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]


@pytest.fixture(scope="module")
def stuck(tmp_path_factory) -> dict[str, tuple[list[str], list[str]]]:
    """What two ranks printed, the second of which hung, and their stacks: in C code, and outside of steps.

    All wait at the same time.
    """
    works = {
        "C": IN_C,
        "endless": ENDLESS,
        **{phase: AFTER_WORK.format(phase=phase) for phase in ("evaluation", "end")},
    }
    folder = tmp_path_factory.mktemp("stuck")
    started = {name: start_stuck_ranks(folder / name, work) for name, work in works.items()}
    for ranks in started.values():
        assert [rank.wait(PATIENCE_SECONDS) for rank in ranks] == [1, 1]
    return {
        name: (
            (folder / name / "said").read_text().splitlines(),
            [(folder / name / "stacks" / f"rank_{rank}.txt").read_text() for rank in range(2)],
        )
        for name in works
    }


def test_c_code_that_keeps_pythons_lock_does_not_keep_the_watch_from_ending_the_rank(stuck):
    (line,), (_, stacks) = stuck["C"]
    assert "hung: rank 1 of 2 (on " in line and "does not answer" in line
    assert "most recent call first" in stacks


@pytest.mark.parametrize("phase", ["evaluation", "end"])
def test_a_rank_may_work_for_hours_outside_of_steps_and_hang_only_for_a_while(phase, stuck):
    (worked, line), stacks = stuck[phase]
    assert worked == "worked"
    assert f"hung: rank 1 of 2 (on {HOST}) {PHASES[phase]} after 64 samples" in line
    assert line.endswith("set machine.process_group_timeout_seconds above 3")
    assert all("most recent call first" in each for each in stacks)


def test_a_rank_that_works_for_ever_outside_of_steps_ends_the_run_too(stuck):
    (line,), _ = stuck["endless"]
    assert f"hung: rank 1 of 2 (on {HOST}) measures the model after 64 samples" in line
    assert line.endswith("set machine.process_group_timeout_seconds above 3")


def test_a_disk_that_does_not_answer_ends_the_start(warm, recipe, tmp_path):
    shards = shutil.copytree(recipe.parent / "shards", tmp_path / "shards")
    os.mkfifo(shards / "_index" / "all.index")  # which nobody writes
    words = (f"run_dir={tmp_path / 'run'}", f"data.train={shards}", "machine.process_group_timeout_seconds=4")
    ranks = warm.start_ranks(2, "train", recipe, *words)
    assert [rank.wait() for rank in ranks] == [1, 1]
    (line,) = "".join(rank.said for rank in ranks).splitlines()
    assert f"hung: rank 0 of 2 (on {HOST}) is starting after 0 samples" in line
    assert "in read_folder_list" in (tmp_path / "run" / "stacks" / "rank_0.txt").read_text()


def place(phase, samples_seen, waits=False):
    return Place(phase, samples_seen, 91.4, waits, "node7")


@pytest.mark.parametrize(
    ("places", "said", "blamed"),
    [
        (
            {0: place("step", 64)},
            "ranks 1, 2 of 3 (the first on node1) do not answer: stopped, or its machine is lost",
            [1, 2],
        ),
        (
            {0: place("step", 64), 1: place("batch", 64), 2: place("step", 64)},
            "rank 1 of 3 (on node7) waits for its batch after 64 samples, for 91 s",
            [1],
        ),
        (
            {0: place("step", 96), 1: place("batch", 96), 2: place("step", 64)},
            "rank 2 of 3 (on node7) is in the step after 64 samples, for 91 s",
            [2],
        ),
        (
            {0: place("step", 64, True), 1: place("step", 64, True), 2: place("step", 64)},
            "rank 2 of 3 (on node7) is in the step after 64 samples, for 91 s",
            [2],
        ),
        (
            {rank: place("step", 64, True) for rank in range(3)},
            "every rank is in the step after 64 samples, for 91 s",
            [0, 1, 2],
        ),
    ],
)
def test_the_ranks_that_did_not_arrive_are_blamed(places, said, blamed):
    assert blame(places, 3, lambda rank: f"node{rank}") == (said, blamed)


def test_a_run_of_one_process_that_is_stopped_and_continued_goes_on(warm, recipe, alone, tmp_path):
    run_dir = tmp_path / "run"
    command = warm.start("train", recipe, f"run_dir={run_dir}", f"machine.step_timeout_seconds={FEW_SECONDS}")
    after_some_steps(command, run_dir, 4)
    process = command.family()[0]
    process.suspend()  # as Ctrl-Z does
    time.sleep(2.5)
    process.resume()
    assert command.wait() == 0, command.said
    assert outcome(run_dir) == outcome(alone)


def test_a_run_in_which_nothing_hung_leaves_no_stacks(alone):
    assert not (alone / "stacks").exists()


def test_torchrun_starts_ranks_again_of_which_one_hung(recipe, on_two_ranks, tmp_path):
    run_dir = tmp_path / "run"
    environment = {"RANKS": "2", "RESTARTS": "1", **forked_launcher(tmp_path)}
    words = (recipe, f"run_dir={run_dir}", f"machine.step_timeout_seconds={SECONDS}")
    command = start(tmp_path, ROOT / "launch" / "one_node.sh", *words, environment=environment)
    after_some_steps(command, run_dir, 6)
    os.kill(json.loads((run_dir / "heartbeats" / "rank_1.json").read_text())["pid"], signal.SIGSTOP)
    assert command.wait() == 0, command.said
    refuse_other_lines("rank 1", command.said, run_dir)
    assert outcome(run_dir) == outcome(on_two_ranks)
    assert json.loads((run_dir / "heartbeats" / "rank_1.json").read_text())["samples_seen"] == STEPS * 32


def last_shard(folder: str) -> tuple[str, int]:
    """The name of the shard that a run of `recipe` with STREAM needs last, and how many steps come before."""
    index = open_index(folder)
    order = SampleOrder(index.counts, seed=0, global_batch_size=32, shuffle_window=32, streams=1)
    shards, _ = index.locate_many(np.concatenate([order.rows(number).samples for number in range(9)]))
    numbers, first_rows = np.unique(shards, return_index=True)
    return index.shards[numbers[first_rows.argmax()]].name, int(first_rows.max() // 32)


def late(handler: BaseHTTPRequestHandler, body: bytes, run_dir: Path, name: str) -> None:
    """Answer, but for this shard only after some steps and then several times the longest step."""
    if not handler.path.endswith(name):
        return answer(handler, body)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while num_logged(run_dir) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(4 * FEW_SECONDS)
    answer(handler, body)


@contextmanager
def store_of(folder):
    """A web server with the files of a folder, behind a proxy, during the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    proxy = Proxy(server.server_port)
    try:
        yield proxy
    finally:
        proxy.close()
        server.shutdown()
        server.server_close()


def test_a_store_that_is_away_for_longer_than_a_step_may_take_is_waited_for(warm, recipe, tmp_path):
    folder = yaml.safe_load(recipe.read_text())["data"]["train"]
    with store_of(folder) as proxy:
        name, steps = last_shard(folder)
        assert steps >= 3
        proxy.faults[:] = [partial(late, run_dir=tmp_path / "run", name=name)] * 3
        command = warm.start(
            *("train", recipe, f"run_dir={tmp_path / 'run'}"),
            f"data.train=http://127.0.0.1:{proxy.port}/{{00000..00002}}.tar",
            *(*STREAM, f"data.cache.folder={tmp_path / 'cache'}"),
            *(f"machine.step_timeout_seconds={FEW_SECONDS}", "machine.process_group_timeout_seconds=600"),
        )
        assert command.wait() == 0, command.said
        waits = [line["data_wait_fraction"] for line in read_metrics(tmp_path / "run/metrics.jsonl") if "loss" in line]
        assert max(waits[2:]) > 0.9, "the shard was late within the run"


def test_ctrl_c_does_not_wait_for_a_store_that_keeps_a_shard_back(warm, recipe, tmp_path):
    may_answer = threading.Event()
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = yaml.safe_load(recipe.read_text())["data"]["train"]

    def keep_back(handler: BaseHTTPRequestHandler, body: bytes, name: str) -> None:
        if handler.path.endswith(name):
            may_answer.wait(2 * PATIENCE_SECONDS)
        answer(handler, body)

    with store_of(folder) as proxy:
        shards = f"http://127.0.0.1:{proxy.port}/{{00000..00002}}.tar"
        train = ("train", recipe, f"run_dir={tmp_path / 'run'}", f"data.train={shards}", *STREAM)
        name, steps = last_shard(folder)
        proxy.faults[:] = [partial(keep_back, name=name)] * 20  # also when asked again
        training = warm.start(*train, environment=environment)
        after_some_steps(training, tmp_path / "run", steps)  # the next one lacks its batch
        family = training.family()
        training.signal_group(signal.SIGINT)
        assert training.wait() == STOPPED
        assert gone(family)
        samples = stopped_step(tmp_path / "run") * 32
        assert training.said.endswith(f"stopped by SIGINT after {samples:,} samples; {GOES_ON}\n")
        may_answer.set()
        assert warm.start(*train, environment=environment).wait() == 0
