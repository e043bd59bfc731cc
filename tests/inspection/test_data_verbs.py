"""`diptych data stats` and `diptych data preview` on real shards with known contents."""

import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from diptych.cli import main
from diptych.data.shard_writer import ShardWriter
from diptych.data.shards import open_index
from diptych.data.tokenizer import train_vocabulary
from diptych.inspection import samples as inspection_samples
from diptych.inspection.feeding import feeding
from diptych.inspection.page import pieces
from diptych.inspection.samples import draw_samples
from diptych.inspection.statistics import start_statistics
from tests.training.tiny import MODEL

TOKENIZER = train_vocabulary(["a red square", "a blue square", "one more red square"], 560)
LONG = "a red square " * 12
SIZE = 16


def picture(format="JPEG", size=(40, 20), **options):
    data = io.BytesIO()
    Image.fromarray(np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)).save(
        data, format, **options
    )
    return data.getvalue()


MEMBERS = [
    *[{"jpg": picture(), "txt": b"a red square"}] * 5,
    {"jpg": picture(progressive=True), "txt": b"a blue square"},
    {"png": picture("PNG", size=(10, 30)), "txt": LONG.encode()},
    {"jpg": picture(), "txt": b"  "},
    {
        "jpg": picture()[:-200],
        "json": b'{"alt": ["", "one"], "title": "", "width": 40}',
        "txt": "<script>alert('one')</script> \u202e🎉".encode(),
    },
    {"txt": b"no picture"},
]


@pytest.fixture
def shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(2):
        with ShardWriter(folder, number) as writer:
            for key, members in enumerate(MEMBERS):
                writer.add(f"{number}-{key}", members)
    return folder


@pytest.fixture
def words(shards, tmp_path):
    """The arguments of both verbs: the shards, and a model whose pictures and captions are small."""
    vocabulary = tmp_path / "vocabulary.json"
    TOKENIZER.save(vocabulary)
    settings = [f"tokenizer.vocabulary={vocabulary}", f"model.image.image_size={SIZE}", "model.text.context_length=10"]
    overrides = json.dumps(MODEL.image.overrides)
    settings += [f"model.image.name={MODEL.image.name}", f"model.image.overrides={overrides}"]
    return [str(shards), *(word for setting in settings for word in ("--config", setting))]


def test_statistics_count_what_the_shards_contain(words, capsys):
    main(["data", "stats", *words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["shards"], found["drawn"]) == (20, 2, {"samples": 20, "shards": 2})
    assert found["rejected"]["reasons"] == {"no_caption": 2, "truncated": 2, "no_picture": 2}
    assert found["rejected"]["share"] == 0.3
    assert found["pictures"]["formats"] == {"JPEG": 14, "progressive JPEG": 2, "PNG": 2}
    assert found["pictures"]["shorter_side"] == {"p5": 10, "p50": 20, "p95": 20}
    assert found["pictures"]["width_to_height"] == {"p5": 0.33, "p50": 2.0, "p95": 2.0}
    assert found["pictures"]["enlarged"] == 2
    captions = found["captions"]
    assert (captions["counted"], captions["cut"], captions["cut_share"]) == (14, 2, 2 / 14)
    assert captions["fields"] == {"txt": 0.9, "alt": 0.1}
    assert captions["tokens"]["p95"] == len(TOKENIZER.encode(LONG)) + 2
    assert captions["compared"] == captions["repeated"] == 20
    assert captions["most_repeated"][0] == {"caption": "a red square", "times": 10}
    assert found["decoding"]["timed"] == 14 and found["decoding"]["samples_per_core_second"] > 0


def test_statistics_name_a_caption_field_of_the_config_that_no_sample_has(words, shards, capsys):
    source = json.dumps([{"shards": str(shards), "captions": {"txt": 0.5, "title": 0.5}}])
    main(["data", "stats", *words[1:], "--config", f"data.train={source}"])
    assert re.search(r"with text +txt 90.0\u202f%, alt 10.0\u202f%, title 0\u202f%\n", capsys.readouterr().out)


def test_cores_are_the_appetite_of_a_gpu_over_the_speed_of_a_core(words, capsys):
    main(["data", "stats", *words, "--json", "--gpu", "h100"])
    found = json.loads(capsys.readouterr().out)
    (taken,) = found["feeding"]["gpus"]
    assert taken["gpu"] == "H100"
    assert taken["samples_per_second"] == pytest.approx(989e12 * 0.4 / found["feeding"]["flops_of_pair"])
    assert taken["cores"] == pytest.approx(taken["samples_per_second"] / found["decoding"]["samples_per_core_second"])


def test_without_a_measured_speed_no_cores_are_named():
    fed = feeding(MODEL, 100, ["H100"], mean_tokens=8, samples_per_core_second=None)
    assert fed.gpus[0].cores is None and fed.gpus[0].samples_per_second > 0


def test_statistics_fit_80_columns_and_agree_with_their_json(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["data", "stats", *words])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "6 of 20 samples (30.0\u202f%): no_caption 2, truncated 2, no_picture 2" in " ".join(text.split(" "))
    assert re.search(r"cut off +2 of 14 captions", text)


def test_the_page_shows_what_the_model_sees_and_what_is_rejected(words, tmp_path, capsys):
    page = tmp_path / "pages" / "page.html"
    main(["data", "preview", *words, "--out", str(page)])
    assert capsys.readouterr().out == f"{page}\n"
    html = page.read_text(encoding="utf-8")
    shown, _, rejected = html.partition('<section id="rejected">')
    assert shown.count("<article") == 14 and shown.count("data:image/webp") == 28
    assert shown.count("cut here") == 2 and "cut to 10" in shown
    for reason, key in (("no_caption", "0-7"), ("truncated", "0-8"), ("no_picture", "1-9")):
        assert rejected.count(f'<p class="reason">{reason}</p>') == 2
        assert re.search(rf"0000\d\.tar/{key}\b", rejected)
    assert "<script" not in html and "\u202e" not in html and "&lt;script&gt;" in rejected
    assert "http" not in re.sub(r"http-equiv", "", html)


def test_equal_seeds_give_equal_pages_and_another_seed_another_one(words, tmp_path):
    pages = []
    for number, seed in enumerate((3, 3, 4)):
        path = tmp_path / f"{number}.html"
        main(["data", "preview", *words, "--seed", str(seed), "--samples", "4", "--output", str(path)])
        pages.append(path.read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_samples_are_drawn_one_from_each_stretch(shards):
    index = open_index(shards)
    for number in (1, 5, 20, 50):
        drawn = draw_samples(index, number, seed=1)
        size = min(number, 20)
        assert [sample * size // 20 for sample in drawn] == list(range(size))
    assert draw_samples(index, 5, seed=1) == draw_samples(index, 5, seed=1) != draw_samples(index, 5, seed=2)


def test_samples_of_many_shards_come_from_a_bounded_number_of_them(shards, monkeypatch):
    for number in range(2, 9):
        with ShardWriter(shards, number) as writer:
            for key in range(number):
                writer.add(f"{key}", MEMBERS[0])
    monkeypatch.setattr(inspection_samples, "MOST_SHARDS", 3)
    index = open_index(shards)
    drawn = draw_samples(index, 10_000, seed=0)
    assert len(set(drawn)) == len(drawn)
    chosen, rows = index.locate_many(np.array(drawn))
    assert sorted(number * 3 // 9 for number in set(chosen.tolist())) == [0, 1, 2]
    assert sum(index.counts[number] for number in set(chosen.tolist())) == len(drawn)


def test_sources_are_seen_by_their_weights_as_in_training(shards):
    for number in (2, 3):
        with ShardWriter(shards, number) as writer:
            for key in range(400):
                writer.add(f"{key}", MEMBERS[0])
    index = open_index(shards)
    drawn = np.array(draw_samples(index, 100, seed=0, sources=[(3, 1.0), (1, 3.0)]))
    assert (np.diff(drawn) > 0).all()
    assert np.count_nonzero(drawn < index.counts[:3].sum()) == 25 and len(drawn) == 100


def test_pieces_of_a_caption_are_whole_letters_that_join_to_its_text():
    tokens = tuple(TOKENIZER.encode("a blue 猫 🎉 square"))
    found = list(pieces(tokens, TOKENIZER, 77))
    assert "".join(piece.text + " " * piece.ends_word for piece in found) == TOKENIZER.decode(tokens) + " "
    assert "\ufffd" not in "".join(piece.text for piece in found)
    cut = list(pieces(tokens, TOKENIZER, 4))
    assert [piece.is_cut for piece in cut][:3] == [False, False, True]


def test_the_shards_of_a_config_are_looked_at_if_none_are_named(shards, words, tmp_path, capsys):
    config = tmp_path / "my.yaml"
    config.write_text(f"data: {{train: {shards}}}\ntraining: {{total_samples: 64, global_batch_size: 8}}\n")
    main(["data", "stats", "--config", str(config), *words[1:], "--json", "--samples", "4"])
    assert json.loads(capsys.readouterr().out)["drawn"]["samples"] == 4


def test_a_mistake_is_one_line_and_status_2_and_leaves_no_page(words, shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.yaml").write_text(
        "data: {augmentatoin: none}\ntraining: {total_samples: 64, global_batch_size: 8}\n"
    )
    cut = shutil.copytree(shards, tmp_path / "cut")
    (cut / "00001.tar").write_bytes((cut / "00001.tar").read_bytes()[:3000])
    options = words[1:]
    cases = {
        "shrads does not exist": ["shrads", *options],
        "holds no .tar file": ["empty", *options],
        "it is truncated": ["cut", *options],
        "did you mean data.augmentation?": ["shards", "--config", "bad.yaml"],
        "no shards; name a folder": options,
        "at least 1": ["shards", "--samples", "0"],
    }
    for verb in ("preview", "stats"):
        for said, given in cases.items():
            with pytest.raises(SystemExit) as caught:
                main(["data", verb, *given])
            (line,) = capsys.readouterr().err.splitlines()
            assert caught.value.code == 2 and said in line and line.startswith(f"diptych data {verb}: "), line
    with pytest.raises(SystemExit):
        main(["data", "stats", *words, "--gpu", "abacus"])
    assert "--gpu abacus: its speed is not known; name one of B200" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.html"))


def test_shards_of_which_every_sample_is_rejected_are_described_too(words, shards, tmp_path, capsys):
    shutil.rmtree(shards)
    shards.mkdir()
    for number in range(2):
        with ShardWriter(shards, number) as writer:
            writer.add("only", {"jpg": b"nothing", "txt": b""})
    page = tmp_path / "page.html"
    main(["data", "preview", *words, "--output", str(page)])
    assert '<section id="samples">' not in page.read_text() and '<section id="rejected">' in page.read_text()
    main(["data", "stats", *words])
    text = " ".join(capsys.readouterr().out.split())
    assert "0 of 0 captions (0 %) occur more than once" in text
    assert "2 of 2 samples (100 %): no_caption 2" in text
    assert text.endswith("not measured: every sample was rejected")


def test_a_caption_that_just_fits_is_not_cut_off_and_a_picture_of_the_models_size_is_not_enlarged(shards):
    counted = start_statistics(open_index(shards), [0], image_size=SIZE, context_length=10)
    counted.tokens.add(np.array([10, 11, 400]))
    counted.shorter_side.add(np.array([SIZE, SIZE - 1]))
    assert (counted.num_cut, counted.num_enlarged) == (2, 1)
    assert counted.mean_tokens == 10
