"""`diptych compare` as a user calls it, on runs with real results of small models."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from diptych import cli
from diptych.evaluation.data_sets import data_set, open_data, prompts_for
from diptych.evaluation.evaluator import Result
from diptych.evaluation.features import Features
from diptych.evaluation.pictures import fingerprint
from diptych.evaluation.results_file import FORMAT, write_results
from diptych.evaluation.zero_shot import zero_shot
from diptych.files import short_names
from diptych.locks import locked
from diptych.side_by_side.curves import curves
from diptych.side_by_side.runs import differing_settings, read_runs
from tests.evaluation.colours import COLOURS, ColourEncoder, picture, write_tree
from tests.test_report import HOSTILE, Page


class Confused(ColourEncoder):
    """Takes cyan for red and red for cyan."""

    def embed_texts(self, texts):
        swapped = {"red": "cyan", "cyan": "red"}
        return super().embed_texts([re.sub("red|cyan", lambda found: swapped[found[0]], text) for text in texts])


def result(encoder, data) -> Result:
    pictures = open_data(str(data), "labels")
    measured = zero_shot(Features(encoder), data_set(pictures, prompts_for([pictures], None)))
    return {**measured, "location": str(data), "fingerprint": fingerprint(pictures, np.arange(len(pictures)))}


def write_run(folder, encoder=None, data=None, *, batch=128, step_seconds=10):
    """A run of ten logged steps; with an encoder, it was evaluated on the data."""
    folder.mkdir(parents=True)
    training = f"{{total_samples: {10 * batch}, global_batch_size: {batch}}}"
    (folder / "config.yaml").write_text(f"run_dir: {folder}\ndata: {{train: shards}}\ntraining: {training}\n")
    steps = [
        {"samples_seen": batch * step, "loss": 5 / step, "gradient_norm": 1.0, "time": 1e9 + step_seconds * step}
        for step in range(1, 11)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in steps))
    if encoder:
        sections = {"zero_shot": {"walls": result(encoder, data)}, "templates": ["{}"], "model": str(folder)}
        write_results(folder / "evaluation.json", {"format": FORMAT, **sections})
    return folder


@pytest.fixture
def data(tmp_path):
    return write_tree(tmp_path / "walls", list(COLOURS), copies=5)


@pytest.fixture
def runs(tmp_path, data):
    """A model that is right about all colours, and one that confuses two of six."""
    return [
        write_run(tmp_path / "runs" / "good", ColourEncoder(), data),
        write_run(tmp_path / "runs" / "bad", Confused(), data, batch=64, step_seconds=20),
    ]


def compare(tmp_path, *words):
    page, document = tmp_path / "page.html", tmp_path / "page.json"
    cli.main(["compare", *map(str, words), "--page", str(page), "--json", str(document)])
    return page.read_text(), json.loads(document.read_text())


def fails(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", *map(str, words)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    return error


def test_results_are_tested_in_pairs_and_examples_are_what_only_one_gets_right(tmp_path, runs, capsys):
    page, document = compare(tmp_path, *runs)
    (top1,) = [each for each in document["results"] if each["metric"] == "top1"]
    found = top1["runs"]["bad"]
    assert (top1["runs"]["good"]["value"], found["value"]) == (1, pytest.approx(2 / 3))
    assert found["difference"]["value"] == pytest.approx(-1 / 3)
    # Ten answers were lost and none was gained.
    assert found["difference"]["p_value"] == pytest.approx(2 / 2**10)
    low, high = found["difference"]["interval"]
    assert low < -1 / 3 < high < 0

    assert "10 pictures right only in" in page and "right only in <b><bdi>bad</bdi>" not in page
    wrong = re.findall(r"<figcaption><bdi>(\w+)</bdi><br><em><bdi>(\w+)</bdi>", page)
    assert len(wrong) == 8 and set(wrong) == {("red", "cyan"), ("cyan", "red")}
    printed = capsys.readouterr().out
    assert "-33.3" in printed and max(map(len, printed.split("json:")[0].splitlines())) <= 80


def test_numbers_are_in_per_cent_unless_they_are_no_shares_and_none_is_left_out(tmp_path, runs, capsys):
    for run in runs:
        document = json.loads((run / "evaluation.json").read_text())
        for evaluator, metrics in (
            ("few_shot", {"top1_2_shots": 0.9776, "zero_shot_equals_shots": 3.25}),
            ("compositional", {"text_score": 0.625}),
            ("validation", {"loss": 1.75}),
        ):
            document[evaluator] = {"walls": {"pictures": 8, "metrics": metrics}}
        write_results(run / "evaluation.json", document)
    page, _ = compare(tmp_path, *runs)
    printed = capsys.readouterr().out
    assert "few-shot:" in printed
    for shown in ("97.8 %", "3.25", "62.5 %", "1.75"):
        assert printed.count(shown) == 2
        assert page.count(f"<td>{shown}".replace(" %", "\u202f%")) == 2


def test_only_settings_that_differ_are_shown_and_missing_ones_have_their_defaults(tmp_path, runs):
    config = runs[1] / "config.yaml"
    config.write_text(config.read_text() + "optimizer: {beta1: 0.9, weight_decay: 0.125}\n")
    found = dict(differing_settings(read_runs(runs)))
    assert found["training.global_batch_size"] == ["128", "64"] and found["training.total_samples"] == ["1280", "640"]
    assert found["optimizer.weight_decay"][1] == "0.125"
    assert not found.keys() & {"run_dir", "data.train", "optimizer.beta1", "training.seed"}
    page, _ = compare(tmp_path, *runs)
    assert "batches of different sizes (64, 128)" in page


def test_curves_run_over_samples_and_over_time_without_pauses(tmp_path, runs):
    records = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    for record in records[5:]:
        record["time"] += 86_400
    (runs[0] / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    drawn = curves(read_runs(runs))
    over_samples, over_time = (
        next(chart for chart in each if chart.title == "Loss") for each in (drawn.over_samples, drawn.over_time)
    )
    assert [line.label for line in over_samples.lines] == [line.label for line in over_time.lines] == ["good", "bad"]
    assert len({line.colour for line in over_samples.lines}) == 2
    # The first saw twice as many samples, in half the time: 80 s without the pause, of the other's 180 s.
    ends = [[line.last[0] - 44 for line in chart.lines] for chart in (over_samples, over_time)]
    assert ends[0][0] == pytest.approx(2 * ends[0][1], rel=0.01)
    assert ends[1][0] / ends[1][1] == pytest.approx(80 / 180, rel=0.01)
    assert over_time.x_label == "minutes of training"


def test_a_line_keeps_its_colour_where_another_run_has_none(tmp_path, runs):
    records = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        del record["gradient_norm"]
    (runs[0] / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    drawn = {chart.title: chart for chart in curves(read_runs(runs)).over_samples}
    assert drawn["Gradient norm"].lines[0].colour == drawn["Loss"].lines[1].colour


def test_pictures_that_are_gone_and_results_of_earlier_versions_are_explained(tmp_path, runs, data):
    shutil.rmtree(data)
    page, _ = compare(tmp_path, *runs)
    assert "10 pictures right only in" in page
    assert f"{data}/red/4.png cannot be read" in page

    for run in runs:
        document = json.loads((run / "evaluation.json").read_text())
        del document["zero_shot"]["walls"]["location"], document["zero_shot"]["walls"]["ranks"]
        write_results(run / "evaluation.json", document)
    page, document = compare(tmp_path, *runs)
    assert "do not say where its pictures are" in page
    assert all(each["runs"]["bad"]["difference"] is None for each in document["results"])


def test_a_run_without_steps_or_results_has_its_place_on_the_page(tmp_path, runs, capsys):
    young = write_run(tmp_path / "runs" / "young")
    (young / "metrics.jsonl").unlink()
    page, document = compare(tmp_path, runs[0], young, runs[1])
    assert "3 runs" in page and "it has not logged a step yet" in page and "it has no results" in page
    assert [each["name"] for each in document["runs"]] == ["good", "young", "bad"]
    assert document["results"][0]["runs"].keys() == {"good", "bad"}
    assert "young: it has no results" in capsys.readouterr().out


def test_a_run_that_is_not_finished_is_said_to_be_so(tmp_path, runs):
    lines = (runs[0] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (runs[0] / "metrics.jsonl").write_text("".join(lines[:6]))
    assert [run.notes for run in read_runs(runs)] == [("it stopped after 768 of its 1,280 samples",), ()]
    with locked(runs[0], "training"):
        assert read_runs(runs)[0].notes == ("it is still training, at 768 of its 1,280 samples",)


def test_different_data_sets_are_shown_and_not_tested(tmp_path, runs):
    other = write_tree(tmp_path / "others", ["red", "cyan"])
    shutil.rmtree(runs[1])
    write_run(runs[1], Confused(), other)
    page, document = compare(tmp_path, *runs)
    (top1,) = [each for each in document["results"] if each["metric"] == "top1"]
    assert top1["runs"].keys() == {"good", "bad"} and top1["runs"]["bad"]["difference"] is None
    assert "Right in one" not in page


def test_other_pictures_with_the_same_names_are_not_taken_for_the_same(tmp_path, runs, data):
    shutil.copytree(data, tmp_path / "moved")
    (tmp_path / "darker" / "walls").mkdir(parents=True)
    for file in data.rglob("*.png"):
        colour = [value // 2 for value in COLOURS[file.parent.name]]
        path = tmp_path / "darker" / "walls" / file.relative_to(data)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(colour))
    for folder, is_tested in ((tmp_path / "moved", True), (tmp_path / "darker" / "walls", False)):
        shutil.rmtree(runs[1])
        write_run(runs[1], Confused(), folder)
        page, document = compare(tmp_path, *runs)
        (top1,) = [each for each in document["results"] if each["metric"] == "top1"]
        assert (top1["runs"]["bad"]["difference"] is not None) == ("Right in one" in page) == is_tested


def test_hostile_names_stay_text(tmp_path, data):
    folders = [tmp_path / "runs" / f"{place}{name.replace('/', '_')}" for place, name in enumerate(HOSTILE)]
    page, _ = compare(tmp_path, *(write_run(folder, Confused(), data) for folder in folders))
    read = Page(page)
    assert "script" not in read.elements and not any(name.startswith("on") for _, name, _ in read.attributes)
    assert all(value.startswith("data:image/") for tag, name, value in read.attributes if name == "src")


def test_mistakes_are_one_line(tmp_path, runs, data, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "give at least two" in fails(capsys, runs[0])
    assert "are the same run" in fails(capsys, runs[0], runs[1], runs[0] / ".." / "good")
    assert f"did you mean {tmp_path}/runs/good?" in fails(capsys, tmp_path / "runs" / "goood", runs[1])
    assert "is not a run" in fails(capsys, runs[0], data)
    assert "is a file" in fails(capsys, runs[0], runs[1] / "config.yaml")
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").touch()
    assert "is a model folder" in fails(capsys, runs[0], model)
    (runs[1] / "evaluation.json").write_text("{")
    assert "is not an evaluation of format 1; move it away, and evaluate the run again" in fails(capsys, *runs)
    assert not list(tmp_path.rglob("comparison.html"))


def test_the_page_goes_next_to_the_first_run_and_the_last_line_says_where(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs[0])
    cli.main(["compare", ".", "../bad"])
    assert (runs[0].parent / "comparison.html").is_file()
    assert capsys.readouterr().out.splitlines()[-1] == "page: ../comparison.html"


def test_a_checkpoint_stands_for_its_run(tmp_path, runs):
    checkpoint = runs[1] / "checkpoints" / "step_00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").touch()
    assert [run.name for run in read_runs([runs[0], checkpoint])] == ["good", "bad"]


def test_names_are_as_short_as_they_can_be(tmp_path):
    folders = [tmp_path / name for name in ("a/runs/x", "b/runs/x", "b/runs/y")]
    assert short_names(folders) == ["a/runs/x", "b/runs/x", "y"]
