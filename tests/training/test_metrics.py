import json
import logging
import os
import resource
import signal
import socket
import struct
import threading
import time

import psutil
import pytest

import diptych.training.metrics as metrics_module
from diptych.config.schema import DataConfig, RunConfig, TrackingConfig, TrainingConfig
from diptych.run_dir import RunDir, log_to, read_metrics
from diptych.training.metrics import PANELS, SAMPLES_SEEN, Metrics, in_panels
from tests.commands import PATIENCE_SECONDS
from tests.warm import Warm

BLOCK = 32 * 1024
NUMBERS = {"samples_seen": 64, "epoch": 0.5, **{name: 0.25 for names in PANELS.values() for name in names}}

START = """
from pathlib import Path
from diptych.training.metrics import Metrics, PANELS
from tests.training.test_metrics import NUMBERS, config
m = Metrics(Path({folder!r}) / "metrics.jsonl", config(wandb="offline"), samples_seen={samples_seen},
            tracker_id="abc12345")
for seen in {steps!r}: m.log({{**NUMBERS, "samples_seen": seen}})
"""


def config(**tracking):
    return RunConfig(
        run_dir="run",
        data=DataConfig(train="shards"),
        training=TrainingConfig(total_samples=640, global_batch_size=64),
        tracking=TrackingConfig(**tracking),
    )


def start_run(folder, samples_seen, steps):
    """Start a run in a process of its own, as wandb sees it."""
    code = START.format(folder=str(folder), samples_seen=samples_seen, steps=steps) + "m.close()"
    assert Warm("tests.warm:interpret", code).wait(PATIENCE_SECONDS) == 0


def wandb_records(file):
    """The records of an offline run: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, held = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        held += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a complete record, or its last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(held)
            yield record
            held = b""


def wandb_history(folder):
    """The samples seen of every row of the offline runs in a run directory."""
    rows = []
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "history":
                row = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                rows.append(json.loads(row[SAMPLES_SEEN]))
    return rows


def test_wandb_offline_has_every_panel_against_samples_seen_and_one_run_over_two_starts(tmp_path):
    start_run(tmp_path, 0, [64, 128])
    start_run(tmp_path, 128, [192])
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime)
    assert len(files) == 2
    seen, metrics, runs = [], {}, set()
    for file in files:
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                runs.add(record.run.run_id)
            elif kind == "metric":
                metrics[record.metric.glob_name or record.metric.name] = record.metric.step_metric
            elif kind == "history":
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                seen.append(row[SAMPLES_SEEN])
                missing = {f"{section}/{name}" for section, names in PANELS.items() for name in names} - row.keys()
                assert not missing
                assert row["learning/loss"] == 0.25
    assert runs == {"abc12345"} and seen == [64, 128, 192]
    assert {f"{section}/*": SAMPLES_SEEN for section in PANELS}.items() <= metrics.items()


def test_the_panels_hold_what_a_run_is_watched_by():
    shown = {name for names in PANELS.values() for name in names}
    assert {
        *("loss", "learning_rate", "logit_scale", "gradient_norm", "i2t_accuracy", "t2i_accuracy"),
        *("samples_per_second", "data_wait_fraction", "rejected_samples", "gpu_memory_gib"),
    } <= shown
    assert in_panels({"loss": 1.0, SAMPLES_SEEN: 5}) == {"learning/loss": 1.0, SAMPLES_SEEN: 5}
    assert in_panels({"rejected_truncated": 2}) == {"data/rejected_truncated": 2}


def test_lines_behind_the_checkpoint_are_dropped_and_a_torn_line_does_no_harm(tmp_path):
    file = tmp_path / "metrics.jsonl"
    metrics = Metrics(file, config(wandb="off"), samples_seen=0, tracker_id="x")
    for seen in (64, 128, 192):
        metrics.log({SAMPLES_SEEN: seen, "loss": float(seen)})
    metrics.event("save", samples_seen=128)
    metrics.close()
    with file.open("a") as torn:
        torn.write('{"samples_seen": 64, "lo')

    metrics = Metrics(file, config(wandb="off"), samples_seen=128, tracker_id="x")
    metrics.log({SAMPLES_SEEN: 192, "loss": 7.0})
    metrics.close()
    assert [line["loss"] for line in read_metrics(file) if "loss" in line] == [64.0, 128.0, 7.0]
    assert [line["event"] for line in read_metrics(file) if "event" in line] == ["save"]


def test_a_tracker_that_fails_is_left_out_and_the_record_goes_on(tmp_path, caplog):
    file = tmp_path / "metrics.jsonl"
    metrics = Metrics(file, config(wandb="off"), samples_seen=0, tracker_id="x")

    def dead(values):
        raise ConnectionError("no route to host")

    metrics._sinks["dead"] = dead
    with caplog.at_level("WARNING", logger="diptych"):
        for seen in (64, 128):
            metrics.log({SAMPLES_SEEN: seen})
    metrics.close()
    assert [line[SAMPLES_SEEN] for line in read_metrics(file)] == [64, 128]
    assert [record.message for record in caplog.records] == [
        "dead failed and is left out from here on: no route to host"
    ]


def test_a_tracker_that_cannot_start_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "wandb.py").write_text("raise OSError('disk full')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'broken'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with caplog.at_level("WARNING", logger="diptych"):
        metrics = Metrics(tmp_path / "metrics.jsonl", config(wandb="offline"), samples_seen=0, tracker_id="x")
        metrics.log({SAMPLES_SEEN: 64})
        metrics.close()
    assert [record.message for record in caplog.records] == [
        "wandb: cannot start: disk full",
        "wandb ended with status 1 and is left out from here on",
    ]
    assert [line[SAMPLES_SEEN] for line in read_metrics(tmp_path / "metrics.jsonl")] == [64]


@pytest.fixture
def silent_server(monkeypatch):
    """A server that this process and its children take for wandb's; it accepts every request and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield server


def test_a_server_that_does_not_answer_delays_nothing_and_the_run_is_kept_offline(tmp_path, silent_server, caplog):
    before = set(psutil.Process().children(recursive=True))
    with caplog.at_level("WARNING", logger="diptych"):
        metrics = Metrics(tmp_path / "metrics.jsonl", config(wandb="auto"), samples_seen=0, tracker_id="abc12345")
        silent_server.accept()[0].close()
        for seen in (64, 128):
            metrics.log({**NUMBERS, SAMPLES_SEEN: seen})
        tracker = set(psutil.Process().children(recursive=True)) - before
        metrics.close()
    assert [record.message for record in caplog.records] == [
        f"wandb: out of reach (no answer); kept offline, `wandb sync {tmp_path}/wandb/offline-run-*` sends it"
    ]
    assert wandb_history(tmp_path) == [64, 128]
    assert tracker and psutil.wait_procs(tracker, timeout=60)[1] == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM] if os.environ.get("NIGHTLY") else [signal.SIGKILL])
def test_the_tracker_of_a_killed_run_still_gets_its_last_numbers_and_ends(tmp_path, how):
    code = START.format(folder=str(tmp_path), samples_seen=0, steps=[64, 128]) + "import time; time.sleep(600)"
    run = Warm("tests.warm:interpret", code)
    while not (tmp_path / "metrics.jsonl").exists() or len(read_metrics(tmp_path / "metrics.jsonl")) < 2:
        assert run.poll() is None
        time.sleep(0.01)
    family = psutil.Process(run.pid).children(recursive=True)
    os.kill(run.pid, how)
    run.wait()
    assert family and psutil.wait_procs(family, timeout=60)[1] == []
    assert wandb_history(tmp_path) == [64, 128]


def test_a_disk_that_does_not_answer_stops_no_step_and_all_lines_become_durable(tmp_path, monkeypatch):
    answers, flushed = threading.Event(), []

    def fsync(descriptor: int) -> None:
        lines = (tmp_path / "metrics.jsonl").read_bytes().count(b"\n")
        answers.wait(60)
        flushed.append(lines)

    monkeypatch.setattr(metrics_module.os, "fsync", fsync)
    record = Metrics(tmp_path / "metrics.jsonl", config(wandb="off"), samples_seen=0, tracker_id="x")
    for seen in (64, 128, 192):
        record.log({"samples_seen": seen})  # while the disk is silent
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3 and not flushed
    answers.set()
    record.close()
    assert flushed[-1] == 3


def test_lines_that_find_no_room_are_written_once_there_is_some(tmp_path):
    file = tmp_path / "metrics.jsonl"
    metrics = Metrics(file, config(wandb="off"), samples_seen=0, tracker_id="x")
    metrics.log(NUMBERS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # Room for half a line more: a write that is cut short continues at the next byte.
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 50, hard))
        for seen in (128, 192):
            metrics.log({**NUMBERS, "samples_seen": seen})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [line["samples_seen"] for line in read_metrics(file)] == [64]
    metrics.log({**NUMBERS, "samples_seen": 256})
    metrics.close()
    assert [json.loads(line)["samples_seen"] for line in file.read_text().splitlines()] == [64, 128, 192, 256]


def test_a_log_on_a_full_disk_is_cut_short_in_silence(tmp_path, capsys):
    run = RunDir(tmp_path)
    run.log.mkdir()
    log_to(run, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
        logging.getLogger("diptych").warning("a line that has no room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (handler,) = logging.getLogger("diptych").handlers
    logging.getLogger("diptych").removeHandler(handler)
    handler.close()
    assert capsys.readouterr().err == ""
    assert "a line that has no room" in (run.log / "rank_1.log").read_text()  # there is room again
