import csv
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.data.shard_list import read_folder_list
from diptych.data.shards import open_index
from diptych.locks import locked
from diptych_shards.cli import main

pytestmark = pytest.mark.usefixtures("forked_workers")
COMMAND = [sys.executable, "-m", "diptych_shards"]


def picture(number=0, side=24, name="PNG"):
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, name)
    return file.getvalue()


def fill(folder, total=10, **options):
    for number in range(total):
        where = folder / f"part {number % 3}"
        where.mkdir(parents=True, exist_ok=True)
        (where / f"p{number}.png").write_bytes(picture(number, **options))
        (where / f"p{number}.txt").write_text(f"caption {number}\n", encoding="utf-8")
    return folder


def pack(folder, out, *options):
    return main(["pack", str(folder), str(out), "--processes", "1", *options])


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def samples(out):
    """Caption, metadata and picture by the picture's path."""
    index, found = open_index(out), {}
    for sample in index.samples():
        data = index.read(sample)
        facts = json.loads(data.pop("json"))
        found[facts["path"]] = data.pop("txt").decode(), facts, data
    return found


def rejected(out):
    lines = (out / "_index" / "rejected.jsonl").read_text().splitlines()
    return {line["path"]: line["reason"] for line in map(json.loads, lines)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "out"
    assert pack(folder, out, "--samples-per-shard", "4") == 0
    return out


# -- what is written ----------------------------------------------------------------------------------


def test_pictures_are_packed_unchanged_with_caption_and_metadata(folder, packed):
    found = samples(packed)
    assert len(found) == 10
    caption, facts, data = found["part 1/p4.png"]
    assert (caption, facts["caption"], facts["width"], facts["height"]) == ("caption 4", "caption 4", 24, 24)
    assert data == {"png": (folder / "part 1" / "p4.png").read_bytes()}
    assert sorted(path.name for path in packed.iterdir()) == ["00000.tar", "00001.tar", "00002.tar", "_index"]


# webdataset leaves the tar open
@pytest.mark.filterwarnings(r"ignore:Exception ignored in. <_io\.FileIO:pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_what_was_packed(packed):
    import webdataset

    tars = [str(path) for path in sorted(packed.glob("*.tar"))]
    seen = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len({sample["__key__"] for sample in seen}) == 10
    expected = {path: caption for path, (caption, _, _) in samples(packed).items()}
    assert {json.loads(sample["json"])["path"]: sample["txt"].decode() for sample in seen} == expected


def test_two_packs_are_equal_byte_for_byte_whatever_the_number_of_processes(folder, packed, tmp_path):
    assert main(["pack", str(folder), str(tmp_path / "out"), "--processes", "3", "--samples-per-shard", "4"]) == 0
    assert tree(tmp_path / "out") == tree(packed)


def test_samples_are_mixed_or_kept_in_the_order_of_their_paths(folder, packed, tmp_path):
    assert pack(folder, tmp_path / "out", "--keep-order") == 0
    kept, mixed = list(samples(tmp_path / "out")), list(samples(packed))
    assert kept == sorted(mixed) and kept != mixed


def test_the_record_of_the_options_stays_what_it_was(folder, tmp_path):
    for name, options, seed in (("mixed", (), 0), ("kept", ("--keep-order",), None)):
        assert pack(folder, tmp_path / name, *options) == 0
        assert json.loads((tmp_path / name / "_index" / "pack.json").read_bytes())["options"] == {
            "samples_per_shard": 10_000,
            "shard_bytes": 1_000_000_000,
            "seed": seed,
            "max_pixels": 100_000_000,
            "min_side": 2,
        }


def test_shards_are_bounded_in_bytes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("diptych_shards.pack.pack.SHARD_BYTES", 3 * len(picture()) + 60)
    assert pack(folder, tmp_path / "out") == 0
    assert [shard.samples for shard in open_index(tmp_path / "out").shards] == [3, 3, 3, 1]
    assert read_folder_list(tmp_path / "out").samples.tolist() == [3, 3, 3, 1]


def test_a_json_next_to_the_picture_gives_caption_and_metadata(tmp_path):
    here = tmp_path / "in"
    here.mkdir()
    for name in "abc":
        (here / f"{name}.png").write_bytes(picture())
    (here / "a.json").write_text(
        '{"caption": " über \\u00fc ", "label": "cat", "width": 1, "score": NaN}', encoding="utf-8"
    )
    (here / "b.json").write_text('{"label": "dog", "caption": "not this"}')
    (here / "b.txt").write_bytes("\ufefffrom the text".encode())
    (here / "c.JSON").write_text('{"caption": "c", "odd": "\\ud800"}')
    assert pack(here, tmp_path / "out") == 0
    found = samples(tmp_path / "out")
    assert found["a.png"][0] == "über ü" and found["b.png"][0] == "from the text"
    assert found["a.png"][1]["label"] == "cat" and found["b.png"][1]["label"] == "dog"
    assert (found["a.png"][1]["width"], found["a.png"][1]["given_width"]) == (24, 1)
    assert found["c.png"][1]["odd"] == "\ud800"


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_table_names_pictures_and_captions(folder, tmp_path, kind):
    rows = {
        "File_Name": [f"part {n % 3}/p{n}.png" for n in range(4)]
        + ["gone.png", "part 0/p0.png", "../up.png", "part 1"],
        "TEXT": ["eins", "zwei, drei", " ", 'quoted "x"\nnewline', "x", "eins", "x", "x"],
        "label": ["1", "2", "3", "4", "5", "6", "7", "8"],
    }
    table = tmp_path / f"pairs.{kind}"
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(rows), table)
    else:
        with open(table, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([rows, *zip(*rows.values(), strict=True)])
    assert pack(folder, tmp_path / "out", "--table", str(table)) == 0
    found = samples(tmp_path / "out")
    assert {path: caption for path, (caption, _, _) in found.items()} == {
        "part 0/p0.png": "eins",
        "part 1/p1.png": "zwei, drei",
        "part 0/p3.png": 'quoted "x"\nnewline',
    }
    assert found["part 1/p1.png"][1]["label"] == "2"
    assert rejected(tmp_path / "out") == {
        "part 2/p2.png": "empty_caption",
        "gone.png": "missing_file",
        "part 0/p0.png": "duplicate_path",
        "../up.png": "outside_folder",
        "part 1": "not_a_file",
    }


def test_several_captions_of_a_picture_are_all_kept_the_first_as_its_text(tmp_path):
    here = tmp_path / "in"
    here.mkdir()
    for name in "abcde":
        (here / f"{name}.png").write_bytes(picture())
    (here / "a.txt").write_bytes(b"one \r\n\n  two\rthree\n")
    (here / "b.json").write_text('{"caption": ["one", "two"], "captions": "kept"}')
    (here / "c.json").write_text('{"captions": ["one"]}')
    (here / "d.txt").write_text("a line separator\u2028 ends no caption", encoding="utf-8")
    (here / "e.json").write_text('{"caption": ["one", 2]}')
    assert pack(here, tmp_path / "out") == 0
    found = samples(tmp_path / "out")
    assert {path: (caption, facts.get("captions")) for path, (caption, facts, _) in found.items()} == {
        "a.png": ("one", ["one", "two", "three"]),
        "b.png": ("one", ["one", "two"]),
        "c.png": ("one", None),
        "d.png": ("a line separator\u2028 ends no caption", None),
    }
    assert found["b.png"][1]["given_captions"] == "kept"
    assert rejected(tmp_path / "out") == {"e.png": "caption_not_text"}


def test_several_captions_come_from_a_list_or_several_rows_of_a_table(folder, tmp_path):
    rows = [
        {"file_name": "part 0/p0.png", "text": ["one", " ", "two", None], "label": 1},
        {"file_name": "part 1/p1.png", "text": "eins"},
        {"file_name": "part 0/p0.png", "text": ["two", "three"], "label": 2},
        {"file_name": "part 1/p1.png", "text": "eins"},
        {"file_name": "part 2/p2.png", "text": float("nan")},
        {"file_name": "part 0/p3.png", "text": {"en": "x"}},
        {"file_name": "part 1/p4.png", "text": [" ", None]},
    ]
    table = tmp_path / "metadata.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    assert pack(folder, tmp_path / "out", "--table", str(table)) == 0
    found = samples(tmp_path / "out")
    assert {path: (caption, facts.get("captions")) for path, (caption, facts, _) in found.items()} == {
        "part 0/p0.png": ("one", ["one", "two", "three"]),
        "part 1/p1.png": ("eins", None),
    }
    assert found["part 0/p0.png"][1]["label"] == 1
    assert rejected(tmp_path / "out") == {
        "part 1/p1.png": "duplicate_path",
        "part 2/p2.png": "no_caption",
        "part 0/p3.png": "caption_not_text",
        "part 1/p4.png": "empty_caption",
        "metadata.jsonl, line 8": "malformed_row",
    }


@pytest.mark.parametrize("where", ["in", "in/part 0", "."])
def test_paths_of_a_table_are_relative_to_its_folder_or_to_that_of_the_pictures(tmp_path, where):
    here = fill(tmp_path / "in", 3)
    table = tmp_path / where / "t.csv"
    relative = os.path.relpath(here / "part 0" / "p0.png", table.parent)
    table.write_text(f"path,caption\n{relative},one\npart 1/p1.png,two\n{here / 'part 2' / 'p2.png'},three\n")
    assert pack(here, tmp_path / "out", "--table", str(table)) == 0
    captions = {path: caption for path, (caption, _, _) in samples(tmp_path / "out").items()}
    assert captions == {"part 0/p0.png": "one", "part 1/p1.png": "two", "part 2/p2.png": "three"}


def test_a_path_is_looked_for_in_the_folder_of_the_table_first(tmp_path):
    here = fill(tmp_path / "in", 1)
    (here / "p0.png").write_bytes(picture(1))
    (here / "part 0" / "t.csv").write_text("path,caption\np0.png,one\n")
    assert pack(here, tmp_path / "out", "--table", str(here / "part 0" / "t.csv")) == 0
    assert list(samples(tmp_path / "out")) == ["part 0/p0.png"]


def photo(number, width=400, height=300, name="JPEG"):
    file = io.BytesIO()
    small = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file, name)
    return file.getvalue()


def test_pictures_are_resized_for_training_as_build_does(tmp_path):
    from diptych_shards.pictures.picture import for_training, process_picture

    here = tmp_path / "in"
    here.mkdir()
    for name, kind in (("a.jpg", "JPEG"), ("b.tiff", "TIFF"), ("c.png", "PNG")):
        (here / name).write_bytes(photo(1, name=kind))
        (here / name).with_suffix(".txt").write_text("x")
    assert pack(here, tmp_path / "out", "--for-training", "64") == 0
    found = samples(tmp_path / "out")
    for name in ("a.jpg", "b.tiff", "c.png"):
        data = (here / name).read_bytes()
        _, facts, members = found[name]
        assert members == {"jpg": process_picture(data, for_training(64)).data}
        sizes = [facts[key] for key in ("width", "height", "original_width", "original_height")]
        assert sizes == [85, 64, 400, 300]
    assert pack(here, tmp_path / "out", "--for-training", "65") == 2


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_that_build_reads_is_packed(tmp_path, kind):
    if kind == "AVIF":
        pytest.importorskip("PIL._avif")
    here = tmp_path / "in"
    here.mkdir()
    (here / f"a.{kind.lower()}").write_bytes(photo(1, name=kind))
    (here / "a.txt").write_text("x")
    assert pack(here, tmp_path / "out") == 0
    ((_, facts, members),) = samples(tmp_path / "out").values()
    ((suffix, data),) = members.items()
    assert suffix == ("avif" if kind == "AVIF" else "jpg")
    stored, original = (np.asarray(Image.open(io.BytesIO(each)).convert("RGB"), np.float64)
                        for each in (data, photo(1, name=kind)))  # fmt: skip
    assert np.sqrt(np.mean((stored - original) ** 2)) < (
        12 if kind == "GIF" else 4
    )  # JPEG, quality 95; a GIF is dithered
    assert facts["sha256"] == hashlib.sha256(photo(1, name=kind)).hexdigest()


def test_folders_that_are_classes_give_captions_by_a_template(tmp_path, capsys):
    here = fill(tmp_path / "in", 3)
    for name in ("part 0/p0.txt", "part 1/p1.txt"):
        (here / name).unlink()
    (here / "loose.png").write_bytes(picture(9))
    assert pack(here, tmp_path / "out", "--caption-template", "a photo of a {}.") == 0
    found = samples(tmp_path / "out")
    assert {path: (caption, facts.get("label")) for path, (caption, facts, _) in found.items()} == {
        "part 0/p0.png": ("a photo of a part 0.", "part 0"),
        "part 1/p1.png": ("a photo of a part 1.", "part 1"),
        "part 2/p2.png": ("caption 2", None),
    }
    assert rejected(tmp_path / "out") == {"loose.png": "no_caption"}
    assert pack(here, tmp_path / "other", "--caption-template", "a photo") == 2
    assert "must hold {} once" in capsys.readouterr().err
    assert pack(here, tmp_path / "other", "--caption-template", "{}", "--table", str(here / "t.csv")) == 2
    assert "leave one of them out" in capsys.readouterr().err


def test_a_part_is_held_out_by_the_bytes_of_the_pictures_and_stays_so_when_the_folder_grows(tmp_path, capsys):
    here = fill(tmp_path / "in", 60)
    for number in range(0, 60, 3):  # copies under other names, in another folder
        (here / f"copy{number}.png").write_bytes(picture(number))
        (here / f"copy{number}.txt").write_text("another caption")
    assert pack(here, tmp_path / "out", "--hold-out", "0.3") == 0
    train, held_out = (samples(tmp_path / "out" / part) for part in ("train", "held_out"))
    assert len(train) + len(held_out) == 80 and 8 <= len(held_out) <= 40
    assert not {facts["sha256"] for _, facts, _ in train.values()} & {f["sha256"] for _, f, _ in held_out.values()}
    before = tree(tmp_path / "out")
    assert pack(here, tmp_path / "out", "--hold-out", "0.3") == 0 and tree(tmp_path / "out") == before

    fill(here, 100)
    assert pack(here, tmp_path / "grown", "--hold-out", "0.3") == 0
    grown = samples(tmp_path / "grown" / "held_out")
    assert grown.keys() >= held_out.keys() and not grown.keys() & train.keys()
    said = capsys.readouterr().out
    assert f"packed {len(held_out)} samples into 1 shard" in said and str(tmp_path / "out" / "held_out") in said


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ("5", "give the share that is held out, such as 0.05"),
        ("0.0001", "holds out none"),
        ("0.9999", "trains on none"),
    ],
)
def test_a_share_that_leaves_a_part_empty_is_refused_before_anything_is_written(
    folder, tmp_path, capsys, share, message
):
    assert pack(folder, tmp_path / "out", "--hold-out", share) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_is_held_out_and_what_is_not_share_no_folder(folder, packed, tmp_path, capsys):
    shutil.copytree(packed, tmp_path / "out")
    assert pack(folder, tmp_path / "out", "--samples-per-shard", "4", "--hold-out", "0.3") == 2
    assert "perhaps shards without --hold-out" in capsys.readouterr().err
    assert tree(tmp_path / "out") == tree(packed)


def test_parquet_values_of_every_type_become_json(folder, tmp_path):
    import datetime
    import decimal

    import pyarrow
    import pyarrow.parquet

    columns = {
        "path": ["part 0/p0.png"],
        "caption": ["x"],
        "when": [datetime.datetime(2020, 1, 2, 3)],
        "none": [None],
        "price": [decimal.Decimal("1.50")],
        "nan": [float("nan")],
        "raw": [b"\xff"],
        "boxes": [[[0.5, 1.0]]],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    assert pack(folder, tmp_path / "out", "--table", str(tmp_path / "t.parquet")) == 0
    facts = samples(tmp_path / "out")["part 0/p0.png"][1]
    given = {name: facts[name] for name in ("when", "none", "price", "nan", "raw", "boxes")}
    assert given == {
        "when": "2020-01-02T03:00:00",
        "none": None,
        "price": "1.50",
        "nan": None,
        "raw": "ff",
        "boxes": [[0.5, 1.0]],
    }


# -- what is refused ----------------------------------------------------------------------------------


def test_every_bad_file_is_refused_with_its_reason_and_counted(tmp_path, monkeypatch, capsys):
    here = fill(tmp_path / "in", 3)
    good = picture()
    pictures = {
        "html.jpg": b"<html>",
        "gif.png": b"GIF89a",
        "cut.png": good[:-20],
        "strip.png": picture(side=1),
        "empty.jpg": b"",
        "big.png": picture(side=200),
        "flipped.png": good[:60] + b"\0" + good[61:],
        "no.png": good,
        "space.png": good,
        "latin.png": good,
        "list.png": good,
        "broken.png": good,
        "long.png": good,
        "number.png": good,
        "nocaption.png": good,
        "twice.png": good,
    }
    captions = {
        "space.txt": b" \n",
        "latin.txt": b"\xe9",
        "list.json": b"[]",
        "broken.json": b"{",
        "orphan.txt": b"x",
        "long.txt": b"x" * 100_000,
        "number.json": b'{"caption": 3}',
        "nocaption.json": b"{}",
        "twice.json": b'{"caption": "one",\n "caption": "two"}',
    }
    for name, data in {**pictures, **captions}.items():
        (here / name).write_bytes(data)
    for name in ("html", "gif", "cut", "strip", "empty", "big", "flipped"):
        (here / f"{name}.txt").write_text("x")
    (here / "other.gif").write_bytes(b"GIF89a")
    for name in ("other.svg", "other.pdf", ".hidden"):
        (here / name).write_bytes(b"x")
    (here / "other.txt").write_text("the caption of the gif is no orphan")
    os.mkfifo(here / "fifo.png")
    (here / "dangling.png").symlink_to("nowhere")
    (here / "loop").symlink_to(".")
    (here / "empty" / "class").mkdir(parents=True)
    monkeypatch.setattr("diptych_shards.pack.pack.MAX_PIXELS", 10_000)
    assert pack(here, tmp_path / "out") == 0
    expected = {
        "html.jpg": "not_a_picture",
        "gif.png": "decode_error",
        "cut.png": "truncated",
        "strip.png": "too_small",
        "empty.jpg": "not_a_picture",
        "big.png": "too_many_pixels",
        "flipped.png": "decode_error",
        "no.png": "no_caption",
        "space.png": "empty_caption",
        "latin.png": "caption_not_utf8",
        "list.png": "bad_json",
        "broken.png": "bad_json",
        "long.png": "caption_too_long",
        "number.png": "caption_not_text",
        "nocaption.png": "no_caption",
        "twice.png": "bad_json",
        "orphan.txt": "orphan_caption",
        "other.gif": "decode_error",
        "other.svg": "format_not_allowed",
        "other.pdf": "not_a_picture",
        ".hidden": "hidden",
        "fifo.png": "not_a_file",
        "dangling.png": "missing_file",
        "loop": "linked_folder",
        "empty/class/": "empty_folder",
    }
    assert rejected(tmp_path / "out") == expected
    assert len(samples(tmp_path / "out")) == 3
    printed, progress = capsys.readouterr()
    assert f"refused {len(expected)}" in printed
    assert f"{len(expected) + 3} of {len(expected) + 3} pictures, {len(expected)} refused" in progress
    assert all(reason in printed for reason in expected.values())
    details = (tmp_path / "out" / "_index" / "rejected.jsonl").read_text()
    assert "the key 'caption' appears twice; keep one of the two: line 2" in details
    state = json.loads((tmp_path / "out" / "_index" / "pack.json").read_text())
    assert state["packed"] == 3 and sum(state["refused"].values()) == len(expected)


def test_hostile_names_are_packed_and_shown_escaped(warm, tmp_path):
    here = tmp_path / "in"
    here.mkdir()
    stems = [
        b"new\nline",
        b"\x1b[31mred",
        b"not\xffutf8",
        "\u202eturned".encode(),
        b"-rf",
        b"a'b\"c",
        b"k" * 240,
    ]
    for stem in stems:
        (Path(os.fsdecode(bytes(here) + b"/" + stem + b".png"))).write_bytes(picture())
        (Path(os.fsdecode(bytes(here) + b"/" + stem + b".txt"))).write_bytes(b"x")
        (Path(os.fsdecode(bytes(here) + b"/" + stem + b"-bad.png"))).write_bytes(b"x")
        (Path(os.fsdecode(bytes(here) + b"/" + stem + b"-bad.txt"))).write_bytes(b"x")
    done = warm.start("pack", here, tmp_path / "out", "--processes", 1, program="diptych_shards")
    assert done.wait() == 0 and len(samples(tmp_path / "out")) == len(stems) == len(rejected(tmp_path / "out"))
    assert all(line.isprintable() for line in done.said.splitlines())
    assert all(path.isprintable() for path in samples(tmp_path / "out"))
    assert os.fsdecode(b"not\xffutf8-bad.png") in rejected(tmp_path / "out")


def test_nothing_to_pack_is_an_error(tmp_path, capsys):
    here = tmp_path / "in"
    here.mkdir()
    (here / "a.png").write_bytes(picture())
    assert pack(here, tmp_path / "out") == 2
    said = capsys.readouterr()
    assert "no picture with a caption" in said.err and "no_caption" in said.out
    assert "--caption-template" in said.err
    (here / "metadata.jsonl").write_text("{}")
    assert pack(here, tmp_path / "out") == 2
    assert f"add --table {here / 'metadata.jsonl'}" in capsys.readouterr().err
    (here / "metadata.jsonl").unlink()
    (here / "a.png").write_bytes(b"x")
    (here / "a.txt").write_bytes(b"x")
    assert pack(here, tmp_path / "out") == 2
    assert "no picture could be packed" in capsys.readouterr().err


# -- stopped and started again ------------------------------------------------------------------------


def test_killed_anywhere_and_started_again_the_bytes_are_those_of_one_run(warm, tmp_path):
    here = fill(tmp_path / "in", 180, side=160)
    (here / "bad.png").write_bytes(b"x")
    (here / "bad.txt").write_bytes(b"x")
    options = ["--samples-per-shard", "15", "--processes", "2"]
    assert main(["pack", str(here), str(tmp_path / "whole"), *options]) == 0
    out = tmp_path / "out"
    for moment in ("_index/pack.json", "00003.tar.partial", "_index/00008.tar.index"):
        running = warm.start("pack", here, out, *options, program="diptych_shards")
        running.wait_until((out / moment).exists)
        running.signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        kept = {path.name: path.stat().st_mtime_ns for path in (out / "_index").glob("*.index")}
    assert main(["pack", str(here), str(out), *options]) == 0
    assert tree(out) == tree(tmp_path / "whole")
    assert kept and all((out / "_index" / name).stat().st_mtime_ns == when for name, when in kept.items())


def test_started_again_after_the_end_it_changes_nothing(folder, packed, tmp_path, capsys):
    before = tree(packed)
    assert pack(folder, packed, "--samples-per-shard", "4") == 0
    assert "packed 10 samples into 3 shards" in capsys.readouterr().out
    assert tree(packed) == before


@pytest.mark.parametrize("harm", ["flip", "cut", "no index", "no tar", "broken index", "no state"])
def test_a_damaged_shard_of_a_finished_pack_is_packed_again(folder, packed, tmp_path, harm):
    out = tmp_path / "out"
    shutil.copytree(packed, out)
    tar, index = out / "00001.tar", out / "_index" / "00001.tar.index"
    data = tar.read_bytes()
    if harm == "flip":
        tar.write_bytes(data[:600] + bytes([data[600] ^ 1]) + data[601:])
    elif harm == "cut":
        tar.write_bytes(data[:-1])
    elif harm == "no index":
        index.unlink()
    elif harm == "no tar":
        tar.unlink()
    elif harm == "broken index":
        index.write_bytes(b"")
    else:
        tar.unlink()
        (out / "00001.tar.partial").write_bytes(b"half")
        (out / "_index" / "pack.json").write_bytes(
            json.dumps({**json.loads((out / "_index" / "pack.json").read_bytes()), "finished": False}).encode()
        )
    assert pack(folder, out, "--samples-per-shard", "4") == 0
    assert tree(out) == tree(packed)


def test_another_input_or_other_options_are_refused_and_nothing_is_lost(tmp_path, capsys):
    here, out = fill(tmp_path / "in", 4), tmp_path / "out"
    assert pack(here, out) == 0
    before = tree(out)
    assert pack(here, out, "--samples-per-shard", "5") == 2
    assert "samples_per_shard 10000, now 5" in capsys.readouterr().err
    (here / "more.png").write_bytes(picture())
    (here / "more.txt").write_bytes(b"x")
    assert pack(here, out) == 2
    printed = capsys.readouterr().err
    assert "is not what" in printed and len(printed.splitlines()) == 1
    assert "data.train takes a list" in printed
    assert tree(out) == before


def test_a_full_disk_is_one_line_and_the_same_command_resumes_later(folder, packed, tmp_path):
    out = tmp_path / "out"
    command = [*COMMAND, "pack", str(folder), str(out), "--samples-per-shard", "4", "--processes", "1"]
    limited = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
    )
    assert limited.returncode == 2
    assert f"at {out}/00000.tar: make room" in limited.stderr.splitlines()[-1]
    assert "Traceback" not in limited.stderr
    assert not list(out.glob("*.tar*"))
    assert pack(folder, out, "--samples-per-shard", "4") == 0
    assert tree(out) == tree(packed)


def test_ctrl_c_prints_how_to_resume(warm, tmp_path):
    here, out = tmp_path / "in", tmp_path / "out"
    here.mkdir()
    png = picture(side=200)
    for number in range(300):  # the signal must come before the end
        (here / f"{number}.png").write_bytes(png)
        (here / f"{number}.txt").write_bytes(b"x")
    running = warm.start("pack", here, out, "--samples-per-shard", 5, "--processes", 1, program="diptych_shards")
    running.wait_until((out / "00000.tar").exists)
    running.signal(signal.SIGINT)
    assert running.wait() == 130 and running.said.splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in running.said


def test_a_second_pack_into_the_same_folder_waits_its_turn(folder, tmp_path, capsys):
    with locked(tmp_path / "out" / "_index", "pack"):
        assert pack(folder, tmp_path / "out") == 2
    assert "another pack is at work" in capsys.readouterr().err
    assert pack(folder, tmp_path / "out") == 0
