"""`diptych calibrate` and what `classify`, `export` and the report make of it, by an encoder that knows colours."""

from __future__ import annotations

import json

import numpy as np
import pytest

from diptych import cli
from tests.evaluation.colours import COLOURS, ColourEncoder, write_tree
from tests.evaluation.test_verbs import captioned, fails, noise
from tests.test_encoder import save_checkpoint


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.encoder.load", lambda *where, **which: ColourEncoder())
    save_checkpoint(tmp_path / "run", 7)
    return tmp_path / "run"


@pytest.fixture
def labelled(tmp_path):
    return write_tree(tmp_path / "labelled", list(COLOURS), copies=20)


def classify(capsys, *words):
    capsys.readouterr()
    cli.main([str(word) for word in ("classify", *words, "--json")])
    return json.loads(capsys.readouterr().out)


def probabilities(answer):
    return {each["label"]: each["probability"] for each in answer["labels"]}


def test_the_calibrated_temperature_is_kept_with_the_weights_and_used_by_classify(run_dir, labelled, tmp_path, capsys):
    picture = labelled / "red" / "0.png"
    before = probabilities(classify(capsys, run_dir, picture, "--labels", "red, cyan"))
    cli.main(f"calibrate {run_dir} --zero-shot {labelled} --device cpu".split())
    printed = capsys.readouterr().out

    kept = json.loads((run_dir / "checkpoints/step_00000007/model/calibration.json").read_text())
    temperature = kept["temperature"]
    assert temperature["data"] == ["labelled"]
    assert (temperature["pictures_fitted"], temperature["pictures_measured"]) == (60, 60)
    assert temperature["after"]["nll"] < temperature["before"]["nll"]
    assert max(map(len, printed.split("kept in")[0].splitlines())) <= 80
    assert "expected calibration error, 15 bins" in printed

    after = probabilities(classify(capsys, run_dir, picture, "--labels", "red, cyan"))
    odds = np.log([each["red"] / each["cyan"] for each in (before, after)])
    factor = temperature["logit_scale"] / ColourEncoder.logit_scale
    assert odds[1] == pytest.approx(odds[0] * factor, rel=1e-6)

    cli.main(f"evaluate {run_dir} --zero-shot {labelled} --report --device cpu".split())
    page = (run_dir / "report.html").read_text()
    assert "How sure it is" in page
    assert page.count('<circle class="after"') == len(temperature["after"]["bins"])
    assert "false alarm" in page

    cli.main(f"export {run_dir} {tmp_path}/exported".split())
    assert probabilities(classify(capsys, tmp_path / "exported", picture, "--labels", "red, cyan")) == after


def test_labels_are_judged_by_themselves_with_a_null_distribution_from_captions(run_dir, labelled, tmp_path, capsys):
    for folder in labelled.iterdir():
        for file in folder.iterdir():
            file.with_suffix(".txt").write_text(f"a {folder.name} wall")
    assert "has no null distribution" in fails(
        capsys, "classify", run_dir, labelled, "--labels", "red", "--independent"
    )
    cli.main(f"calibrate {run_dir} --retrieval {labelled} --device cpu".split())
    words = (run_dir, labelled / "red" / "0.png", "--independent", "--template", "{}")

    alone = classify(capsys, *words, "--labels", "red")
    among = classify(capsys, *words, "--labels", "red, blue, cyan")
    assert probabilities(alone)["red"] == probabilities(among)["red"]  # not divided among the labels
    assert alone["none_of_these"] == (not alone["labels"][0]["holds"])
    assert alone["stated_rate"] == pytest.approx(1 / 61)
    assert alone["none_of_these"] == (alone["lowest_rate_of_list"] > alone["stated_rate"])
    every = classify(capsys, *words, "--labels", "red, blue, cyan", "--false-alarm-rate", "0.999")
    assert sum(each["holds"] for each in every["labels"]) >= sum(each["holds"] for each in among["labels"])

    noise(0).save(tmp_path / "noise.png")
    cli.main([str(word) for word in ("classify", run_dir, tmp_path / "noise.png", *words[2:], "--labels", "red")])
    assert "at a false-alarm rate of 1.6 % over all labels: " in capsys.readouterr().out
    rate = fails(capsys, "classify", *words, "--labels", "red", "--false-alarm-rate", "0.001")
    assert "expected a share below 1, and from 0.016" in rate
    fails(capsys, "classify", *words, "--labels", "red", "--false-alarm-rate", "nan")


def test_a_later_calibration_replaces_only_what_it_measured(run_dir, labelled, capsys):
    cli.main(f"calibrate {run_dir} --zero-shot {labelled} --device cpu".split())
    folder = run_dir / "checkpoints/step_00000007/model"
    first = json.loads((folder / "calibration.json").read_text())
    for file in labelled.rglob("*.png"):
        file.with_suffix(".txt").write_text(f"a {file.parent.name} wall")
    cli.main(f"calibrate {run_dir} --retrieval captions={labelled} --device cpu".split())

    second = json.loads((folder / "calibration.json").read_text())
    assert second["temperature"] == first["temperature"]
    assert second["independent"]["data"] == ["captions"]
    assert json.loads((run_dir / "evaluation.json").read_text())["calibration"] == {
        part: second[part] for part in ("temperature", "independent")
    }


def test_mistakes_of_calibrate_are_one_line(run_dir, tmp_path, capsys):
    assert "nothing to calibrate with" in fails(capsys, "calibrate", run_dir)
    assert "6 pictures are too few" in fails(capsys, "calibrate", run_dir, "--retrieval", captioned(tmp_path / "few"))
    folder = run_dir / "checkpoints/step_00000007/model"
    assert not (folder / "calibration.json").exists()
    picture = tmp_path / "few" / "red.png"
    for damage in ("[]", "{", '{"format": "diptych-calibration", "version": 2}'):
        (folder / "calibration.json").write_text(damage)
        assert "calibration.json is not a calibration" in fails(
            capsys, "classify", run_dir, picture, "--labels", "red, blue"
        )
    (folder / "calibration.json").unlink()
    words = ("classify", run_dir, picture, "--labels", "red")
    (folder / "null_distribution.npz").write_bytes(b"PK\x03\x04")
    assert "has no null distribution" in fails(capsys, *words, "--independent")
    (folder / "calibration.json").write_text('{"format": "diptych-calibration", "version": 1, "independent": {}}')
    assert "null_distribution.npz cannot be read" in fails(capsys, *words, "--independent")
    assert "belongs to --independent" in fails(capsys, *words, "--labels", "blue", "--false-alarm-rate", "0.1")
