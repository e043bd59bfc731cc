"""What the console shows of a run."""

import os
import re
import threading

import pytest

from diptych.training import console as console_module
from diptych.training.console import Console
from tests.end_to_end.conftest import recipe

__all__ = ["recipe"]


def test_without_a_terminal_unlogged_steps_are_lines_with_the_last_numbers(monkeypatch, capsys):
    monkeypatch.setattr(console_module, "LINE_EVERY_SECONDS", 0.0)
    console = Console(total_samples=400, samples_seen=0, shown=True)
    console.move(100)
    console.show(2.5, 1000.0, 0.25)
    for seen in (200, 300):
        console.move(seen)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["100/400", "200/400", "300/400"]
    assert ["loss 2.500" in line for line in lines] == [False, True, True]


def test_lines_are_some_seconds_apart_but_the_last_position_is_always_printed(capsys):
    console = Console(total_samples=400, samples_seen=0, shown=True)
    for seen in (100, 200, 300, 400):
        console.move(seen)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["100/400", "400/400"]


def test_the_time_left_is_shown_from_the_second_step_on(monkeypatch, capsys):
    monkeypatch.setattr(console_module, "LINE_EVERY_SECONDS", 0.0)
    clock = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: clock[0])
    console = Console(total_samples=1000, samples_seen=500, shown=True)
    for seconds, seen in ((60.0, 600), (70.0, 700), (80.0, 800)):
        clock[0] = seconds  # the first step waits for the loader, the compiler, the allocator
        console.move(seen)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("ETA ")[2] for line in lines] == ["?", "00:30", "00:20"]


def test_samples_of_later_stages_count_for_what_they_cost(monkeypatch, capsys):
    monkeypatch.setattr(console_module, "LINE_EVERY_SECONDS", 0.0)
    clock = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: clock[0])

    def work_until(samples: int) -> float:  # from the 800th sample on each takes four times as long
        return samples + 3 * max(0, samples - 800)

    console = Console(total_samples=1000, samples_seen=0, shown=True, work_until=work_until)
    for seconds, seen in ((60.0, 600), (70.0, 700), (80.0, 800), (120.0, 900)):
        clock[0] = seconds
        console.move(seen)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("ETA ")[2] for line in lines] == ["?", "01:30", "01:20", "00:40"]


def test_other_ranks_are_silent(capsys):
    console = Console(total_samples=400, samples_seen=0, shown=False)
    console.say("hello")
    console.show(2.5, 1000.0, 0.25)
    console.move(400)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def terminal():
    """A terminal's file descriptor, and a function that returns what was written to it so far."""
    ours, theirs = os.openpty()
    shown = bytearray()

    def watch() -> None:
        try:
            while data := os.read(ours, 4096):
                shown.extend(data)
        except OSError:  # the other side was closed
            pass

    watching = threading.Thread(target=watch)
    watching.start()
    yield theirs, shown
    watching.join()
    os.close(ours)


def test_on_a_terminal_the_bar_moves_between_logged_steps(warm, recipe, tmp_path, terminal):
    fd, shown = terminal
    command = warm.start("train", recipe, f"run_dir={tmp_path}/run", "tracking.log_every_steps=1000", errors=fd)
    os.close(fd)
    assert command.wait() == 0
    positions = {int(percent) for percent in re.findall(rb"(\d+)% ", shown)}
    assert {0, 100} < positions and positions - {0, 1, 100}, shown.decode()
