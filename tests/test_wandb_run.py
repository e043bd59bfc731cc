"""Which wandb run is opened, and what is sent: real wandb, and a server on this machine that counts requests."""

import http.server
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest

from diptych.config.schema import DataConfig, RunConfig, TrackingConfig, TrainingConfig
from diptych.config.values import dump_config
from diptych.run_dir import RunDir
from diptych.training.metrics import Metrics
from diptych.training.wandb_results import log_results
from tests.training.test_metrics import NUMBERS, wandb_records

PAGE = b"<!DOCTYPE html><html><body>not here\n" + b"<p>go away</p>\n" * 100


@contextmanager
def refusing_server(patch: pytest.MonkeyPatch, home: Path) -> Iterator[list[str]]:
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
        patch.delenv(name)
    patch.setenv("HOME", str(home))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as listening:
        threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        patch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.server_port}")
        patch.setenv("WANDB_API_KEY", "0" * 40)
        yield asked
        listening.shutdown()


@pytest.fixture
def server(monkeypatch, tmp_path):
    with refusing_server(monkeypatch, tmp_path / "home") as asked:
        yield asked


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
    return history_of(records(folder))


def history_of(found):
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item}
        for row in found["history"]
    ]


KEY = f"login user password {'0' * 40}"


@pytest.mark.parametrize("environment", [{"WANDB_MODE": "disabled"}, {"WANDB_DISABLED": "true"}], ids=str)
def test_no_request_is_sent_and_nothing_is_kept_if_wandb_is_disabled(tmp_path, server, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracked(tmp_path / "run")
    assert server == [] and sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES_OF_A_RUN


FILES_OF_A_RUN = ["config.yaml", "metrics.jsonl", "samples.png"]


def test_an_empty_key_and_one_for_another_server_are_no_key_for_this_one(tmp_path, server, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "")
    logins = tmp_path / "home" / ".netrc"
    logins.parent.mkdir()
    logins.write_text(f"machine api.wandb.ai {KEY}\ndefault {KEY}\n")
    tracked(tmp_path / "run")
    assert server == [] and len(history(tmp_path)) == 3
    (run,) = records(tmp_path)["run"]
    assert (run.project, run.display_name, run.run_id) == ("diptych", "run", "abc12345")


def test_the_settings_file_of_wandb_offline_is_obeyed(tmp_path, server):
    settings = tmp_path / "home" / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nmode = dryrun\n")  # wandb's older word for offline
    tracked(tmp_path / "run")
    assert server == [] and len(records(tmp_path)["history"]) >= 2
    assert (tmp_path / "run" / "wandb.json").exists()


def test_a_server_that_fails_gives_one_short_line_and_the_run_is_kept(tmp_path, server, monkeypatch, caplog, capsys):
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text(f"machine {os.environ['WANDB_BASE_URL'].removeprefix('http://')} {KEY}\n")
    with caplog.at_level("WARNING", logger="diptych"):
        tracked(tmp_path / "run")
    (line,) = [record.message for record in caplog.records]
    assert server and "out of reach" in line and "<" not in line and len(line) < 120 + 2 * len(str(tmp_path)) + 120
    said = capsys.readouterr()
    assert "offline; `wandb sync " in said.out and said.err == ""
    assert [row["learning/loss"] for row in history(tmp_path) if "learning/loss" in row] == [0.25, 0.25]


ENVIRONMENT = {
    "MODE": "offline", "PROJECT": "theirs", "NAME": "named", "ENTITY": "team", "RUN_GROUP": "group",
    "TAGS": "one,two", "NOTES": "why", "RUN_ID": "chosen1",
}  # fmt: skip


def test_the_config_wins_over_the_environment(tmp_path, server, monkeypatch):
    for name, value in {**ENVIRONMENT, "DIR": str(tmp_path / "elsewhere")}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    tracked(tmp_path / "run", wandb_project="ours", wandb_name="mine", wandb_tags=("three",))
    (run,) = records(tmp_path / "elsewhere")["run"]
    assert (run.project, run.display_name, run.entity) == ("ours", "mine", "team") and list(run.tags) == ["three"]
    assert server == []


DOT = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
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


LOCK = """
import sys
from pathlib import Path
from diptych.locks import locked
with locked(Path(sys.argv[1]), "training"):
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A run that is started offline with settings of the environment, goes on without them, and is evaluated twice:
    while it is trained and afterwards. The records of the first start, of all, and what evaluations printed."""
    folder = tmp_path_factory.mktemp("story")
    run = folder / "run"
    with pytest.MonkeyPatch.context() as patch, refusing_server(patch, folder / "home") as asked:
        for name, value in ENVIRONMENT.items():
            patch.setenv(f"WANDB_{name}", value)
        patch.setenv("WANDB__STATS_SAMPLING_INTERVAL", "0.1")
        patch.setattr(sys, "argv", ["/somewhere/diptych/__main__.py", "train", "my.yaml"])
        tracked(run)
        first = records(folder)
        for name in ("PROJECT", "NAME", "RUN_ID"):
            patch.delenv(f"WANDB_{name}")
        tracked(run, samples_seen=64)
        patch.delenv("WANDB_MODE")  # an evaluation does not send a run that was tracked offline
        patch.setenv("WANDB_PROJECT", "another")
        patch.setenv("WANDB_RUN_ID", "another")
        said = []
        with subprocess.Popen(
            [sys.executable, "-c", LOCK, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as training:
            assert training.stdout is not None and training.stdout.readline()
            with redirect_stdout(io.StringIO()) as printed:
                log_results(RunDir(run), results(run), None)
            said.append(printed.getvalue())
            assert len(records(folder)["run"]) == 2
            training.communicate()
        with redirect_stdout(io.StringIO()) as printed:
            log_results(RunDir(run), results(run), None)
        said.append(printed.getvalue())
        assert asked == []
        return first, records(folder), said


def test_the_environment_wins_over_our_defaults(story):
    (run,) = story[0]["run"]
    assert (run.project, run.display_name, run.entity, run.run_group) == ("theirs", "named", "team", "group")
    assert (list(run.tags), run.notes, run.run_id) == (["one", "two"], "why", "chosen1")


def test_a_run_holds_its_first_batch_system_metrics_and_the_users_command(story):
    found = story[0]
    assert any("samples/_type" in row or "samples" in row for row in history_of(found))
    assert found["stats"]
    assert ("diptych", ["train", "my.yaml"]) in [(about.program, list(about.args)) for about in found["environment"]]


def test_a_start_without_the_environment_of_the_first_goes_on_with_its_run(story):
    runs = story[1]["run"]
    assert {(run.project, run.display_name, run.run_id) for run in runs} == {("theirs", "named", "chosen1")}
    assert len(runs) == 3, "two starts and an evaluation"


def test_results_of_an_evaluation_go_into_the_run_of_the_training(story):
    row = history_of(story[1])[-1]
    assert row["samples_seen"] == 128 and row["evaluation/animals/top1"] == 0.5
    assert row["evaluation/pairs (seen in training)/image_to_text_r1"] == 0.25
    commands = {" ".join(about.args) for about in story[1]["environment"] if about.program}
    assert commands == {"train my.yaml"}
    assert "`wandb sync " in story[2][1]


def test_a_run_that_is_trained_meanwhile_is_left_alone(story):
    assert "not logged while the run is trained" in story[2][0] and "`wandb sync " not in story[2][0]


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
