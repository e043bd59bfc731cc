"""Which wandb run is opened, and what is sent: real wandb, and a server on this machine that counts requests."""

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from diptych.config.schema import DataConfig, RunConfig, TrackingConfig, TrainingConfig
from diptych.config.values import dump_config
from diptych.run_dir import RunDir
from diptych.training.metrics import Metrics
from diptych.training.wandb_results import log_results
from tests.training.test_metrics import NUMBERS, wandb_records

PAGE = b"<!DOCTYPE html><html><body>not here\n" + b"<p>go away</p>\n" * 100


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server for which wandb has a key, and which answers every request with a page and error 404."""
    asked = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(404)
            self.end_headers()
            self.wfile.write(PAGE)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield asked
        listening.shutdown()


def tracked(folder, samples_seen=0, **tracking):
    """Two logged steps of a run in that folder, with the picture of its first batch."""
    from PIL import Image

    config = RunConfig(
        run_dir=str(folder),
        data=DataConfig(train="shards"),
        training=TrainingConfig(total_samples=640, global_batch_size=64),
        tracking=TrackingConfig(**tracking),
    )
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(config))
    metrics = Metrics(folder / "metrics.jsonl", config, samples_seen=samples_seen, tracker_id="abc12345")
    Image.new("RGB", (8, 8)).save(folder / "samples.png")
    metrics.event("samples", samples_seen=0, path="samples.png")
    for seen in (64, 128):
        metrics.log({**NUMBERS, "samples_seen": seen})
    metrics.close()


def records(folder):
    """Kind → its records, of all offline runs below a folder."""
    found = {}
    for file in sorted(folder.glob("**/offline-run-*/run-*.wandb")):
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            found.setdefault(kind, []).append(getattr(record, kind))
    return found


def history(folder):
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item}
        for row in records(folder)["history"]
    ]


def test_a_key_for_another_server_is_no_key_for_this_one(tmp_path, server, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    logins = tmp_path / "home" / ".netrc"
    logins.parent.mkdir()
    key = f"login user password {'0' * 40}"
    logins.write_text(f"machine api.wandb.ai {key}\ndefault {key}\n")
    tracked(tmp_path / "run")
    assert server == [] and len(history(tmp_path)) == 3
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    address = os.environ["WANDB_BASE_URL"].removeprefix("http://")
    (tmp_path / "netrc").write_text(f"machine {address} {key}\n")
    tracked(tmp_path / "run2")
    assert server


@pytest.mark.parametrize(
    "environment, leaves_a_run",
    [
        ({"WANDB_MODE": "disabled"}, False),
        ({"WANDB_DISABLED": "true"}, False),
        ({"WANDB_MODE": "dryrun"}, True),  # wandb's older word for offline
        ({"WANDB_API_KEY": ""}, True),
    ],
    ids=str,
)
def test_no_request_is_sent_if_wandb_is_disabled_offline_or_has_no_key(
    tmp_path, server, monkeypatch, environment, leaves_a_run
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracked(tmp_path / "run")
    assert server == []
    assert bool(list(tmp_path.glob("run/wandb/*run-*"))) == leaves_a_run
    assert (tmp_path / "run" / "wandb.json").exists() == leaves_a_run


def test_the_settings_file_of_wandb_offline_is_obeyed(tmp_path, server):
    settings = tmp_path / "home" / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nmode = offline\n")
    tracked(tmp_path / "run")
    assert server == [] and len(records(tmp_path)["history"]) >= 2


def test_a_server_that_fails_gives_one_short_line_and_the_run_is_kept(tmp_path, server, caplog, capsys):
    with caplog.at_level("WARNING", logger="diptych"):
        tracked(tmp_path / "run")
    (line,) = [record.message for record in caplog.records]
    assert server and "out of reach" in line and "<" not in line and len(line) < 120 + 2 * len(str(tmp_path)) + 120
    said = capsys.readouterr()
    assert "offline; `wandb sync " in said.out and said.err == ""
    assert [row["learning/loss"] for row in history(tmp_path) if "learning/loss" in row] == [0.25, 0.25]


def test_the_environment_wins_over_our_defaults_and_the_config_over_both(tmp_path, server, monkeypatch):
    said = {
        "MODE": "offline", "PROJECT": "theirs", "NAME": "named", "ENTITY": "team", "RUN_GROUP": "group",
        "TAGS": "one,two", "NOTES": "why", "DIR": str(tmp_path / "elsewhere"), "RUN_ID": "chosen1",
    }  # fmt: skip
    tracked(tmp_path / "plain", wandb="offline")
    for name, value in said.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    tracked(tmp_path / "run")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "config"))
    tracked(tmp_path / "run2", wandb_project="ours", wandb_name="mine", wandb_tags=("three",))

    (plain,) = records(tmp_path / "plain")["run"]
    assert (plain.project, plain.display_name, plain.run_id) == ("diptych", "plain", "abc12345")
    (run,) = records(tmp_path / "elsewhere")["run"]
    assert (run.project, run.display_name, run.entity, run.run_group) == ("theirs", "named", "team", "group")
    assert (list(run.tags), run.notes, run.run_id) == (["one", "two"], "why", "chosen1")
    (run,) = records(tmp_path / "config")["run"]
    assert (run.project, run.display_name, run.entity) == ("ours", "mine", "team") and list(run.tags) == ["three"]
    assert server == []


def test_a_run_holds_its_first_batch_system_metrics_and_the_users_command(tmp_path, server, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB__STATS_SAMPLING_INTERVAL", "0.1")
    monkeypatch.setattr(sys, "argv", ["/somewhere/diptych/__main__.py", "train", "my.yaml"])
    tracked(tmp_path / "run")
    assert any("samples/_type" in row or "samples" in row for row in history(tmp_path))
    found = records(tmp_path)
    assert found["stats"]
    assert ("diptych", ["train", "my.yaml"]) in [(about.program, list(about.args)) for about in found["environment"]]
    assert server == []


DOT = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def test_a_start_without_the_environment_of_the_first_goes_on_with_its_run(tmp_path, server, monkeypatch):
    for name, value in {"MODE": "offline", "PROJECT": "theirs", "NAME": "named", "RUN_ID": "chosen1"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    tracked(tmp_path / "run")
    for name in ("PROJECT", "NAME", "RUN_ID"):
        monkeypatch.delenv(f"WANDB_{name}")
    tracked(tmp_path / "run", samples_seen=64)
    monkeypatch.setenv("WANDB_PROJECT", "another")
    monkeypatch.setenv("WANDB_RUN_ID", "another")
    log_results(RunDir(tmp_path / "run"), results(tmp_path / "run"), None)
    runs = records(tmp_path)["run"]
    assert {(run.project, run.display_name, run.run_id) for run in runs} == {("theirs", "named", "chosen1")}
    assert len(runs) == 3 and server == []


EVALUATION = {
    "zero_shot": {
        "animals": {
            "metrics": {"top1": 0.5, "top5": None},
            "classes": ["cat", "dog"],
            "wrong": [{"name": "1.png", "label": 0, "guesses": [[1, 0.75]], "picture": DOT}],
        }
    },
    "retrieval": {"pairs": {"metrics": {"image_to_text_r1": 0.25}, "seen_in_training": True}},
}


def results(folder):
    checkpoint = folder / "checkpoints" / "step_00000002"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "progress.json").write_text(json.dumps({"samples_seen": 128}))
    return {**EVALUATION, "model": str(checkpoint / "model")}


def test_results_of_an_evaluation_go_into_the_run_of_the_training(tmp_path, server, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen1")
    tracked(tmp_path / "run")
    monkeypatch.delenv("WANDB_RUN_ID")
    monkeypatch.delenv("WANDB_MODE")  # an evaluation does not send a run that was tracked offline
    capsys.readouterr()
    log_results(RunDir(tmp_path / "run"), results(tmp_path / "run"), None)
    assert {run.run_id for run in records(tmp_path)["run"]} == {"chosen1"}
    row = history(tmp_path)[-1]
    assert row["samples_seen"] == 128 and row["evaluation/animals/top1"] == 0.5
    commands = {" ".join(about.args) for about in records(tmp_path)["environment"] if about.program}
    assert len(commands) == 1  # the training's
    assert row["evaluation/pairs (seen in training)/image_to_text_r1"] == 0.25
    assert "`wandb sync " in capsys.readouterr().out and server == []


def test_a_run_that_is_trained_meanwhile_is_left_alone(tmp_path, server, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracked(tmp_path / "run")
    runs = len(records(tmp_path)["run"])
    lock = "import sys; from pathlib import Path; from diptych.files import locked\n"
    lock += "with locked(Path(sys.argv[1]), 'training'): print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", lock, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as training:
        assert training.stdout is not None and training.stdout.readline()
        capsys.readouterr()
        log_results(RunDir(tmp_path / "run"), results(tmp_path / "run"), None)
        assert "not logged while the run is trained" in capsys.readouterr().out
        training.communicate()
    assert len(records(tmp_path)["run"]) == runs
    log_results(RunDir(tmp_path / "run"), results(tmp_path / "run"), None)
    assert len(records(tmp_path)["run"]) == runs + 1


def test_an_untracked_run_stays_untracked_and_a_broken_record_fails_no_evaluation(tmp_path, server, capsys):
    tracked(tmp_path / "run", wandb="off")
    log_results(RunDir(tmp_path / "run"), results(tmp_path / "run"), None)
    assert capsys.readouterr().out == "" and not list(tmp_path.glob("run/wandb*"))
    (tmp_path / "run" / "wandb.json").write_text('{"id": "abc", "is_offline": true}')
    (tmp_path / "run" / "config.yaml").write_text("tracking: [")
    log_results(RunDir(tmp_path / "run"), results(tmp_path / "run"), None)
    assert len(capsys.readouterr().out.splitlines()) == 1 and server == []


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_build_obeys_the_same_rules(tmp_path, server, mode):
    (tmp_path / "table.csv").write_text("url,caption\nhttp://127.0.0.1:1/1.jpg,one\n")
    command = [sys.executable, "-m", "diptych_shards", "build", "table.csv", "out", "--wandb", "mine"]
    environment = {**os.environ, "WANDB_MODE": mode, "WANDB_NAME": "named"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert server == []
    if mode == "disabled":
        assert not Path(tmp_path / "wandb").exists() and "wandb" not in done.stderr
    else:
        (run,) = records(tmp_path)["run"]
        assert (run.project, run.display_name, run.job_type) == ("mine", "named", "build")
        assert done.stderr.count("offline; `wandb sync ") == 2
