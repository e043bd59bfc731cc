"""`diptych evaluate`, `classify` and `embed` as a user calls them, on a model with random weights."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych import cli, clustering
from diptych.data.groups import read_groups
from diptych.data.shard_writer import ShardWriter
from diptych.data.shards import open_index
from diptych.encoder import load
from diptych.evaluation.picture_sources import open_labelled
from diptych.evaluation.text_arrays import text_arrays
from diptych.model.image_tower import ImageTower
from diptych.model_folder import save_model_folder
from diptych_shards.cli import main as dedup_main
from diptych_shards.select.embeddings import _names as names_in
from tests.data_prep.made_pictures import encoded
from tests.data_prep.select.shards import verdict
from tests.evaluation.colours import COLOURS, picture, write_tree
from tests.test_encoder import TOKENIZER, dual_encoder, model_config, save_checkpoint

ESCAPE = "\x1b]0;owned\x07"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model_folder(folder, dual_encoder(model_config()).state_dict(), model_config(), TOKENIZER)
    return folder


@pytest.fixture
def run_dir(tmp_path):
    save_checkpoint(tmp_path / "run", 7)
    return tmp_path / "run"


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def arrays_in(path):
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def fails(capsys, *words):
    """Run a command that must fail, and return the one line that it prints."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"diptych {words[0]}: ")
    assert error.count("\n") == 1
    return error


def captioned(folder):
    folder.mkdir()
    for colour, pixels in COLOURS.items():
        (folder / f"{colour}.png").write_bytes(picture(pixels))
        (folder / f"{colour}.txt").write_text(f"a {colour} wall")
    return folder


def test_evaluate_writes_numbers_and_a_report_into_the_run_and_prints_chance(run_dir, tmp_path, capsys):
    seen = write_tree(tmp_path / "seen", list(COLOURS), copies=3)
    unseen = write_tree(tmp_path / "b", ["red", "cyan"], copies=2)
    (tmp_path / "classes.yaml").write_text(f'classes: [{", ".join(COLOURS)}]\ntemplates: ["a {{}}", "a {{}} wall"]')
    (tmp_path / "credit.txt").write_text("Drawn by <someone>.\n")

    cli.main(
        f"evaluate {run_dir} --zero-shot {seen} --zero-shot unseen={unseen} "
        f"--classes {tmp_path}/classes.yaml --retrieval pairs={captioned(tmp_path / 'pairs')} "
        f"--linear-probe {seen} --pixel-baseline {seen} --few-shot {seen} "
        f"--report --credits {tmp_path}/credit.txt --device cpu".split()
    )

    printed = capsys.readouterr().out
    assert "zero-shot over 6 classes, 2 prompt templates" in printed
    assert "chance" in printed
    assert max(map(len, printed.split("numbers:")[0].splitlines())) <= 80
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    assert evaluation["model"].endswith("step_00000007/model")
    assert list(evaluation["zero_shot"]) == ["seen", "unseen"]
    assert evaluation["zero_shot"]["seen"]["pictures"] == 18
    assert evaluation["retrieval"]["pairs"]["captions"] == 6
    assert evaluation["pixel_baseline"]["unseen"]["metrics"]["top1"] == 1
    assert evaluation["linear_probe"]["seen"]["train_classes"] == 6
    assert evaluation["few_shot"]["seen"]["shots"] == [1, 2, 3.0]
    page = (run_dir / "report.html").read_text()
    assert "Drawn by &lt;someone&gt;." in page
    # Each number has an interval that contains it, in the file, in the tables and on the page.
    for result in (evaluation["zero_shot"]["seen"], evaluation["retrieval"]["pairs"]):
        assert result["intervals"].keys() == result["metrics"].keys()
        assert all(low <= result["metrics"][name] <= high for name, (low, high) in result["intervals"].items())
    low, high = evaluation["zero_shot"]["seen"]["intervals"]["top1"]
    shown = f"{100 * low:.1f}–{100 * high:.1f}"
    assert shown in printed
    assert f"{shown} % (95 % interval)" in page


def test_evaluate_compares_shifted_versions_with_each_other_and_with_a_baseline(run_dir, tmp_path, capsys):
    photos = write_tree(tmp_path / "photos", list(COLOURS), copies=3)
    sketches = write_tree(tmp_path / "sketches", ["red", "cyan"], copies=2)
    (tmp_path / "models.csv").write_text("model,photos,sketches\na,0.3,0.2\nb,0.5,0.4\nc,0.8,0.6\n")
    words = f"evaluate {run_dir} --zero-shot {photos} --zero-shot {sketches} --device cpu".split()

    cli.main([*words, "--shifted-from", "photos", "--baseline", f"{tmp_path}/models.csv", "--report"])

    printed = capsys.readouterr().out
    assert "robustness: the others as shifted versions of photos\nexpected of 3 models in" in printed
    assert max(map(len, printed.split("numbers:")[0].splitlines())) <= 80
    shifted = json.loads((run_dir / "evaluation.json").read_text())["robustness"]["photos"]["shifted"]["sketches"]
    assert shifted["effective_robustness"]["value"] == shifted["top1"]["value"] - shifted["expected_top1"]
    assert "sketches: effective robustness" in (run_dir / "report.html").read_text()

    cli.main([*words])  # without them, the earlier comparison stays in the file
    assert "photos" in json.loads((run_dir / "evaluation.json").read_text())["robustness"]


def test_evaluate_compares_with_the_results_of_another_model(run_dir, model, tmp_path, capsys):
    photos = write_tree(tmp_path / "photos", list(COLOURS), copies=3)
    data = f"--zero-shot {photos} --retrieval pairs={captioned(tmp_path / 'pairs')} --device cpu"
    cli.main(f"evaluate {model} {data} --json {tmp_path}/other.json".split())
    capsys.readouterr()

    cli.main(f"evaluate {run_dir} {data} --against {tmp_path}/other.json".split())

    table = capsys.readouterr().out.split("compared with ")[1].split("\n\nnumbers")[0].splitlines()
    rows = {line.split()[1]: line.split() for line in table[2:]}
    assert {"top1", "top5", "mean_per_class_recall", "image_to_text_r1", "text_to_image_r10"} <= rows.keys()
    assert max(map(len, table)) <= 80
    _, _, other, this, change, *_ = rows["top1"]
    assert float(this) - float(other) == pytest.approx(float(change), abs=0.11)  # each is rounded


def test_a_comparison_that_cannot_be_made_is_one_line_before_anything_is_measured(run_dir, tmp_path, capsys):
    photos = write_tree(tmp_path / "photos", list(COLOURS))
    words = ["evaluate", run_dir, "--zero-shot", photos]
    (tmp_path / "models.csv").write_text("model,a,b\nx,0.3,0.2\ny,0.5,0.4\nz,0.8,0.6\n")
    assert "at least one other that is a shifted version" in fails(capsys, *words, "--shifted-from", "photos")
    sketches = write_tree(tmp_path / "sketches", ["red"])
    words += ["--zero-shot", sketches]
    assert "the data sets of --zero-shot are photos, sketches" in fails(capsys, *words, "--shifted-from", "cats")
    baseline = ("--baseline", tmp_path / "models.csv")
    assert "has the columns a, b; expected photos" in fails(capsys, *words, "--shifted-from", "photos", *baseline)
    assert "--baseline needs --shifted-from NAME" in fails(capsys, *words, *baseline)
    assert "does not exist" in fails(capsys, *words, "--against", tmp_path / "none.json")
    assert not (run_dir / "evaluation.json").exists()


def test_the_same_pictures_are_embedded_once_for_all_that_is_measured(model, tmp_path, monkeypatch):
    seen = write_tree(tmp_path / "seen", list(COLOURS), copies=4)
    counts = []
    features = ImageTower.features

    def counted(self, images, *rest):
        counts.append(len(images))
        return features(self, images, *rest)

    monkeypatch.setattr(ImageTower, "features", counted)
    cli.main(
        f"evaluate {model} --zero-shot {seen} --linear-probe {seen} --embedding-probe {seen} "
        f"--json {tmp_path}/out.json".split()
    )

    assert sum(counts) == 24
    assert json.loads((tmp_path / "out.json").read_text())["linear_probe"]["seen"]["train_pictures"] == 24


def test_a_second_evaluation_adds_to_the_first_and_prints_what_it_measured(run_dir, tmp_path, capsys):
    seen = write_tree(tmp_path / "seen", list(COLOURS))
    other = write_tree(tmp_path / "other", ["red", "cyan"])
    pairs = captioned(tmp_path / "pairs")
    cli.main(f"evaluate {run_dir} --zero-shot {seen} --zero-shot again={other} --pixel-baseline {seen}".split())
    first = json.loads((run_dir / "evaluation.json").read_text())
    capsys.readouterr()
    cli.main(f"evaluate {run_dir} --retrieval {pairs}".split())
    assert "zero-shot" not in capsys.readouterr().out
    (seen / "red" / "0.png").unlink()
    cli.main(f"evaluate {run_dir} --zero-shot new={other} --zero-shot {seen} --report".split())
    printed = capsys.readouterr().out

    results = json.loads((run_dir / "evaluation.json").read_text())
    assert list(results["zero_shot"]) == ["new", "seen", "again"]
    assert results["zero_shot"]["again"] == first["zero_shot"]["again"]
    assert results["zero_shot"]["seen"]["pictures"] == first["zero_shot"]["seen"]["pictures"] - 1
    assert results["pixel_baseline"] == first["pixel_baseline"]
    assert results["retrieval"]["pairs"]["pictures"] == 6
    assert "new" in printed and "again" not in printed
    page = (run_dir / "report.html").read_text()
    assert all(f"zero-shot · {name}" in page for name in ("new", "seen", "again"))
    assert not list(run_dir.glob("*.partial"))


def test_results_of_an_earlier_model_keep_its_name(run_dir, tmp_path, capsys):
    tree = write_tree(tmp_path / "tree", ["red", "cyan"])
    cli.main(f"evaluate {run_dir} --zero-shot old={tree} --linear-probe {tree}".split())
    save_checkpoint(run_dir, 9)
    cli.main(f"evaluate {run_dir} --zero-shot new={tree} --report".split())
    results = json.loads((run_dir / "evaluation.json").read_text())
    models = {name: Path(result["model"]).parent.name for name, result in results["zero_shot"].items()}
    assert models == {"new": "step_00000009", "old": "step_00000007"}
    page = (run_dir / "report.html").read_text()
    assert page.count("step_00000007/model") == 1
    assert "4 pictures, 2 classes; of " in page


def test_results_of_an_older_checkpoint_do_not_replace_those_of_its_run(run_dir, tmp_path, capsys):
    tree = write_tree(tmp_path / "tree", ["red", "cyan"])
    (run_dir / "config.yaml").write_text("data: {train: nowhere}")
    older, newest = run_dir / "checkpoints" / "step_00000007", save_checkpoint(run_dir, 9)
    for model in (run_dir, newest, older):
        cli.main(f"evaluate {model} --zero-shot {tree} --pixel-baseline {tree} --report".split())
    results = json.loads((run_dir / "evaluation.json").read_text())
    for evaluator in ("zero_shot", "pixel_baseline"):
        models = {name: Path(result["model"]).parent.name for name, result in results[evaluator].items()}
        assert models == {"tree": "step_00000009", "tree (step_00000007)": "step_00000007"}
    assert "zero-shot · tree (step_00000007)" in (run_dir / "report.html").read_text()

    cli.main(f"evaluate {older} --zero-shot {tree} --json {tmp_path / 'own.json'}".split())
    assert list(json.loads((tmp_path / "own.json").read_text())["zero_shot"]) == ["tree"]


def test_every_command_uses_the_averaged_weights_on_request(tmp_path, capsys):
    run, tree = tmp_path / "run", write_tree(tmp_path / "tree", ["red", "cyan"])
    ema = save_checkpoint(run, 7, ema_seed=1) / "ema"
    for flag in ("", "--ema"):
        cli.main(f"evaluate {run} --zero-shot {tree} --report {flag}".split())
    results = json.loads((run / "evaluation.json").read_text())["zero_shot"]
    assert {name: Path(result["model"]).name for name, result in results.items()} == {
        "tree (EMA)": "ema",
        "tree": "model",
    }

    out = {name: tmp_path / f"{name}.npz" for name in ("run", "ema", "same")}
    for words in (
        f"{run} --output {out['run']}",
        f"{run} --ema --output {out['ema']}",
        f"{ema} --output {out['same']}",
    ):
        cli.main(f"embed {words} --pictures {tree}".split())
    embedded = {name: arrays_in(path)["picture_embeddings"] for name, path in out.items()}
    assert np.array_equal(embedded["ema"], embedded["same"]) and not np.array_equal(embedded["ema"], embedded["run"])

    cli.main(f"export {run} {tmp_path / 'exported'} --ema".split())
    weights = "model.safetensors"
    assert (tmp_path / "exported" / weights).read_bytes() == (ema / weights).read_bytes()
    save_checkpoint(tmp_path / "other", 7)
    assert "has no averaged weights" in fails(capsys, "classify", tmp_path / "other", tree, "--labels", "a,b", "--ema")


def test_a_file_that_is_not_an_evaluation_is_not_overwritten(model, tmp_path, capsys):
    tree = write_tree(tmp_path / "tree", ["red", "cyan"])
    for content in ("{", "[]", '{"format": 2}', '{"format": 1, "zero_shot": []}'):
        (tmp_path / "mine.json").write_text(content)
        error = fails(capsys, "evaluate", model, "--zero-shot", tree, "--json", tmp_path / "mine.json")
        assert "mine.json is not an evaluation of format 1" in error and "--json" in error
        assert (tmp_path / "mine.json").read_text() == content


def test_files_that_cannot_be_read_or_written_are_one_line_with_a_way_out(model, tmp_path, capsys):
    tree = write_tree(tmp_path / "tree", ["red", "cyan"])
    (tmp_path / "latin.txt").write_bytes("schön".encode("latin-1"))
    evaluate = ["evaluate", model, "--zero-shot", tree]
    for words, where, way_out in (
        ([*evaluate, "--credits", tmp_path / "no.txt"], "no.txt cannot be read: No such file", "--credits"),
        ([*evaluate, "--classes", tmp_path], "cannot be read: Is a directory", "expected a YAML file"),
        ([*evaluate, "--json", tree], "tree cannot be read: Is a directory", "--json"),
        (
            [*evaluate, "--json", tmp_path / "latin.txt" / "o.json"],
            "latin.txt cannot be written: File exists",
            "--json",
        ),
        (["embed", model, "--texts", tmp_path / "no", "--output", "o.npz"], "no cannot be read: No such", "--texts"),
        (["embed", model, "--texts", tmp_path / "latin.txt", "--output", "o.npz"], "is not UTF-8 at byte 3", "save it"),
        (["embed", model, "--pictures", tmp_path / ("x" * 300), "--output", "o.npz"], "does not exist", "expected"),
        (
            ["embed", model, "--pictures", tree, "--output", tmp_path / "latin.txt" / "o.npz"],
            "latin.txt cannot be written: File exists",
            "--output",
        ),
        (["classify", model, tmp_path / ("x" * 300), "--labels", "a,b"], "is not a file", "expected a picture"),
    ):
        error = fails(capsys, *words)
        assert where in error and way_out in error and "Errno" not in error


def test_without_classes_the_labels_found_are_the_classes(model, tmp_path, capsys):
    tree = write_tree(tmp_path / "tree", ["red", "cyan"])
    cli.main(["evaluate", str(model), "--zero-shot", str(tree), "--json", str(tmp_path / "out.json")])
    assert "over 2 classes, 1 prompt template\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["templates"] == ["a photo of a {}."]


def test_pictures_without_a_usable_caption_are_counted_by_reason_and_the_rest_is_evaluated(run_dir, tmp_path, capsys):
    pairs = captioned(tmp_path / "pairs")
    (pairs / "red.txt").write_bytes("schön".encode("latin-1"))
    (pairs / "blue.txt").unlink()
    (pairs / "green.txt").unlink()
    cli.main(["evaluate", str(run_dir), "--retrieval", str(pairs)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 pictures have no usable caption and are not counted: 2 no_caption (for example blue.png)" in printed
    assert "1 caption_not_utf8 (for example red.png: at byte 3)" in printed
    result = json.loads((run_dir / "evaluation.json").read_text())["retrieval"]["pairs"]
    assert result["pictures"] == 3
    assert {reason: each["pictures"] for reason, each in result["refused"].items()} == {
        "no_caption": 2,
        "caption_not_utf8": 1,
    }
    for text in pairs.glob("*.txt"):
        text.unlink()
    assert "none of the 6 pictures of" in fails(capsys, "evaluate", run_dir, "--retrieval", pairs)


def test_shards_with_class_numbers_are_evaluated_by_the_names_of_the_classes(model, tmp_path, capsys):
    for number in range(2):
        with ShardWriter(tmp_path / "shards", number) as writer:
            for each, pixels in enumerate(COLOURS.values()):
                writer.add(f"{each}", {"png": picture(pixels), "cls": str(each).encode()})
    words = ["evaluate", str(model), "--zero-shot", str(tmp_path / "shards"), "--json", str(tmp_path / "out.json")]
    assert "name them in the order of the numbers with --classes YAML" in fails(capsys, *words)
    (tmp_path / "classes.yaml").write_text(f"classes: [{', '.join(COLOURS)}]")
    cli.main([*words, "--classes", str(tmp_path / "classes.yaml"), "--pixel-baseline", str(tmp_path / "shards")])
    evaluation = json.loads((tmp_path / "out.json").read_text())
    assert [row[:2] for row in evaluation["zero_shot"]["shards"]["per_class"]] == [[each, 2] for each in range(6)]
    assert evaluation["zero_shot"]["shards"]["classes"] == list(COLOURS)
    assert evaluation["pixel_baseline"]["shards"]["metrics"]["top1"] == 1


def test_folders_called_by_wordnet_ids_are_evaluated_by_the_names_of_imagenets_classes(
    model, tmp_path, capsys, monkeypatch
):
    names = {"n01440764": "tench", "n04355933": "sunglasses", "n04356056": "sunglasses (837)"}
    for folder, ids in (("test", list(names)), ("train", ["n01443537", *names])):
        for each, colour in zip(ids[::-1], COLOURS.values(), strict=False):
            (tmp_path / folder / each).mkdir(parents=True)
            (tmp_path / folder / each / "0.png").write_bytes(picture(colour))
    words = ["evaluate", str(model), "--zero-shot", str(tmp_path / "test"), "--json", str(tmp_path / "out.json")]
    cli.main([*words, "--pixel-baseline", str(tmp_path / "train")])
    evaluation = json.loads((tmp_path / "out.json").read_text())
    assert evaluation["zero_shot"]["test"]["classes"] == list(names.values())
    assert evaluation["pixel_baseline"]["test"]["metrics"]["top1"] == 1
    assert evaluation["pixel_baseline"]["test"]["train_classes"] == 4

    # The ids stay the labels where a file of the user names them.
    named = ", ".join(f"{{name: {each}, names: [{name}]}}" for each, name in names.items())
    (tmp_path / "classes.yaml").write_text(f"classes: [{named}]")
    cli.main([*words, "--classes", str(tmp_path / "classes.yaml")])
    assert json.loads((tmp_path / "out.json").read_text())["zero_shot"]["test"]["classes"] == list(names)

    monkeypatch.setattr("diptych.evaluation.installed_prompts.installed_prompts", lambda name: (None, None, ""))
    said = fails(capsys, *words)
    assert "gives WordNet ids such as n01440764 and no names; name them with --classes YAML (classes: [{name: " in said
    assert said.endswith(", or `pip install open_clip_torch`\n")
    (tmp_path / "test" / "n01440764").rename(tmp_path / "test" / "n01000000")
    assert "WordNet ids such as n01000000 " in (said := fails(capsys, *words)) and "pip install" not in said


def test_one_picture_is_not_several(model, tmp_path, capsys):
    photos = write_tree(tmp_path / "photos", ["red", "blue"])
    (photos / "red" / "x.png").write_text("<html>")
    cli.main(["evaluate", str(model), "--zero-shot", str(photos), "--json", str(tmp_path / "out.json")])
    assert "photos: 1 picture could not be decoded and is not counted; the first: " in capsys.readouterr().out
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes(picture(COLOURS["red"]))
    (tmp_path / "one" / "a.txt").write_text("a red wall")
    assert "1 picture is too few to calibrate" in fails(capsys, "calibrate", model, "--retrieval", tmp_path / "one")


def test_an_equals_sign_in_the_name_of_a_folder_is_part_of_the_path(model, tmp_path, capsys, monkeypatch):
    write_tree(tmp_path / "set=1", ["red", "blue"])
    monkeypatch.chdir(tmp_path)
    cli.main(["evaluate", str(model), "--zero-shot", "set=1", "--zero-shot", "named=set=1", "--json", "out.json"])
    assert list(json.loads((tmp_path / "out.json").read_text())["zero_shot"]) == ["set=1", "named"]


def test_mistakes_of_evaluate_are_one_line(model, tmp_path, capsys):
    tree = write_tree(tmp_path / "tree", ["red", "blue ish"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "c.yaml").write_text("classes: [red, blue]")
    assert "nothing to evaluate" in fails(capsys, "evaluate", model)
    assert "does not exist" in fails(capsys, "evaluate", model, "--zero-shot", tmp_path / "no")
    assert "no pictures in subfolders" in fails(capsys, "evaluate", model, "--zero-shot", tmp_path / "empty")
    unknown = fails(capsys, "evaluate", model, "--zero-shot", tree, "--classes", tmp_path / "c.yaml")
    assert "'blue ish' is none of the 2 classes" in unknown
    assert "two data sets are called 'tree'" in fails(
        capsys, "evaluate", model, "--zero-shot", tree, "--zero-shot", tree
    )
    assert "needs a run directory" in fails(capsys, "evaluate", model, "--zero-shot", tree, "--report")
    assert "give that too" in fails(
        capsys, "evaluate", model, "--retrieval", captioned(tmp_path / "p"), "--pixel-baseline", tree
    )
    others = write_tree(tmp_path / "others", ["green", "cyan"])
    disjoint = fails(capsys, "evaluate", model, "--zero-shot", tree, "--few-shot", others)
    assert "none of its 2 classes, such as 'cyan', is a class of --zero-shot, such as 'blue" in disjoint
    assert "does not exist; expected a model" in fails(capsys, "evaluate", tmp_path / "zzz", "--zero-shot", tree)
    assert "is not a folder; expected a model" in fails(capsys, "evaluate", tmp_path / "c.yaml", "--zero-shot", tree)
    assert f"did you mean {tmp_path / 'others'}?" in fails(capsys, "evaluate", tmp_path / "ohters", "--zero-shot", tree)


def test_folders_are_read_whatever_the_format_and_the_rest_is_counted_and_named(model, tmp_path, capsys):
    tree = write_tree(tmp_path / "set", ["red", "blue"])
    for number, kind in enumerate(("BMP", "GIF", "TIFF", "AVIF", "WEBP")):
        (tree / "green").mkdir(exist_ok=True)
        (tree / "green" / f"{number}.{kind}").write_bytes(encoded(noise(number), kind))
    hidden = (".ipynb_checkpoints", "@eaDir", "__MACOSX", "red/.ipynb_checkpoints", "red/@eaDir")
    for folder in hidden:
        (tree / folder).mkdir()
        (tree / folder / "0.png").write_bytes(picture(COLOURS["red"]))
    for name in ("blue/drawing.svg", "README.md", "loose.png", "dog/notes.txt"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_bytes(picture(COLOURS["red"]))
    cli.main(["evaluate", str(model), "--zero-shot", str(tree), "--json", str(tmp_path / "o.json")])
    result = json.loads((tmp_path / "o.json").read_text())["zero_shot"]["set"]
    assert result["classes"] == ["blue", "green", "red"] and result["pictures"] == 9 and not result["rejected"]
    assert {reason: each["files"] for reason, each in result["left_out"].items()} == {
        "hidden": 5,
        "not_a_picture": 1,  # a caption file is not a picture, but may accompany one
        "format_not_allowed": 1,
        "not_in_a_class_folder": 1,
        "class_folder_without_pictures": 1,
    }
    said = capsys.readouterr().out
    assert sum(result["formats"].values()) == 9
    assert "set: other formats were read too, the first frame or page of each: " in said
    assert "left out of the folder: 5 hidden (for example .ipynb_checkpoints)" in said
    assert "1 class_folder_without_pictures (for example dog/)" in said

    cli.main(["embed", str(model), "--pictures", str(tree), "--output", str(tmp_path / "e.npz")])
    assert len(arrays_in(tmp_path / "e.npz")["pictures"]) == 10
    assert "left out: 5 hidden" in capsys.readouterr().err


def test_captioned_folders_are_read_in_the_same_way(model, tmp_path, capsys):
    folder = captioned(tmp_path / "pairs")
    (folder / "b.bmp").write_bytes(encoded(noise(1), "BMP"))
    (folder / "b.txt").write_text("noise")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "red.png").write_bytes(picture(COLOURS["red"]))
    (folder / ".thumbnails" / "red.txt").write_text("red")
    (folder / "drawing.svg").write_text("<svg/>")
    (folder / "drawing.txt").write_text("a drawing")
    (folder / "alone.txt").write_text("no picture")
    cli.main(["evaluate", str(model), "--retrieval", str(folder), "--json", str(tmp_path / "o.json")])
    result = json.loads((tmp_path / "o.json").read_text())["retrieval"]["pairs"]
    assert result["pictures"] == 7 and not result["refused"]
    assert {reason: each["files"] for reason, each in result["left_out"].items()} == {
        "hidden": 1,
        "format_not_allowed": 1,
        "orphan_caption": 1,
    }


def test_the_parts_of_a_data_set_are_not_taken_for_classes(model, tmp_path, capsys):
    for part in ("train", "val"):
        write_tree(tmp_path / "set" / part, ["red", "cyan"])
    words = ["evaluate", model, "--zero-shot", tmp_path / "set", "--json", tmp_path / "o.json"]
    error = fails(capsys, *words)
    assert "has the folders train, val, which contain folders of classes" in error and f"{tmp_path}/set/val" in error
    # A class of pictures of trains is a class like any other.
    write_tree(tmp_path / "words", ["red"])
    (tmp_path / "words" / "red").rename(tmp_path / "words" / "train")
    cli.main(["evaluate", str(model), "--zero-shot", str(tmp_path / "words"), "--json", str(tmp_path / "o.json")])


def test_folders_of_classes_may_be_links(model, tmp_path):
    tree = write_tree(tmp_path / "tree", ["red", "cyan"])
    (tmp_path / "linked").mkdir()
    for name in ("red", "cyan"):
        (tmp_path / "linked" / name).symlink_to(tree / name)
    assert len(open_labelled(str(tmp_path / "linked"))) == 4


def test_what_the_run_was_trained_on_is_marked(run_dir, tmp_path, capsys):
    """By content: in the same shards, in others, and as files."""
    with ShardWriter(tmp_path / "train", 0) as writer:
        for colour, pixels in COLOURS.items():
            writer.add(colour, {"png": picture(pixels), "txt": colour.encode()})
    (run_dir / "config.yaml").write_text(f"data: {{train: [{tmp_path / 'train'}]}}")
    files = captioned(tmp_path / "files")
    for number in range(2):
        (files / f"{number}.png").write_bytes(encoded(noise(number), "PNG"))
        (files / f"{number}.txt").write_text("noise")
    unseen = write_tree(tmp_path / "unseen", ["red", "cyan"])
    for folder in ("red", "cyan"):
        (unseen / folder / "0.png").unlink()
    words = ["--retrieval", tmp_path / "train", "--retrieval", files, "--zero-shot", unseen, "--report"]
    cli.main([str(word) for word in ["evaluate", run_dir, *words]])
    results = json.loads((run_dir / "evaluation.json").read_text())
    said = capsys.readouterr().out
    shares = {name: each["share_seen_in_training"] for name, each in results["retrieval"].items()}
    assert shares == {"train": 1.0, "files": 6 / 8}
    assert results["retrieval"]["train"]["seen_in_training"] is True
    assert results["zero_shot"]["unseen"]["seen_in_training"] is False
    assert "retrieval, train (*):" in said and "train (*): 100 % of the pictures were seen in training" in said
    assert "files (*): 75.0 %" in said and "unseen (*)" not in said
    assert "chance, text → image" in said

    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    (run_dir / "evaluation.json").unlink()
    held = sorted(checkpoint.rglob("*"))
    cli.main([str(word) for word in ["evaluate", checkpoint, "--retrieval", tmp_path / "train"]])
    results = json.loads((run_dir / "evaluation.json").read_text())
    assert results["retrieval"]["train"]["seen_in_training"] is True and sorted(checkpoint.rglob("*")) == held

    (tmp_path / "train").rename(tmp_path / "moved")
    cli.main([str(word) for word in ["evaluate", run_dir, "--zero-shot", unseen]])
    assert json.loads((run_dir / "evaluation.json").read_text())["zero_shot"]["unseen"]["seen_in_training"] is None


def test_a_picture_that_was_stored_smaller_is_known_by_its_original(run_dir, tmp_path, capsys):
    files = captioned(tmp_path / "files")
    with ShardWriter(tmp_path / "train", 0) as writer:
        for colour, pixels in COLOURS.items():
            original = (files / f"{colour}.png").read_bytes()
            facts = {"caption": colour, "sha256": hashlib.sha256(original).hexdigest()}
            writer.add(colour, {"png": picture(pixels, 8), "json": json.dumps(facts).encode()})
        writer.add("strange", {"png": picture((1, 2, 3)), "json": b"[1]"})
    (run_dir / "config.yaml").write_text(f"data: {{train: {tmp_path / 'train'}}}")
    cli.main(["evaluate", str(run_dir), "--retrieval", str(files)])
    (result,) = json.loads((run_dir / "evaluation.json").read_text())["retrieval"].values()
    assert result["share_seen_in_training"] == 1.0


def test_names_that_are_not_utf8_do_no_harm(run_dir, tmp_path, capsys):
    tree = write_tree(tmp_path / "tree", ["red", "cyan"])
    (tree / "red" / "0.png").rename(tree / "red" / "schön.png".encode("latin-1").decode("utf-8", "surrogateescape"))
    (tree / "cyan").rename(tree / "gr\udcfcn")
    strange = tree.rename(tmp_path / "str\udce4nge")
    words = ["evaluate", str(run_dir), "--zero-shot", str(strange), "--pixel-baseline", str(strange), "--report"]
    cli.main(words)
    result = json.loads((run_dir / "evaluation.json").read_text(encoding="utf-8"))["zero_shot"]["str\\udce4nge"]
    assert result["classes"] == ["gr\\udcfcn", "red"] and result["pictures"] == 4
    assert "red/sch\\udcf6n.png" in {name for name, _, _ in result["predictions"]}
    cli.main(["embed", str(run_dir), "--pictures", str(strange), "--output", str(tmp_path / "o.npz")])
    assert f"{strange}/red/sch\udcf6n.png" in arrays_in(tmp_path / "o.npz")["pictures"].tolist()
    capsys.readouterr()
    picture_file = str(strange / "red" / "sch\udcf6n.png")
    cli.main(["classify", str(run_dir), picture_file, "--labels", "a,b", "--json"])
    assert lines_of_json(capsys)[-1]["picture"] == picture_file


def test_an_output_that_cannot_be_written_is_found_before_anything_is_computed(run_dir, tmp_path, capsys, monkeypatch):
    tree = write_tree(tmp_path / "tree", ["red", "cyan"])
    monkeypatch.setattr("diptych.encoder.load", None)
    (tmp_path / "file").write_text("")
    (run_dir / "report.html").mkdir()
    evaluate = ["evaluate", run_dir, "--zero-shot", tree]
    assert "report.html cannot be written: Is a directory" in fails(capsys, *evaluate, "--report")
    assert "file cannot be written" in fails(capsys, *evaluate, "--json", tmp_path / "file" / "o.json")
    embed = ["embed", run_dir, "--pictures", tree, "--output"]
    assert "file cannot be written" in fails(capsys, *embed, tmp_path / "file" / "o.npz")
    (tmp_path / "o.npz").mkdir()
    assert "o.npz cannot be written: Is a directory" in fails(capsys, *embed, tmp_path / "o.npz")


def test_classify_prints_probabilities_that_sum_to_one_best_first(model, tmp_path, capsys):
    (tmp_path / "red.png").write_bytes(picture(COLOURS["red"]))
    cli.main(["classify", str(model), str(tmp_path / "red.png"), "--labels", "a cat, a dog,a hat"])
    name, *lines = capsys.readouterr().out.splitlines()
    assert name.endswith("red.png")
    shares = [float(line.split()[-2]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.16)  # three roundings to a tenth


def test_classify_shows_no_control_characters_of_names_and_labels(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a name of the terminal's width would be cut
    hostile = Path(f"a{ESCAPE}\u202egnp.png")
    hostile.write_bytes(picture(COLOURS["red"]))
    cli.main(["classify", str(model), str(hostile), "--labels", f"cat{ESCAPE},dog\u2066", "--top", "1"])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\x07" not in printed and "\u202e" not in printed
    assert "<U+202E>" in printed


def test_mistakes_of_classify_are_one_line(model, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(picture(COLOURS["red"]))
    (tmp_path / "b.png").write_bytes(b"not a picture")
    assert "is not a file" in fails(capsys, "classify", model, tmp_path / "no.png", "--labels", "a,b")
    assert "two or more" in fails(capsys, "classify", model, tmp_path / "a.png", "--labels", "cat")
    assert "listed 2 times" in fails(capsys, "classify", model, tmp_path / "a.png", "--labels", "cat,cat")
    assert "exactly once" in fails(
        capsys, "classify", model, tmp_path / "a.png", "--labels", "a,b", "--template", "a photo"
    )
    fails(capsys, "classify", model, tmp_path / "b.png", "--labels", "a,b")


def lines_of_json(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_bad_picture_does_not_end_the_command_but_sets_its_status(model, tmp_path, monkeypatch, capsys):
    """Also for a folder of pictures, whose hidden files are ignored."""
    monkeypatch.chdir(tmp_path)  # names longer than 80 characters are cut
    folder = captioned(Path("many"))
    (folder / "broken.png").write_bytes(picture(COLOURS["red"])[:40])
    (folder / ".hidden.png").write_bytes(picture(COLOURS["red"]))
    Path("late.png").write_bytes(picture(COLOURS["red"]))
    words = ["classify", str(model), str(folder), "late.png", "--labels", "cat,dog"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert [line.rsplit("/")[-1] for line in said.out.splitlines() if ".png" in line] == [
        *(f"{name}.png" for name in sorted(COLOURS)),
        "late.png",
    ]
    assert said.err.splitlines() == [
        f"left out: 1 hidden (for example {folder}/.hidden.png)",
        f"diptych classify: {folder}/broken.png: the PNG ends early",
        "diptych classify: 1 of 8 pictures could not be classified",
    ]
    with pytest.raises(SystemExit):
        cli.main([*words, "--json", "--top", "1"])
    rows = lines_of_json(capsys)
    assert len(rows) == 8 and [row["error"] for row in rows if "error" in row] == ["the PNG ends early"]
    assert all(list(row["labels"][0]) == ["label", "probability"] for row in rows if "labels" in row)


def test_labels_and_templates_in_utf8_are_read_as_typed_whatever_the_locale(model, tmp_path, capsys):
    (tmp_path / "red.png").write_bytes(picture((255, 0, 0)))
    words = ["classify", str(model), str(tmp_path / "red.png"), "--json"]
    typed = ["größe,cat", "größe of {}"]
    kept = [text.encode("utf-8").decode("ascii", "surrogateescape") for text in typed]
    cli.main([*words, "--labels", typed[0], "--template", typed[1]])
    cli.main([*words, "--labels", kept[0], "--template", kept[1]])
    one, other = lines_of_json(capsys)
    assert one == other
    assert "is not UTF-8" in fails(capsys, *words, "--labels", "gr\udcf6sse,cat")


def test_labels_hold_commas_where_each_is_given_alone_or_on_a_line(model, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(picture(COLOURS["red"]))
    (tmp_path / "labels.txt").write_text("salt, pepper\n\ncat\r\n")
    words = ["classify", str(model), str(tmp_path / "a.png"), "--json"]

    def chosen(*more):
        cli.main([*words, *map(str, more)])
        return {each["label"]: each["probability"] for each in lines_of_json(capsys)[0]["labels"]}

    one_by_one = chosen("--labels", "salt, pepper", "--labels", "cat")
    assert set(one_by_one) == {"salt, pepper", "cat"}
    assert chosen("--labels", tmp_path / "labels.txt") == one_by_one
    assert set(chosen("--labels", "salt, pepper")) == {"salt", "pepper"}
    assert chosen("--labels", "cat,dog") == chosen("--labels", "cat,dog", "--template", "a photo of a {}.")
    assert chosen("--labels", "cat,dog") != chosen("--labels", "cat,dog", "--template", "{}")
    (tmp_path / "one.txt").write_text("cat\n")
    assert "leaves nothing to choose" in fails(capsys, *words, "--labels", tmp_path / "one.txt")


def test_embed_writes_the_encoders_embeddings_by_name_without_pickle(model, tmp_path, capsys):
    folder = captioned(tmp_path / "pictures")
    (folder / "broken.jpg").write_bytes(b"no")
    (tmp_path / "texts.txt").write_text("a cat\nein Übel\n", encoding="utf-8")
    cli.main(f"embed {model} --pictures {folder} --texts {tmp_path}/texts.txt --output {tmp_path}/out.npz".split())
    written = arrays_in(tmp_path / "out.npz")
    encoder = load(model, "cpu")
    expected = encoder.embed_pictures([folder / "red.png"]).numpy()[0]
    place = [name.rsplit("/", 1)[1] for name in written["pictures"]].index("red.png")
    np.testing.assert_allclose(written["picture_embeddings"][place], expected, atol=1e-5)  # in another batch
    np.testing.assert_allclose(
        written["text_embeddings"], encoder.embed_texts(["a cat", "ein Übel"]).numpy(), atol=1e-5
    )
    assert written["texts"].tolist() == ["a cat", "ein Übel"]
    assert len(written["pictures"]) == 6
    assert "broken.jpg" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.partial"))


def test_cluster_puts_pictures_that_look_alike_into_one_group(model, tmp_path, capsys, monkeypatch):
    with ShardWriter(tmp_path / "shards", 0) as writer:
        for row in range(12):
            colour = list(COLOURS.values())[row % 3]
            writer.add(f"{row:09d}", {"png": b"no" if row == 9 else picture(colour), "txt": b"a wall"})
    assert clustering.drawn_samples(12, 6).sum() == 6 and clustering.drawn_samples(12, 50).all()
    for samples_a_centre, samples_of_a_part in ((12, 12), (2, 5)):
        monkeypatch.setattr(clustering, "SAMPLES_A_CENTRE", samples_a_centre)
        monkeypatch.setattr(clustering, "SAMPLES_OF_A_PART", samples_of_a_part)
        cli.main(f"cluster {model} {tmp_path}/shards --groups 3 --output {tmp_path}/groups.npz".split())
        groups = read_groups(tmp_path / "groups.npz", open_index(tmp_path / "shards"))
        of_colours = [set(groups[[*range(colour, 9, 3)]].tolist()) for colour in range(3)]
        assert [len(each) for each in of_colours] == [1, 1, 1]
        assert np.flatnonzero(groups == groups.max()).tolist() == [9]
        assert sorted(set(groups.tolist())) == [*range(groups[9] + 1)]
        said = capsys.readouterr().out
        assert "12 samples in" in said and "1 picture that cannot be decoded" in said
    for words, expected in (
        (["--groups", "7"], "--groups 7: .* has 12 samples; expected 2 to 6 groups"),
        (["--groups", "0"], "--groups 0: .* expected 2 to 6 groups"),
        (["--output", "groups.txt"], "--output groups.txt must end in .npz"),
    ):
        assert re.search(expected, fails(capsys, "cluster", model, tmp_path / "shards", *words))
    with ShardWriter(tmp_path / "broken", 0) as writer:
        for row in range(6):
            writer.add(f"{row:09d}", {"png": picture(list(COLOURS.values())[row]) if row < 2 else b"no"})
    said = fails(capsys, "cluster", model, tmp_path / "broken", "--groups", "3")
    assert "only 2 pictures of 6 can be decoded, too few for 3 groups; 000000002: " in said
    assert "shrds does not exist" in fails(capsys, "cluster", model, tmp_path / "shrds")


def test_embed_reads_shards_and_dedup_reads_what_it_writes(model, tmp_path, capsys):
    """Two pictures that look alike to the model, in different shards, are found by their embeddings."""
    for number, seeds in enumerate(((0, 1, 2), (3, 4, 1))):
        with ShardWriter(tmp_path / "shards", number) as writer:
            for row, seed in enumerate(seeds):
                members = {"png": encoded(noise(seed), "PNG"), "txt": f"a {number} {row}".encode()}
                writer.add(f"{number:05d}{row:04d}", members)
    keys = ["000000000", "000000001", "000000002", "000010000", "000010001", "000010002"]
    encoder = load(model, "cpu")
    expected = encoder.embed_pictures([noise(seed) for seed in (0, 1, 2, 3, 4, 1)]).numpy()
    assert np.sort((expected @ expected.T)[np.triu_indices(6, 1)])[-2] < 0.999, "only one pair is equal"
    brace = tmp_path / "shards" / "{00000..00001}.tar"
    for number, location in enumerate(((tmp_path / "shards",), (brace,), brace.parent.glob("*.tar"))):
        out = tmp_path / f"{number}.npz"
        words = ["embed", model, "--pictures", *sorted(location), "--captions", "--output", out]
        cli.main([str(word) for word in words])
        written = arrays_in(out)
        assert written["pictures"].tolist() == keys
        np.testing.assert_allclose(written["picture_embeddings"], expected, atol=1e-5)
        assert written["captions"].tolist() == [f"a {key[4]} {key[-1]}" for key in keys]
        captions = encoder.embed_texts(written["captions"]).numpy()
        np.testing.assert_allclose(written["caption_embeddings"], captions, atol=1e-5)

    shards, embeddings = str(tmp_path / "shards"), str(tmp_path / "0.npz")
    assert dedup_main(["dedup", shards, "--embeddings", embeddings, "--cosine", "0.999", "--exact-only"]) == 0
    kept = {key: told[0] for key, told in verdict(tmp_path / "shards", "dedup").items()}
    assert kept == {**dict.fromkeys(keys, True), "000010002": False}


def test_a_sample_without_a_picture_or_caption_is_left_out_with_its_reason(model, tmp_path, capsys):
    with ShardWriter(tmp_path / "shards", 0) as writer:
        writer.add("a", {"png": picture(COLOURS["red"])})
        writer.add("b", {"txt": b"no picture"})
        writer.add("c", {"png": picture(COLOURS["blue"]), "txt": b"blue"})
    words = ["embed", str(model), "--pictures", str(tmp_path / "shards"), "--output", str(tmp_path / "o.npz")]
    cli.main(words)
    assert arrays_in(tmp_path / "o.npz")["pictures"].tolist() == ["a", "c"]
    assert "left out: b: the sample has no picture; it has txt" in capsys.readouterr().err
    cli.main([*words, "--captions"])
    assert arrays_in(tmp_path / "o.npz")["pictures"].tolist() == ["c"]
    said = capsys.readouterr().err
    assert "left out: b: the sample has no picture" in said
    assert "left out for their captions: 1 no_caption (for example 00000.tar/a)" in said


def test_a_line_of_texts_ends_at_lf_or_crlf_alone(model, tmp_path):
    lines = ["a red dog", "a blue\u2028cat", "a green\x0cbird", "a big\x85car", "a\x0b\x1c\x1d\x1e\u2029b"]
    lines += ["a\rb", "", "last"]
    for number, text in enumerate(("\n".join(lines), "\r\n".join(lines) + "\r\n")):
        (tmp_path / "t.txt").write_bytes(text.encode())
        out = tmp_path / f"{number}.npz"
        cli.main(["embed", str(model), "--texts", str(tmp_path / "t.txt"), "--output", str(out)])
        assert arrays_in(out)["texts"].tolist() == lines
        assert len(arrays_in(out)["text_embeddings"]) == len(lines)


def test_a_long_text_among_many_makes_no_huge_arrays(model, tmp_path, capsys):
    long = "x" * 60_000
    (tmp_path / "t.txt").write_text("a\n" * 400 + long + "\n")
    words = ["embed", str(model), "--texts", str(tmp_path / "t.txt"), "--output", str(tmp_path / "o.npz")]
    cli.main(words)
    written = arrays_in(tmp_path / "o.npz")
    assert (tmp_path / "o.npz").stat().st_size < 1 << 20
    text, ends = written["texts_utf8"].tobytes().decode(), written["texts_ends"]
    assert len(ends) == 401 and text[ends[-2] :] == long and text[ends[4] : ends[5]] == "a"
    (tmp_path / "t.txt").write_text("a\n" + "x" * 100_000)
    assert "line 2 has 100,000 characters; expected one text a line, of at most 65,536" in fails(capsys, *words)


def test_names_of_pictures_are_read_by_dedup_in_either_form():
    names = ["a", "\udcff.png", "ß"]
    for given in (names, names * 2_000 + ["x" * 4_000]):
        assert list(names_in(text_arrays("pictures", given))) == given


def test_mistakes_of_embed_are_one_line(model, tmp_path, capsys):
    assert "nothing to embed" in fails(capsys, "embed", model, "--output", tmp_path / "o.npz")
    assert ".npz" in fails(capsys, "embed", model, "--pictures", tmp_path, "--output", tmp_path / "o.txt")
    assert "contains no pictures" in fails(
        capsys, "embed", model, "--pictures", tmp_path, "--output", tmp_path / "o.npz"
    )
