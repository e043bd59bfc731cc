"""Suites: data sets in CLIP_benchmark's layout, several models, one table."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
import shutil
from importlib import resources

import numpy as np
import pytest
import webdataset

from diptych import cli
from diptych.errors import UserError
from diptych.evaluation.embedding import embed
from diptych.evaluation.installed_prompts import installed_prompts
from diptych.evaluation.prompts import build_classifier, make_prompts
from diptych.evaluation.similarity import unit_norm
from diptych.evaluation.suites.command import _titles
from diptych.evaluation.suites.data_folders import find_data, open_data_set
from diptych.evaluation.suites.measures import MEASURES
from diptych.evaluation.suites.page import as_page
from diptych.evaluation.suites.runner import Results, SuiteModel, embed_together, measure_suite
from diptych.evaluation.suites.suite import SUITES, SuiteDataSet, load_suite, parse_suite
from diptych.evaluation.suites.table import SuiteTable
from diptych.evaluation.suites.table_files import as_csv, as_json, as_markdown
from diptych.evaluation.suites.text import as_text
from diptych.model_folder import save_model_folder
from tests.evaluation.colours import COLOURS, ColourEncoder, picture, write_tree
from tests.test_encoder import TOKENIZER, dual_encoder, model_config, save_checkpoint

NAMES = list(COLOURS)
TEMPLATES = ["a photo of a {c}.", "{c} things"]


def noisy(colour, seed, by=150):
    """A picture of about this colour, which is sometimes nearer to another one."""
    shift = np.random.default_rng(seed).integers(-by, by, 3)
    return picture(tuple(np.clip(np.array(COLOURS[colour]) + shift, 0, 255)))


def export(folder, samples, *, classes=NAMES, templates=TEMPLATES, kind=None, per_shard=20):
    """Write samples as CLIP_benchmark's `webdataset_builder` does."""
    (folder / "test").mkdir(parents=True)
    lines = {"classnames.txt": classes, "zeroshot_classification_templates.txt": templates, "dataset_type.txt": [kind]}
    for name, values in lines.items():
        if values and values != [None]:
            (folder / name).write_text("".join(f"{each}\n" for each in values))
    sink = webdataset.ShardWriter(str(folder / "test" / "%d.tar"), maxcount=per_shard, verbose=0)
    for number, sample in enumerate(samples):
        sink.write({"__key__": f"s{number:07d}", **sample})
    (folder / "test" / "nshards.txt").write_text(f"{sink.shard}\n")
    sink.close()
    return folder


def classified(num=48, **more):
    """Samples of the six colours with the numbers of their classes."""
    labels = [number % 6 for number in range(num)]
    return [
        {"png": noisy(NAMES[label], number), "cls": label, **{key: make(number) for key, make in more.items()}}
        for number, label in enumerate(labels)
    ]


def suite_of(**data_sets):
    return parse_suite(json.dumps({"data_sets": data_sets}), "mine", None, "mine.yaml")


def model_named(title, encoder=None, identity="one"):
    return SuiteModel(title, title, identity, lambda: encoder or ColourEncoder())


def measured(suite, folder, *models, out, report=lambda *_: None):
    return measure_suite(suite, find_data(suite, folder), models or [model_named("m")], Results(out), report)


def value_of(folder, tmp_path, **data_set):
    """The cell of a data set with ColourEncoder."""
    cells = measured(suite_of(**{folder.name: data_set}), folder.parent, out=tmp_path / "out")
    cell = cells[folder.name]["m"]
    assert "failed" not in cell, cell
    return cell


def logits(num=48):
    """What CLIP_benchmark computes of `classified`: f64[pictures classes], and i64[pictures], the labels."""
    encoder = ColourEncoder()
    features = unit_norm(encoder.embed_pictures([sample["png"] for sample in classified(num)]))
    prompts = make_prompts(NAMES, [each.replace("{c}", "{}") for each in TEMPLATES])
    classifier = build_classifier(encoder, prompts.classes, prompts.templates)
    return 100 * features @ classifier.T, np.array([number % 6 for number in range(num)])


def test_the_suites_of_the_paper_and_of_datacomp_are_complete():
    clip, datacomp = map(load_suite, SUITES)
    assert (len(clip.data_sets), len(datacomp.data_sets)) == (27, 38)
    for each in (*clip.data_sets, *datacomp.data_sets):
        assert each.where_to_get and each.pictures and each.title and each.group
    for each in clip.data_sets:
        assert len(each.published) == 9 and all(0 < value < 100 for value in each.published)
        if each.metric in ("top1", "mean_per_class_recall"):
            assert each.chance == pytest.approx(1 / each.classes, abs=1e-6)
    best = clip.published("ViT-L/14@336")
    # The paper gives these in its text too: sections 3.1.3, 4 and 6.
    assert (best["imagenet"], best["pets"], round(best["mnist"], 2)) == (0.762, 0.935, 0.88)


def test_classification_in_clip_benchmarks_layout_has_its_numbers(tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    folder = export(tmp_path / "data" / "colours", classified(npy=lambda number: np.array([7, number % 5])))
    scores, labels = logits()
    guesses = scores.argmax(axis=1)
    right = guesses == labels
    assert 0.3 < right.mean() < 0.95  # so that the measures differ
    in_five = (np.argsort(-scores, axis=1)[:, :5] == labels[:, None]).any(axis=1)
    subgroup = np.arange(48) % 5
    expected = {
        "top1": right.mean(),
        "top5": in_five.mean(),
        "mean_per_class_recall": metrics.balanced_accuracy_score(labels, guesses),
        "mean_of_top1_and_top5": (right.mean() + in_five.mean()) / 2,
        "f1_macro": metrics.f1_score(labels, guesses, average="macro", labels=np.unique(labels)),
        "worst_subgroup_top1": min(right[subgroup == each].mean() for each in (0, 1, 3, 4)),
        "worst_subgroup_top5": min(in_five[subgroup == each].mean() for each in (0, 1, 3, 4)),
    }
    for metric, value in expected.items():
        cell = value_of(folder, tmp_path, metric=metric, subgroup_column=1, subgroups_left_out=[2])
        assert cell["value"] == pytest.approx(value), metric
        low, high = cell["interval"]
        assert low < high and low <= value <= high
        assert (cell["pictures"], cell["classes"], cell["prompts_from"]) == (48, 6, "classnames.txt")


def test_five_guesses_are_five():
    compute = MEASURES["mean_of_top1_and_top5"].compute
    assert compute({"ranks": [0, 4, 5, 9], "metrics": {"top5": 0.5}}, None).value == (0.25 + 0.5) / 2


def test_measures_of_several_numbers_have_their_chance():
    result = {"chance": {"top1": 0.1, "top5": 0.5, "image_to_text_r1": 0.02, "text_to_image_r1": 0.04}}
    names = ("top1", "mean_of_top1_and_top5", "worst_subgroup_top5", "mean_recall_at_1")
    assert [MEASURES[name].chance(result) for name in names] == [0.1, 0.3, 0.5, pytest.approx(0.03)]
    assert MEASURES["mean_of_top1_and_top5"].chance({"chance": {"top1": 0.2, "top5": None}}) is None


def test_the_chance_of_macro_f1_is_what_guesses_reach():
    random, totals = np.random.default_rng(0), np.array([9_000, 900, 100])
    labels = np.repeat(np.arange(3), totals)
    result = {"pictures": 10_000, "classes": [*"abcd"], "per_class": [[each, n, 0] for each, n in enumerate(totals)]}
    guesses = random.integers(4, size=10_000)
    hits, guessed = np.bincount(labels[guesses == labels], minlength=3), np.bincount(guesses, minlength=4)[:3]
    reached = (2 * hits / (totals + guessed)).mean()
    # The standard deviation of the mean over such guesses is 0.0035, of which this is four.
    assert MEASURES["f1_macro"].chance(result) == pytest.approx(reached, abs=0.014)


@pytest.mark.parametrize("measure", ["top5", "mean_of_top1_and_top5", "worst_subgroup_top5"])
def test_five_guesses_of_five_classes_are_no_measure(measure):
    result = {"ranks": [0, 4], "metrics": {"top5": None}, "intervals": {}, "classes": NAMES[:5]}
    with pytest.raises(ValueError, match=f"{measure} means nothing for 5 classes"):
        MEASURES[measure].compute(result, np.zeros(2, dtype=np.int64))


def test_multi_label_and_retrieval_in_clip_benchmarks_layout_have_its_numbers(tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = logits()
    both = np.eye(6, dtype=np.int64)[labels] | np.eye(6, dtype=np.int64)[(labels + np.arange(48) // 6) % 6]
    samples = [{"png": each["png"], "npy": row} for each, row in zip(classified(), both, strict=True)]
    folder = export(tmp_path / "data" / "several", samples, kind="multilabel")
    average = metrics.average_precision_score(both, scores, average="macro")
    assert value_of(folder, tmp_path, metric="mean_average_precision")["value"] == pytest.approx(average, abs=1e-6)
    eleven = value_of(folder, tmp_path, metric="mean_average_precision_11_points")["value"]
    assert eleven == pytest.approx(np.mean([eleven_points(scores[:, each], both[:, each]) for each in range(6)]))

    captions = [f"{NAMES[number % 6]} {NAMES[number // 6]}\n{NAMES[number // 6]} wall {number}" for number in range(36)]
    samples = [{"png": noisy(NAMES[number % 6], number), "txt": text} for number, text in enumerate(captions)]
    folder = export(tmp_path / "data" / "captions", samples, classes=(), templates=(), kind="retrieval")
    cell = value_of(folder, tmp_path, metric="mean_recall_at_1")
    both_ways = [cell["metrics"][f"{way}_r1"] for way in ("image_to_text", "text_to_image")]
    assert cell["value"] == pytest.approx(sum(both_ways) / 2)
    assert 0 < cell["value"] < 1
    assert cell["pictures"] == 36 and cell["interval"][0] < cell["value"] < cell["interval"][1]


def eleven_points(scores, has_label):
    """VOC 2007's average precision by its definition; equal scores are one threshold."""
    scores = scores.round(4)
    at = [scores >= threshold for threshold in np.unique(scores)]
    precision = np.array([has_label[chosen].mean() for chosen in at])
    recall = np.array([has_label[chosen].sum() / has_label.sum() for chosen in at])
    return np.mean([precision[recall >= level - 1e-9].max() for level in np.linspace(0, 1, 11)])


class Shifted(ColourEncoder):
    """Another encoder, with features of its own."""

    def prepare(self, picture):
        return [*super().prepare(picture)[::-1], 1]

    def embed_texts(self, texts):
        return np.concatenate([super().embed_texts(texts), np.ones((len(texts), 1))], axis=1)


def test_several_models_share_the_decoding_and_have_the_features_of_each_alone(tmp_path):
    export(tmp_path / "colours", classified(num=150))
    opened = open_data_set(SuiteDataSet("colours", "top1"), tmp_path / "colours", tmp_path)
    encoders = ColourEncoder(), Shifted()
    together = embed_together(encoders, opened.data.pictures)
    for encoder, both in zip(encoders, together, strict=True):
        alone = embed(encoder, opened.data.pictures)
        assert np.array_equal(alone.embeddings, both.embeddings) and np.array_equal(alone.kept, both.kept)


def test_a_second_run_measures_only_what_is_new(tmp_path):
    export(tmp_path / "data" / "colours", classified(num=18))
    reported = []

    def note(data_set, model, cell):
        reported.append((data_set, model))

    def again(*models):
        reported.clear()
        suite = suite_of(colours={"metric": "top1"})
        cells = measured(
            suite, tmp_path / "data", *models, out=tmp_path, report=lambda *cell: reported.append(cell[:2])
        )
        return [cells["colours"][model.title].get("value") for model in models]

    first = again(model_named("a"))
    assert again(model_named("a"), model_named("b", Shifted(), "other")) == [
        *first,
        again(model_named("b", None, "other"))[0],
    ]
    assert reported == []

    def load():
        raise AssertionError("loaded although all is measured")

    assert again(SuiteModel("a", "a", "one", load)) == first
    for path in (tmp_path / "results").iterdir() if (tmp_path / "results").is_dir() else tmp_path.glob("*.json"):
        path.write_text(path.read_text()[:20])  # as of a disk that lost its power
    assert again(model_named("a")) == first and reported == [("colours", "a")]
    again(model_named("a", identity="trained further"))
    assert reported == [("colours", "a")]
    (tmp_path / "data" / "colours" / "classnames.txt").write_text("\n".join([*NAMES[::-1], ""]))
    assert again(model_named("a")) != first
    assert reported == [("colours", "a")]
    for names in (["red"], ["red", "red wall"]):
        classes = [*NAMES[1:], {"name": "red", "names": names}]
        (tmp_path / "data" / "colours" / "classes.yaml").write_text(json.dumps({"classes": classes}))
        again(model_named("a"))
        assert reported == [("colours", "a")]


def test_results_of_pictures_that_were_replaced_are_not_kept(tmp_path):
    data = tmp_path / "data"
    write_tree(data / "folder", NAMES[:2])
    export(data / "shards", classified(num=12))
    suite = suite_of(folder={"metric": "top1"}, shards={"metric": "top1"})

    def values():
        cells = measured(suite, data, out=tmp_path / "out")
        return {name: (row["m"]["value"], "kept" in row["m"]) for name, row in cells.items()}

    first = values()
    assert values() == {name: (value, True) for name, (value, _) in first.items()}
    (data / "folder" / "red" / "0.png").write_bytes(picture(COLOURS["green"]))
    shutil.rmtree(data / "shards")
    samples = classified(num=12)
    samples[0]["png"], samples[1]["png"] = samples[1]["png"], samples[0]["png"]
    export(data / "shards", samples)
    assert [kept for _, kept in values().values()] == [False, False]
    assert values()["folder"] == (0.75, True)


def test_a_data_set_that_fails_costs_a_line_and_a_models_failure_its_cell(tmp_path):
    for name in ("good", "cut", "few", "empty", "other", "nameless"):
        export(tmp_path / "data" / name, classified(num=24), kind="retrieval" if name == "other" else None)
    tar = tmp_path / "data" / "cut" / "test" / "1.tar"
    tar.write_bytes(tar.read_bytes()[:2_000])
    (tmp_path / "data" / "few" / "test" / "1.tar").unlink()
    for path in sorted((tmp_path / "data" / "empty").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "data" / "nameless" / "classnames.txt").unlink()
    suite = suite_of(**{each.name: {"metric": "top1"} for each in (tmp_path / "data").iterdir()})

    class Broken(ColourEncoder):
        def embed_texts(self, texts):
            raise RuntimeError("out of memory\non the device")

    models = model_named("works"), model_named("broken", Broken(), "other")
    cells = measured(suite, tmp_path / "data", *models, out=tmp_path)
    assert cells["good"]["broken"] == {"failed": "RuntimeError: out of memory on the device"}
    assert 0 < cells["good"]["works"]["value"] < 1
    said = {name: row["works"].get("failed", "") for name, row in cells.items()}
    assert "1.tar" in said["cut"] and "truncated" in said["cut"]
    assert "lacks 1 shard of 2, the first 1.tar" in said["few"]
    assert "is empty" in said["empty"]
    assert "says 'retrieval'" in said["other"] and "'classification'" in said["other"]
    assert "classnames.txt" in said["nameless"] and "classes.yaml" in said["nameless"]
    text = as_text(SuiteTable(suite, ("works", "broken"), cells), None)
    assert "good: broken failed: RuntimeError: out of memory on the device" in text
    assert [line for line in text.splitlines() if line.startswith("cut: failed:")]


def test_a_model_that_cannot_embed_pictures_does_not_take_the_others_with_it(tmp_path):
    class Broken(ColourEncoder):
        def embed_prepared(self, prepared):
            raise RuntimeError("out of memory")

    export(tmp_path / "data" / "colours", classified(num=12))
    models = model_named("broken", Broken()), model_named("works", None, "other")
    row = measured(suite_of(colours={"metric": "top1"}), tmp_path / "data", *models, out=tmp_path)["colours"]
    assert row["broken"] == {"failed": "RuntimeError: out of memory"}
    assert row["works"]["pictures"] == 12


def shares(**values):
    return {name: {"value": value, "interval": [0.0, 1.0], "chance": 0.1, **COUNTS} for name, value in values.items()}


COUNTS = {"pictures": 10, "rejected": 0, "classes": 2}


def test_averages_are_over_what_every_model_was_measured_on(tmp_path):
    suite = parse_suite(
        """
        published: {source: somewhere, models: [theirs]}
        data_sets:
          one: {metric: top1, group: easy, published: [90]}
          two: {metric: top1, group: easy, published: [70.5], title: 'Two | 2'}
          three: {metric: roc_auc, group: hard, published: [null]}
          four: {metric: top1, group: hard}
          five: {metric: top1, get: from the shop}
        """,
        "mine",
        tmp_path,
        "mine.yaml",
    )
    cells = {
        "one": shares(a=0.5, b=0.6),
        "two": shares(a=0.7, b=0.4),
        "three": shares(a=0.9, b=0.8),
        "four": shares(a=0.1),
    }
    table = SuiteTable(suite, ("a", "b"), cells)
    assert table.groups == {"all": ["one", "two", "three"], "easy": ["one", "two"], "hard": ["three"]}
    lines = list(csv.reader(as_csv(table).splitlines()))
    assert {len(line) for line in lines} == {len(lines[0])}
    rows = list(csv.DictReader(as_csv(table).splitlines()))
    assert [(row["chance"], row["a"], row["theirs (published)"]) for row in rows[:2]] == [
        ("0.1", "0.5", "0.9"),
        ("0.1", "0.7", "0.705"),
    ]
    assert [(row["a low"], row["b high"]) for row in rows[:2]] == [("0.0", "1.0")] * 2
    assert as_json(table)["data_sets"]["one"]["chance"] == 0.1
    averages = {row["group"]: row for row in rows if row["data_set"] == "average"}
    assert float(averages["all"]["a"]) == pytest.approx(0.7) and float(averages["easy"]["b"]) == pytest.approx(0.5)
    assert averages["easy"]["theirs (published)"] == "0.8025"
    assert averages["all"]["theirs (published)"] == ""  # theirs of three is not known
    assert next(row["b"] for row in rows if row["data_set"] == "four") == ""
    assert "| Two \\| 2 | top-1 | **70.0** | 40.0 | 70.5 |" in as_markdown(table, "theirs")
    text = as_text(table, "theirs")
    assert max(map(len, text.splitlines())) <= 80
    assert "1 data set not there:\nfive  from the shop" in text


def test_many_models_are_shown_a_few_at_a_time_in_80_columns(tmp_path):
    names = [f"model number {number}" for number in range(8)]
    suite = suite_of(**{"a data set with a long name": {"metric": "top1"}})
    table = SuiteTable(suite, tuple(names), {"a data set with a long name": shares(**dict.fromkeys(names, 0.5))})
    text = as_text(table, None)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("50.0") == 16


def test_class_names_come_from_installed_packages_without_importing_them(tmp_path, monkeypatch):
    files = importlib.metadata.files("open_clip_torch")
    path = next(file.locate() for file in files if file.name == "zero_shot_metadata.py")
    spec = importlib.util.spec_from_file_location("zero_shot_metadata", path)
    zero_shot_metadata = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zero_shot_metadata)
    classes, templates, source = installed_prompts("imagenet1k")
    assert (classes, source) == (list(zero_shot_metadata.IMAGENET_CLASSNAMES), "open_clip_torch")
    made = [template("dog") for template in zero_shot_metadata.OPENAI_IMAGENET_TEMPLATES]
    assert [template.replace("{}", "dog") for template in templates] == made

    package, about = tmp_path / "clip_benchmark" / "datasets", tmp_path / "clip_benchmark-9.dist-info"
    package.mkdir(parents=True)
    about.mkdir()
    (package / "en_classnames.json").write_text(json.dumps({"mnist": NAMES}))
    (package / "en_zeroshot_classification_templates.json").write_text(json.dumps({"mnist": ["the number {c}"]}))
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: clip_benchmark\nVersion: 9\n")
    (about / "RECORD").write_text("".join(f"clip_benchmark/datasets/{each.name},,\n" for each in package.iterdir()))
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_prompts("mnist") == (NAMES, ["the number {}"], "clip_benchmark")

    folder = export(tmp_path / "data" / "digits", classified(num=12), classes=())
    (folder / "zeroshot_classification_templates.txt").unlink()
    opened = open_data_set(SuiteDataSet("digits", "top1", benchmark_name="mnist"), folder, tmp_path)
    assert (opened.data.prompts.templates, opened.prompts_from) == (("the number {}",), "clip_benchmark")


def test_a_package_is_offered_only_for_data_sets_that_it_names_the_classes_of(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.evaluation.suites.data_folders.installed_prompts", lambda name: (None, None, ""))
    said = {}
    for name in ("gtsrb", "food101", "imagenet1k"):
        folder = export(tmp_path / name, classified(num=6), classes=())
        with pytest.raises(UserError) as raised:
            open_data_set(SuiteDataSet(name, "top1", benchmark_name=name), folder, tmp_path)
        said[name] = str(raised.value).partition("(classes and templates)")[2]
    assert said == {
        "gtsrb": ", or `pip install clip_benchmark`",
        "food101": "",
        "imagenet1k": ", or `pip install open_clip_torch`",
    }


def test_folders_named_by_wordnet_ids_are_imagenets_classes_in_order(tmp_path):
    for number, name in enumerate(["n02000000", "n01000000"]):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.png").write_bytes(picture(COLOURS[NAMES[number]]))
    (tmp_path / "data" / "classnames.txt").write_text("green\nred\n")
    opened = open_data_set(SuiteDataSet("data", "top1"), tmp_path / "data", tmp_path)
    assert opened.data.pictures.labels == ("green", "red")
    for name, known in (("n02000000", "n04356056"), ("n01000000", "n01440764")):  # two of ImageNet's 1,000
        (tmp_path / "some" / known).mkdir(parents=True)
        (tmp_path / "some" / known / "1.png").write_bytes((tmp_path / "data" / name / "1.png").read_bytes())
    for benchmark_name, classes in (("imagenet1k", 1000), ("", 2)):
        about = SuiteDataSet("some", "top1", benchmark_name=benchmark_name)
        opened = open_data_set(about, tmp_path / "some", tmp_path)
        assert (opened.prompts_from, len(opened.data.prompts.classes)) == ("open_clip_torch", classes)
        assert opened.data.pictures.labels == ("tench", "sunglasses (837)")

    (tmp_path / "data" / "classnames.txt").write_text("green\nblue\nred\n")
    with pytest.raises(UserError, match="ids of 2 classes, and there are 3 names; .* all must be there; or name"):
        open_data_set(SuiteDataSet("data", "top1"), tmp_path / "data", tmp_path)


def test_wordnet_ids_are_no_prompts_and_labels_that_are_class_names_are_reported(tmp_path):
    for place in ("n02000000/1.png", "n01000000/1.png"):
        (tmp_path / "data" / "ids" / place).parent.mkdir(parents=True)
        (tmp_path / "data" / "ids" / place).write_bytes(picture(COLOURS["red"]))
    write_tree(tmp_path / "data" / "words", NAMES[:2])
    suite = suite_of(ids={"metric": "top1"}, words={"metric": "top1"})
    cells = measured(suite, tmp_path / "data", out=tmp_path)
    said = cells["ids"]["m"]["failed"]
    assert "gives WordNet ids such as n01000000 and no names; write them into" in said and "classnames.txt" in said
    text = as_text(SuiteTable(suite, ("m",), cells), None)
    assert "words: the labels of the pictures are used as class names" in text


def test_two_classes_of_one_name_stay_two(tmp_path):
    export(tmp_path / "cranes", classified(num=12), classes=["red", "crane", "blue", "crane", "cyan", "magenta"])
    opened = open_data_set(SuiteDataSet("cranes", "top1"), tmp_path / "cranes", tmp_path)
    assert opened.data.prompts.class_names[1:4] == ("crane", "blue", "crane (3)")
    assert [each.names for each in opened.data.prompts.classes][3] == ("crane",)
    assert opened.data.pictures.labels[:4] == ("red", "crane", "blue", "crane (3)")


def test_a_suite_of_ones_own_names_its_data_next_to_itself(tmp_path):
    write_tree(tmp_path / "photos", NAMES[:3], copies=4)
    (tmp_path / "mine.yaml").write_text(
        "data_sets: {walls: {metric: top1, data: photos, prompts: p.yaml}}", encoding="utf-8"
    )
    (tmp_path / "p.yaml").write_text("classes: [red, green, blue]\ntemplates: ['{} wall']")
    suite = load_suite(str(tmp_path / "mine.yaml"))
    cell = measured(suite, None, out=tmp_path / "out")["walls"]["m"]
    assert (cell["value"], cell["pictures"], cell["prompts_from"]) == (1.0, 12, "p.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data_sets: {a: {metrc: top1}}", "data set a: no key 'metrc'; did you mean metric?"),
        ("data_sets: {a: {metric: top_1}}", "data set a: no metric 'top_1'; did you mean top1?"),
        ("data_sets: {a: {}}", "data set a: metric is missing"),
        ("data_sets: {a: {metric: top1, classes: many}}", "data set a: classes is 'many'; expected a number"),
        ("data_sets: {a: {metric: top1, chance: 25}}", "data set a: chance is 25; expected a share from 0 to 1"),
        ("data_sets: {a: {metric: top1, pictures: -3}}", "data set a: pictures is -3; expected at least 1"),
        ("data_sets: {a: {metric: top1, title: 7}}", "data set a: title is 7; expected a text"),
        ("data_sets: {a: {metric: top1, published: [1]}}", "data set a: published has 1 numbers; expected 0"),
        ("data_sets: {a: {metric: worst_subgroup_top1}}", "data set a: worst_subgroup_top1 needs subgroup_column"),
        ("data_sets: {a/b: {metric: top1}}", "data set a/b: expected a name that a folder can have"),
        ("data_sets: {a: top1}", "data set a is 'top1'; expected a mapping with keys among metric"),
        ("data_sets: {a: {metric: top1, group: all}}", "data set a: group is 'all'"),
        ("data_sets: []", "data_sets is missing or empty"),
        ("datasets: {a: {metric: top1}}", "the file: no key 'datasets'; did you mean data_sets?"),
        ("published: {models: ViT}\ndata_sets: {a: {metric: top1}}", "published: models is 'ViT'; expected a list"),
        ("data_sets: [", "cannot be read as YAML"),
        ("just words", "the file is 'just words'; expected a mapping"),
    ],
)
def test_a_mistake_in_a_suite_is_one_line(tmp_path, text, expected):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as raised:
        load_suite(str(tmp_path / "mine.yaml"))
    assert expected in str(raised.value) and "mine.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed in range(2):
        encoder = dual_encoder(model_config())
        state = {name: value + 0.05 * seed * (value.abs() + 0.1) for name, value in encoder.state_dict().items()}
        save_model_folder(folder / f"model-{seed}", state, model_config(), TOKENIZER)
    return sorted(folder.iterdir())


def run(capsys, *words):
    """The exit status of a command, and what it printed."""
    try:
        cli.main(["evaluate", *map(str, words)])
        status = 0
    except SystemExit as stopped:
        status = stopped.code
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_makes_one_table_of_models_and_data_sets(models, tmp_path, capsys):
    export(tmp_path / "data" / "food101", classified(num=12))
    export(tmp_path / "data" / "wds_gtsrb", classified(num=12))
    out = tmp_path / "out"
    words = (*models, "--suite", "clip", "--data", tmp_path / "data", "--out", out, "--device", "cpu")
    status, said, _ = run(capsys, *words, "--published", "RN50")
    assert status == 0
    assert "Food-101, model-0: " in said and "[RN50]" in said and "25 data sets not there" in said
    assert "cifar10             clip-benchmark/wds_vtab-cifar10" in said
    table = json.loads((out / "table.json").read_text())
    cell = table["data_sets"]["gtsrb"]["models"]["model-1"]
    assert cell["metric"] == "top1" and table["data_sets"]["gtsrb"]["published"]["RN50"] == 0.352
    assert table["averages"]["all"]["data_sets"] == ["food101", "gtsrb"]
    page = (out / "table.html").read_text()
    assert "model-1" in page and "clip-benchmark/wds_vtab-cifar10" in page and "<script" not in page
    assert (out / "table.md").read_text().count("\n") > 3

    # The same number as `--zero-shot`, to the last digit.
    (tmp_path / "p.yaml").write_text(
        json.dumps({"classes": NAMES, "templates": [t.replace("{c}", "{}") for t in TEMPLATES]})
    )
    zero_shot = ("--zero-shot", tmp_path / "data" / "wds_gtsrb" / "test", "--classes", tmp_path / "p.yaml")
    assert run(capsys, models[1], *zero_shot, "--json", tmp_path / "one.json")[0] == 0
    assert json.loads((tmp_path / "one.json").read_text())["zero_shot"]["test"]["metrics"] == cell["metrics"]

    (tmp_path / "data" / "stl10").mkdir()
    status, said, _ = run(capsys, *words)
    assert status == 1
    assert "STL-10: failed:" in said and "4 results kept from" in said and "Food-101, model-0: " not in said


def test_a_data_set_without_labels_is_said_to_need_a_key_of_the_suite(tmp_path):
    export(tmp_path / "data" / "walls", [{"png": picture(COLOURS["red"]), "json": {"wall": "red"}}])
    with pytest.raises(UserError, match="Name the json key with `label_key:` in the suite"):
        open_data_set(SuiteDataSet("walls", "top1"), tmp_path / "data" / "walls", tmp_path)


def test_a_data_set_that_nothing_says_how_to_get_is_looked_for_in_a_folder(tmp_path):
    table = SuiteTable(suite_of(hidden={"metric": "top1"}), ("m",), {})
    assert "hidden  give --data DIR with a folder hidden" in as_text(table, None)
    assert "<code>give --data DIR with a folder hidden</code>" in as_page(table, None)


def test_a_long_reason_is_wrapped_and_its_path_stays_whole(tmp_path):
    path = "/data/" + "-".join(["folder"] * 8)
    cells = {"walls": {"m": {"failed": f"{path} has no folder test with the shards of the pictures, which it should"}}}
    lines = as_text(SuiteTable(suite_of(walls={"metric": "top1"}), ("m",), cells), None).splitlines()
    assert any(path in line for line in lines) and max(map(len, lines)) <= 80


def test_models_whose_paths_begin_or_end_alike_have_different_columns(tmp_path):
    paths = [tmp_path / place for place in ("first/checkpoint-0001", "second/checkpoint-0001", "second/other")]
    assert _titles(paths) == ["first/checkpoint-0001", "second/checkpoint-0001", "other"]
    names = [f"{where}/experiment/{what}" for where in ("a", "b") for what in ("small", "large")]
    table = SuiteTable(suite_of(walls={"metric": "top1"}), tuple(names), {"walls": shares(**dict.fromkeys(names, 0.5))})
    heads = [word for line in as_text(table, None).splitlines() if "measure" in line for word in line.split()[3:]]
    assert len(heads) == len(set(heads)) == 4


def test_averaged_weights_are_a_model_of_their_own(tmp_path, capsys):
    save_checkpoint(tmp_path / "run", 7, ema_seed=1)
    export(tmp_path / "data" / "mnist", classified(num=12))
    words = (tmp_path / "run", "--suite", "clip", "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert "MNIST, run: " in run(capsys, *words)[1]
    assert "MNIST, run (EMA): " in run(capsys, *words, "--ema")[1]


def test_mistakes_of_suites_are_one_line(models, tmp_path, capsys):
    export(tmp_path / "data" / "food101", classified(num=6))
    (tmp_path / "none").mkdir()
    one, data = models[0], tmp_path / "data"
    for words, expected in [
        ([one, "--suite", "clp", "--data", data], "no suite 'clp'; did you mean clip?"),
        ([one, "--suite", "missing.yaml", "--data", data], "missing.yaml"),
        ([one, "--suite", "clip"], "give --data DIR"),
        ([one, "--suite", "clip", "--data", tmp_path / "none"], "has no folder of the 27 data sets"),
        ([one, "--suite", "clip", "--data", tmp_path / "nowhere"], "does not exist"),
        ([one, "--suite", "clip", "--data", data, "--published", "RN5"], "no published model 'RN5'; did you mean RN50"),
        ([one, "--suite", "datacomp", "--data", data, "--published", "RN50"], "suite datacomp: it has none"),
        ([one, one, "--suite", "clip", "--data", data], "is given twice"),
        ([tmp_path / "none", "--suite", "clip", "--data", data], "contains neither a model"),
        ([one, "--suite", "clip", "--data", data, "--zero-shot", data], "--zero-shot does not go with --suite"),
        ([one, "--suite", "clip", "--data", data, "--report"], "--report does not go with --suite"),
        ([one, "--suite", "clip", "--data", data, "--overlap"], "--overlap does not go with --suite"),
        ([one, "--suite", "clip", "--data", data, "--label-key", "class"], "--label-key does not go with --suite"),
        ([*models, "--zero-shot", data], "give --suite"),
        ([one, "--zero-shot", data, "--out", tmp_path], "--out belongs to --suite"),
    ]:
        status, _, error = run(capsys, *words)
        assert status == 2, words
        assert expected in error and error.count("\n") == 1
    assert sorted(each.name for each in tmp_path.iterdir()) == ["data", "none"]


def test_every_measure_is_explained_where_suites_are():
    head = load_text("clip")
    assert [name for name in MEASURES if name not in head] == []
    assert [key for key in SuiteDataSet.__dataclass_fields__ if key not in head] == []


def load_text(suite):
    text = (resources.files("diptych.evaluation.suites") / f"{suite}.yaml").read_text(encoding="utf-8")
    return text[: text.index("\ntitle:")]
