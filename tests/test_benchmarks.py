"""The code of the benchmarks, without the libraries that they compare with."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import sklearn
from benchmarks import objectives, reading
from benchmarks.efficiency import tasks
from benchmarks.efficiency.__main__ import (
    LEVERS,
    PLAIN,
    Trial,
    best_rate,
    config_of,
    curve_of,
    numbers_of,
    our_recipe,
    reached,
)
from benchmarks.evaluate.data import Sizes, write_captioned, write_labelled
from benchmarks.loader.shards import KINDS, write_shard
from benchmarks.shards.measure import measure
from benchmarks.shards.pictures import make_pictures
from benchmarks.shards.quality import Quality, num_stored
from benchmarks.shards.server import Host, Web

from diptych.config.load import load_config
from diptych.data.picture_safety import open_picture
from diptych.data.shards import open_index
from diptych.evaluation.data_sets import data_set, open_data, prompts_for
from tests.warm import Warm

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = sorted((Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg"))
ROWS = {0: Host.GOOD, 1: Host.GOOD, 2: Host.GONE, 3: Host.PARKED, 4: Host.REFUSING, 5: Host.RESETTING, 6: Host.BROKEN}


def test_shards_are_built_from_a_web_of_good_and_bad_hosts_over_tls_and_without_and_measured(tmp_path):
    pictures = make_pictures(6, PHOTOGRAPHS)
    with Web(pictures, tmp_path, num_hosts=2) as web:
        urls = [web.url(row, host) for row, host in ROWS.items()] + [web.url(7, tls=True)]
        table = pyarrow.table({"url": urls, "caption": [f"number {row}" for row in range(len(urls))]})
        pyarrow.parquet.write_table(table, tmp_path / "table.parquet")
        command = [sys.executable, "-m", "diptych_shards", "build", str(tmp_path / "table.parquet")]
        command += [str(tmp_path / "out"), "--processes", "1", "--retries", "0", "--ca-file", str(web.ca_file)]
        command += ["--allow-network", "127.0.0.0/8", "--resize-mode", "keep_ratio", "--keep-order"]
        path = os.pathsep.join((str(ROOT / "src"), str(ROOT / "data_prep")))
        cost = measure(command, {**os.environ, "PYTHONPATH": path}, tmp_path / "log.txt")

    numbers = [web.picture_number(row) for row in range(len(urls))]
    assert num_stored(tmp_path / "out") == 3, (tmp_path / "log.txt").read_text()
    assert Quality(pictures).psnr(tmp_path / "out", numbers)["5th_percentile"] > 30
    assert cost.cpu_seconds > 0 and cost.wall_seconds > 0 and cost.peak_megabytes > 20


def test_shards_of_each_kind_are_made_from_photographs_for_the_loader(tmp_path):
    for kind in KINDS:
        write_shard(tmp_path / kind.name, kind, 4, PHOTOGRAPHS)
        index = open_index(tmp_path / kind.name)
        members = [index.read(sample) for sample in index.samples()]
        sides = [min(open_picture(each["jpg"]).size) for each in members]
        assert len(members) == 4 and all(kind.shorter_sides[0] <= side <= kind.shorter_sides[1] for side in sides)
        assert all(each["txt"] for each in members)


def test_both_sides_of_the_evaluation_get_pictures_with_the_same_classes_and_captions(tmp_path):
    sizes = Sizes(pictures=6, classes=3, templates=2, captions=10)
    write_labelled(tmp_path / "labelled", sizes, PHOTOGRAPHS)
    write_captioned(tmp_path / "captioned", sizes, PHOTOGRAPHS)
    pictures = open_data(str(tmp_path / "labelled" / "test"), "labels")
    prompts = prompts_for([pictures], str(tmp_path / "labelled" / "prompts.yaml"))
    theirs = (tmp_path / "labelled" / "classnames.txt").read_text().splitlines()
    assert [each.names for each in prompts.classes] == [(name,) for name in theirs] and len(theirs) == 3
    templates = (tmp_path / "labelled" / "zeroshot_classification_templates.txt").read_text().splitlines()
    assert [template.format(c="cat") for template in templates] == [t.replace("{}", "cat") for t in prompts.templates]
    assert len(data_set(pictures, prompts).pictures) == 6
    captions = open_data(str(tmp_path / "captioned" / "test"), "captions").captions
    assert [len(own) for own in captions] == [5, 5] and len({caption for own in captions for caption in own}) == 10


def test_samples_of_sparse_shards_are_read_as_a_loader_process_reads_them(tmp_path, monkeypatch):
    for name, value in {"BATCH": 64, "SAMPLES_PER_SHARD": 40, "ROUNDS": 1}.items():
        monkeypatch.setattr(reading, name, value)
    reading.make_shards(tmp_path, 3)
    index = open_index(tmp_path)
    sizes = [{suffix: len(data) for suffix, data in index.read(sample).items()} for sample in index.samples()]
    assert sizes == [reading.MEMBER_BYTES] * 120
    assert reading.measure(str(tmp_path), 2)["later"] > 0


def gpu_benchmark(folder, *words):
    code = f"import sys; sys.argv[1:] = {['--tiny', *words]}; from benchmarks.gpu.__main__ import main; main()"
    with (folder / "output").open("wb") as output, (folder / "errors").open("wb") as errors:
        benchmark = Warm("tests.warm:interpret", code, files=(0, output.fileno(), errors.fileno()))
    assert benchmark.wait() == 0, (folder / "errors").read_text()
    return [json.loads(line) for line in (folder / "output").read_text().splitlines() if line.startswith("{")]


def test_all_that_is_measured_on_a_gpu_is_measured_in_small_on_any_machine(tmp_path):
    sections = ["resume", "loss", "largest"]
    if is_nightly := bool(os.environ.get("NIGHTLY")):
        # The first is what tests/training/test_no_waiting.py counts; each of the others starts a process with torch.
        sections += ["no_waiting", "losses", "loader"]
    lines = gpu_benchmark(tmp_path, "--seconds", "300", "--section", *sections)
    # By day too little time is left to compile.
    lines += gpu_benchmark(tmp_path, "--seconds", "300" if is_nightly else "29", "--section", "towers.vit_b_32")
    measured = {name: value for line in lines for name, value in line["measured"].items()}
    if not is_nightly:
        assert "but it may take 30" in measured.pop("ours_compiled")["error"]
        assert "but it may take 45" in measured.pop("peer_compiled")["error"]
    assert not {name: value for name, value in measured.items() if "error" in str(value)}
    assert measured["deterministic"]["identical"] and measured["deterministic"]["largest_change_by_training"] > 0
    assert measured["copy_of_a_save"]["identical"] and measured["copy_of_a_save"]["changed_by_training"]
    for kind in ("softmax_8k", "sigmoid_64k"):
        assert abs(measured[kind]["ours_value"] - measured[kind]["peer_value"]) < 1e-4
    for side in ("ours", "peer", *(("ours_compiled", "peer_compiled") if is_nightly else ())):
        assert measured[side]["samples_per_second"] > 0
    assert measured["whole"]["pairs"] == measured["checkpoint_blocks"]["pairs"] == measured["in_parts"]["pairs"] == 16
    if is_nightly:
        assert {measured[name] for name in ("stage_0", "stage_1", "stage_2", "stage_0_in_parts")} == {"none waited"}
        assert measured["difference_fp32"] <= 1e-4
        assert 0 <= measured["train"]["data_wait_fraction"] <= 1


def test_a_section_without_time_costs_its_own_numbers_only(tmp_path):
    [result] = gpu_benchmark(tmp_path, "--seconds", "6", "--only", "resume", "loader")
    assert result["resume"]["error"].startswith("ended after")
    assert result["loader"] == {"error": "no time was left for it"}


def test_objectives_are_compared_in_a_table_and_a_plot(tmp_path):
    points = {
        data: {name: [(100.0, 0.1), (200.0, 0.25)] for name in objectives.OBJECTIVES} for data in ("seen", "unseen")
    }
    assert "| contrast | 10.0 / 10.0 | 25.0 / 25.0 |" in objectives.table(points, 0.6)
    objectives.write_page(tmp_path / "page.html", points, 0.2)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<polyline") == 2 * len(objectives.OBJECTIVES) and "supervised, on pixels" in page


def curve(*tests, seconds=2.0):
    """An evaluation for every 100 samples, with the same accuracy in both splits."""
    return [
        {"samples": 100 * n, "seconds": seconds * n, "dev/top1": accuracy, "test/top1": accuracy}
        for n, accuracy in enumerate(tests, start=1)
    ]


def test_an_accuracy_is_reached_between_two_evaluations_or_not_at_all():
    at = reached(curve(0.1, 0.3, 0.2), "test", 0.2)
    assert at is not None and (round(at.samples, 6), round(at.seconds, 6)) == (150, 3)
    assert reached(curve(0.1, 0.3), "test", 0.4) is None
    assert numbers_of([curve(0.2), curve(0.1), curve(0.1, 0.1)], 0.2)["samples"] is None
    assert numbers_of([curve(0.2), curve(0.1, 0.2), curve(0.1)], 0.2)["samples"] == 200
    # The first to be there; if none is there, the nearest.
    assert best_rate({1.0: curve(0.1, 0.5), 2.0: curve(0.4, 0.4)}, 0.4) == 2.0
    assert best_rate({1.0: curve(0.1, 0.5), 2.0: curve(0.4, 0.4)}, 0.9) == 1.0


def test_a_trial_is_kept_until_its_recipe_changes(tmp_path, monkeypatch):
    trained = []

    def train(words, **_):
        trained.append(words)
        return subprocess.CompletedProcess(words, 0, json.dumps(curve(len(trained) / 10)), "")

    monkeypatch.setattr(subprocess, "run", train)
    for learning_rate, values in ((1e-3, PLAIN), (1e-3, PLAIN), (1e-3, our_recipe("cards")), (2e-3, PLAIN)):
        last = curve_of(Trial("cards", "ours", values, learning_rate, 0), tmp_path)
    assert (last, len(trained)) == (curve(0.3), 3)


def test_recipes_of_the_benchmark_of_efficiency_are_configs_and_differ_in_their_levers(tmp_path):
    recipes = {"open_clip": PLAIN, **{str(lever): our_recipe("cards", lever) for lever in (None, *LEVERS)}}
    configs = []
    for name, values in recipes.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(json.dumps(config_of(Trial("cards", name, values, 1e-3, 0), tmp_path, tmp_path / "run")))
        configs.append(load_config([file]).config)
    assert len({repr(config) for config in configs}) == len(recipes)
    assert len({repr(config.model) for config in configs}) == 1


def test_colours_of_nouns_in_one_split_of_the_benchmark_of_efficiency_are_in_no_other(tmp_path, monkeypatch):
    nouns = {noun: tasks.NOUNS[noun] for noun in ("dog", "fox", "key")}
    monkeypatch.setitem(tasks.TASKS, "small", lambda: tasks.Task(nouns, cards_a_combination=4, held_out_cards=2))
    folder = tasks.write_task("small", tmp_path)
    with tarfile.open(folder / "shards" / "00000.tar") as shard:
        captions = [shard.extractfile(each).read().decode() for each in shard if each.name.endswith(".txt")]
    names = {split: [each.parent.name for each in (folder / split).rglob("*.png")] for split in ("dev", "test")}
    dev, test, trained = ({combination(text) for text in texts} - {None} for texts in (*names.values(), captions))
    assert (len(dev), len(test), len(trained)) == (3, 3, 3 * (len(tasks.COLOURS) - 2))
    assert not dev & test and not trained & (dev | test)


def combination(text):
    """The noun and colour that a text names; None if it names no colour."""
    words = text.replace(",", "").split()
    colours = [word for word in words if word in tasks.COLOURS]
    return (next(word for word in words if word in tasks.NOUNS), *colours) if colours else None
