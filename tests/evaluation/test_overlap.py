"""`diptych evaluate --overlap`: copies of training pictures among those of an evaluation, and the accuracy without."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from scipy.stats import binom

from diptych import cli
from diptych.evaluation.intervals import wilson
from diptych.evaluation.overlap import overlap
from diptych.evaluation.training_data import Seen
from diptych.terminal import percent_range
from diptych_shards.cli import main as shards_main
from tests.data_prep.made_pictures import encoded
from tests.data_prep.select.shards import jpeg, photograph, verdict, write_shards
from tests.test_encoder import save_checkpoint


@pytest.fixture
def run_dir(tmp_path):
    """A run that was trained on photographs 0 to 7 in two folders of shards."""
    folders = [
        write_shards(tmp_path / f"train{number}", [[(jpeg(4 * number + each), "a photo", {}) for each in range(4)]])
        for number in range(2)
    ]
    save_checkpoint(tmp_path / "run", 7)
    (tmp_path / "run" / "config.yaml").write_text(f"data: {{train: [{folders[0]}, {folders[1]}]}}")
    return tmp_path / "run"


def tree(folder):
    """Photographs 0 to 3 recoded, 4 and 5 at half the size, and 100 to 105, which are new; two classes."""
    pictures = [jpeg(seed, quality=60) for seed in range(4)]
    pictures += [encoded(photograph(seed).resize((32, 32)), "PNG") for seed in (4, 5)]
    pictures += [jpeg(seed) for seed in range(100, 106)]
    for number, picture in enumerate(pictures):
        path = folder / ("odd" if number % 2 else "even") / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    return folder


def evaluate(*words):
    cli.main(["evaluate", *map(str, words), "--device", "cpu"])


def test_copies_that_were_recoded_or_resized_are_found_and_the_accuracy_without_them_is_given(
    run_dir, tmp_path, capsys
):
    data = tree(tmp_path / "data")
    evaluate(run_dir, "--zero-shot", data, "--overlap", "--report")
    (result,) = json.loads((run_dir / "evaluation.json").read_text())["zero_shot"].values()
    seen = np.array([int(name[-6:-4]) < 6 for name, _, _ in result["predictions"]])
    right = np.array(result["ranks"]) == 0
    found = result["overlap"]
    assert result["share_seen_in_training"] == found["share"] == 0.5 and result["seen_in_training"] is True
    assert (found["all"], found["clean"], found["overlap"]) == (right.mean(), right[~seen].mean(), right[seen].mean())
    assert found["difference"] == pytest.approx(right.mean() - right[~seen].mean())

    numbers = {(int(pair["name"][-6:-4]), pair["training_name"]) for pair in found["pairs"]}
    assert numbers == {(n, f"00000.tar/00000{n % 4:04d}") for n in range(6)}
    printed = capsys.readouterr().out
    assert "overlap with the training data" in printed
    page = (run_dir / "report.html").read_text()
    for key in ("all", "clean", "overlap"):
        assert (between := percent_range(*found[f"{key}_interval"])) in printed and f"95 % interval {between} %" in page
    assert "What it had seen before" in page and found["pairs"][0]["training_picture"] in page

    # Without the option only equal files count, and there are none.
    evaluate(run_dir, "--zero-shot", data)
    (result,) = json.loads((run_dir / "evaluation.json").read_text())["zero_shot"].values()
    assert result["share_seen_in_training"] == 0.0 and "overlap" not in result


def test_hashes_are_shared_with_dedup_and_not_made_again(run_dir, tmp_path):
    shards = tmp_path / "train0"
    shards_main(["dedup", str(shards)])
    (file,) = (shards / "_index" / "select" / "hashes").iterdir()
    before = file.stat()
    evaluate(run_dir, "--zero-shot", tree(tmp_path / "data"), "--overlap")
    assert file.stat() == before
    # And those made here are used by dedup.
    (other,) = (tmp_path / "train1" / "_index" / "select" / "hashes").iterdir()
    before = other.stat()
    shards_main(["dedup", str(tmp_path / "train1")])
    assert other.stat() == before and all(kept for kept, *_ in verdict(tmp_path / "train1", "dedup").values())


def test_recall_is_given_without_the_copies_too(run_dir, tmp_path):
    folder = tmp_path / "captioned"
    folder.mkdir()
    for number, picture in enumerate([jpeg(0, quality=50), jpeg(200), jpeg(201)]):
        (folder / f"{number}.jpg").write_bytes(picture)
        (folder / f"{number}.txt").write_text(f"photo number {number}")
    evaluate(run_dir, "--retrieval", folder, "--overlap")
    (result,) = json.loads((run_dir / "evaluation.json").read_text())["retrieval"].values()
    found = result["overlap"]
    right = np.array(result["ranks"]["image_to_text"]) == 0
    assert found["metric"] == "image_to_text_r1" and found["pictures"] == 1
    assert (found["overlap"], found["clean"]) == (right[0], right[1:].mean())


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ("s3://bucket/shards", "cannot be searched: s3://bucket/shards is not on this machine"),
        ("/nowhere/shards", "cannot be searched: .*/nowhere/shards"),
    ],
)
def test_training_data_that_cannot_be_searched_are_a_mistake(run_dir, tmp_path, capsys, train, says):
    (run_dir / "config.yaml").write_text(f"data: {{train: {train}}}")
    with pytest.raises(SystemExit) as stopped:
        evaluate(run_dir, "--zero-shot", tree(tmp_path / "data"), "--overlap")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert re.search(says, error)


def test_the_numbers_are_those_of_the_paper():
    """One-tailed binomial test of the overlap against the accuracy on clean pictures, Clopper-Pearson interval."""
    ranks = np.array([0] * 60 + [1] * 40 + [0] * 9 + [1])
    mask = np.arange(110) >= 100
    found = overlap("zero_shot", {"ranks": ranks.tolist()}, Seen(mask, np.full(110, -1)))
    assert (found["clean"], found["overlap"], found["pictures"]) == (0.6, 0.9, 10)
    assert found["difference"] == pytest.approx(69 / 110 - 0.6)
    assert found["p_value"] == pytest.approx(binom.sf(8, 10, 0.6))
    assert found["all_interval"] == list(wilson(69, 110)) and found["clean_interval"] == list(wilson(60, 100))
    # The bounds of Clopper and Pearson are the shares at which the count is just too high or too low by chance.
    low, high = found["overlap_interval"]
    assert binom.sf(8, 10, low) == pytest.approx(0.025) and binom.cdf(9, 10, high) == pytest.approx(0.025)
    assert found["interval"] == pytest.approx([10 / 110 * (bound - 0.6) for bound in (low, high)])


@pytest.mark.parametrize("seen", [0, 4])
def test_nothing_is_claimed_of_a_part_without_pictures(seen):
    mask = np.arange(4) < seen
    found = overlap("zero_shot", {"ranks": [0, 0, 1, 1]}, Seen(mask, np.full(4, -1)))
    assert found["difference"] is None and found["p_value"] is None
    assert (found["clean"] is None) == (seen == 4) and (found["overlap"] is None) == (seen == 0)
