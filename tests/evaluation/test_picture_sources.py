from __future__ import annotations

import io
import json
import os
import tarfile
import threading
import time
import weakref
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from diptych.data.shard_writer import ShardWriter
from diptych.evaluation.embedding import MOST_THREADS, PICTURES_AT_ONCE, embed
from diptych.evaluation.labels import named
from diptych.evaluation.picture_sources import open_captioned, open_labelled, open_pictures
from diptych.evaluation.pictures import Pictures
from diptych_shards.cli import main
from tests.evaluation.colours import COLOURS, ColourEncoder, picture, write_tree


def write_shards(folder, samples):
    for number in range(2):
        with ShardWriter(folder, number) as writer:
            for key, members in list(samples.items())[number::2]:
                writer.add(key, members)
    return str(folder)


def test_a_tree_a_table_and_shards_give_the_same_pictures_and_labels(tmp_path):
    tree = write_tree(tmp_path / "tree", ["red", "blue"])
    files = sorted(tree.rglob("*.png"))
    rows = [(file.relative_to(tmp_path), file.parent.name) for file in files]
    table = tmp_path / "table.csv"
    table.write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    columns = {"path": [str(path) for path, _ in rows], "colour": [label for _, label in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "table.parquet")
    shards = write_shards(
        tmp_path / "shards",
        {
            f"k{number}": {
                "png": file.read_bytes(),
                "json": json.dumps({"colour": file.parent.name}).encode(),
            }
            for number, file in enumerate(files)
        },
    )

    expected = sorted((file.read_bytes(), file.parent.name) for file in files)
    for opened in (
        open_labelled(str(tree)),
        open_labelled(str(table)),
        open_labelled(str(tmp_path / "table.parquet"), "colour"),
        open_labelled(shards, "colour"),
    ):
        assert sorted((opened.read(place), opened.labels[place]) for place in range(len(opened))) == expected


def test_several_captions_of_a_picture_come_from_repeated_rows_or_a_list_in_the_json(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(picture(COLOURS["red"]))
    (tmp_path / "table.csv").write_text("path,caption\na.png,one\nb.png,two\na.png,three\n")
    assert open_captioned(str(tmp_path / "table.csv")).captions == (("one", "three"), ("two",))

    red = picture(COLOURS["red"])
    shards = write_shards(
        tmp_path / "shards",
        {
            "a": {"png": red, "txt": b" alt \n", "json": b'{"captions": ["one", "three"]}'},
            "b": {"png": red, "txt": "zwei ü".encode(), "json": b'{"captions": "two"}'},
        },
    )
    assert open_captioned(shards).captions == (("alt",), ("zwei ü",))
    assert open_captioned(shards, "captions").captions == (("one", "three"), ("two",))


def test_captions_next_to_pictures_are_read_as_pack_reads_them(tmp_path):
    tree, red = tmp_path / "tree", picture(COLOURS["red"])
    captions = {
        "text.txt": b"\xef\xbb\xbf from the text \n",
        "both.TXT": "ü".encode(),
        "both.json": b'{"caption": "not this", "label": "x"}',
        "sub/object.json": '{"caption": " ö ", "labels": ["one", "two"]}'.encode(),
        "latin.txt": "é".encode("latin-1"),
        "space.txt": b" \n",
        "number.json": b'{"caption": 3}',
        "broken.json": b"{",
        "long.txt": b"x" * 100_000,
        "other.txt": b"of no picture",
    }
    for name in ("text", "both", "sub/object", "latin", "space", "number", "broken", "long", "bare"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / f"{name}.png").write_bytes(red)
    for name, data in captions.items():
        (tree / name).write_bytes(data)

    opened = open_captioned(str(tree))
    assert main(["pack", str(tree), str(tmp_path / "packed"), "--processes", "1", "--keep-order"]) == 0
    packed = open_captioned(str(tmp_path / "packed"))

    assert dict(zip(opened.names, opened.captions, strict=True)) == {
        "both.png": ("ü",),
        "sub/object.png": ("ö",),
        "text.png": ("from the text",),
    }
    assert opened.captions == packed.captions
    lines = (tmp_path / "packed" / "_index" / "rejected.jsonl").read_text().splitlines()
    reasons = {line["path"]: line["reason"] for line in map(json.loads, lines) if line["path"].endswith("png")}
    assert {name: error.reason.value for name, error in opened.refused.items()} == reasons
    assert len(reasons) == 6
    listed = open_captioned(str(tree), "labels")
    assert (listed.names, listed.captions) == (("sub/object.png",), (("one", "two"),))


def test_a_shard_sample_without_a_caption_is_left_out_and_the_others_keep_their_pictures(tmp_path):
    colours = [picture(pixels) for pixels in COLOURS.values()]
    shards = write_shards(
        tmp_path,
        {
            "a": {"png": colours[0], "txt": b" "},
            "b": {"png": colours[1], "json": b'{"caption": "green"}'},
            "c": {"png": colours[2], "txt": b"blue"},
            "d": {"png": colours[3]},
        },
    )
    opened = open_captioned(shards)
    assert opened.captions == (("blue",), ("green",))
    assert [opened.read(place) for place in range(2)] == [colours[2], colours[1]]
    assert {name: str(error) for name, error in opened.refused.items()} == {
        "00000.tar/a": "empty_caption",
        "00001.tar/d": "no_caption",
    }


def test_class_numbers_in_shards_of_another_writer_become_the_names_of_the_classes(tmp_path):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for number, colour in enumerate(("blue", "red", "red")):
            for suffix, data in (("cls", str(int(colour == "red")).encode()), ("webp", picture(COLOURS[colour]))):
                header = tarfile.TarInfo(f"s{number:07d}.{suffix}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))

    opened = open_labelled(str(tmp_path))

    assert opened.labels == ("0", "1", "1")
    assert named(opened, ["blue", "red"]).labels == ("blue", "red", "red")
    assert named(named(opened, ["blue", "red"]), ["x"]).labels == ("blue", "red", "red")
    with pytest.raises(ValueError, match="class number 1, beyond the 1 class, numbered from 0"):
        named(opened, ["blue"])


def test_a_label_in_the_json_goes_before_a_class_number(tmp_path):
    members = {"png": picture(COLOURS["red"]), "cls": b"3", "json": b'{"label": "red"}'}
    shards = write_shards(tmp_path, {"a": members, "b": members})
    assert open_labelled(shards).labels == ("red", "red")
    assert open_labelled(shards, "other").labels == ("3", "3")


def test_a_picture_that_does_not_decode_is_left_out_and_named_and_the_others_stay(tmp_path):
    write_tree(tmp_path, ["red", "blue"], copies=40)
    (tmp_path / "blue" / "7.png").write_bytes(b"<html>no picture here</html>")
    pictures = open_labelled(str(tmp_path))

    embedded = embed(ColourEncoder(), pictures)

    assert list(embedded.rejected) == ["blue/7.png"]
    assert len(embedded.kept) == 79
    assert [pictures.names[place] for place in embedded.kept] == [
        name for name in pictures.names if name != "blue/7.png"
    ]


def test_pictures_are_decoded_by_threads_a_few_ahead_and_stay_in_order():
    lock, read, taken, ahead = threading.Lock(), [], [], []

    def slow_when_even(place):
        with lock:
            read.append(threading.current_thread().name)
            ahead.append(len(read) - len(taken) * PICTURES_AT_ONCE)
        time.sleep(0.002 * (place % 2 == 0))
        return picture((place, 0, 0), size=3)

    class Encoder(ColourEncoder):
        def embed_prepared(self, prepared):
            taken.append(len(prepared))
            return super().embed_prepared(prepared)

    embedded = embed(Encoder(), Pictures("here", tuple(map(str, range(200))), slow_when_even))

    assert embedded.embeddings[:, 0].tolist() == list(range(200))
    assert threading.current_thread().name not in read
    assert taken == [64, 64, 64, 8]
    assert max(ahead) <= PICTURES_AT_ONCE + MOST_THREADS + 1


def test_a_decoded_picture_is_held_only_until_the_encoder_has_prepared_it():
    decoded, held, prepared_by = [], [], set()

    class Encoder(ColourEncoder):
        def prepare(self, picture):
            decoded.append(weakref.ref(picture))
            held.append(sum(each() is not None for each in list(decoded)))
            prepared_by.add(threading.current_thread().name)
            return super().prepare(picture)

    red = picture(COLOURS["red"])
    assert len(embed(Encoder(), Pictures("here", tuple(map(str, range(200))), lambda place: red)).kept) == 200
    assert len(held) == 200 and max(held) <= MOST_THREADS
    assert threading.current_thread().name not in prepared_by


def test_it_is_an_error_if_no_picture_decodes(tmp_path):
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "one.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"none of the 1 picture .* can be decoded; red/one\.jpg"):
        embed(ColourEncoder(), open_labelled(str(tmp_path)))


def missing(folder):
    open_labelled(str(folder / "nowhere"))


def empty(folder):
    open_labelled(str(folder))


def loose(folder):
    (folder / "one.png").write_bytes(picture((1, 2, 3)))
    open_labelled(str(folder))


def without_caption(folder):
    (folder / "one.png").write_bytes(picture((1, 2, 3)))
    open_captioned(str(folder))


def without_column(folder):
    (folder / "table.csv").write_text("path,class\na.png,red\n")
    open_labelled(str(folder / "table.csv"))


def without_file(folder):
    (folder / "table.csv").write_text("path,label\na.png,red\n")
    open_labelled(str(folder / "table.csv"))


def without_label(folder):
    (folder / "a.png").write_bytes(picture((1, 2, 3)))
    (folder / "table.csv").write_text("path,label\na.png,\n")
    open_labelled(str(folder / "table.csv"))


def without_json(folder):
    open_labelled(write_shards(folder / "s", {"a": {"png": picture((1, 2, 3))}, "b": {"png": picture((1, 2, 3))}}))


def without_key(folder):
    members = {"png": picture((1, 2, 3)), "json": b'{"class": "red"}'}
    open_labelled(write_shards(folder / "s", {"a": members, "b": members}))


def with_a_name_for_a_number(folder):
    members = {"png": picture((1, 2, 3)), "cls": b"cat"}
    open_labelled(write_shards(folder / "s", {"a": members, "b": members}))


def with_numbers_in_some(folder):
    red = picture((1, 2, 3))
    open_labelled(write_shards(folder / "s", {"a": {"png": red, "cls": b"1"}, "b": {"png": red}}))


@contextmanager
def closed(folder):
    """A folder that this process may not read; as root it becomes another user, who owns the tree."""
    mode = folder.stat().st_mode
    folder.chmod(0)
    is_root = os.geteuid() == 0
    where = Path.cwd()
    os.chdir(folder.parent)
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        os.chdir(where)
        folder.chmod(mode)


def unreadable_folder(folder):
    tree = write_tree(folder / "tree", ["red"])
    with closed(tree / "red"):
        open_labelled(".")


def unreadable_tree(folder):
    folder.chmod(0o755)
    with closed(write_tree(folder / "tree", ["red"])):
        open_labelled("tree")


def unreadable_captions(folder):
    tree = write_tree(folder / "tree", ["red"])
    (tree / "one.png").write_bytes(picture((1, 2, 3)))
    with closed(tree / "red"):
        open_captioned(".")


def vanished_picture(folder):
    pictures = open_labelled(str(write_tree(folder / "tree", ["red"])))
    (folder / "tree" / "red" / "0.png").unlink()
    embed(ColourEncoder(), pictures)


def vanished_shard(folder):
    members = {"png": picture((1, 2, 3)), "cls": b"1"}
    pictures = open_pictures([write_shards(folder / "s", {"a": members, "b": members})])
    (folder / "s" / "00000.tar").unlink()  # before it was read: what is open can be read to its end
    pictures.read(0)


def name_too_long(folder):
    open_labelled(str(folder / ("x" * 300)))


def no_pictures(folder):
    open_pictures([str(folder)])


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [
        (missing, "nowhere does not exist; expected a folder with one subfolder for each class"),
        (empty, "has no pictures in subfolders; expected CLASS/PICTURE.jpg"),
        (loose, "but 1 outside of subfolders"),
        (without_caption, "none of the 1 picture of "),
        (without_caption, "has a caption that can be used: 1 no_caption (for example one.png); expected PICTURE.txt"),
        (without_column, "has no column 'label'. Its columns: path, class"),
        (without_file, "one row cannot be used: 1 missing_file (for example line 2: a.png); expected the path"),
        (without_label, "one row cannot be used: 1 empty_caption (for example line 2); expected the path"),
        (without_json, "no class number in a cls member; it has png"),
        (without_key, "no 'label' in a json member and no class number in a cls member; its json member has class"),
        (without_key, "--label-key"),
        (with_a_name_for_a_number, "its cls member is b'cat'; expected the number of a class, from 0"),
        (with_numbers_in_some, "00001.tar/b has no cls member, unlike the first sample; it has png"),
        (unreadable_folder, "red cannot be read: Permission denied; make it readable"),
        (unreadable_tree, "tree cannot be read: Permission denied; make it readable"),
        (unreadable_captions, "red cannot be read: Permission denied; make it readable"),
        (vanished_picture, "red/0.png cannot be read: No such file or directory; make it readable, or take it out"),
        (vanished_shard, "00000.tar cannot be read: No such file or directory; bring it back"),
        (name_too_long, "does not exist"),
        (no_pictures, "contains no pictures"),
    ],
)
def test_mistakes_are_named(tmp_path, attempt, expected):
    with pytest.raises(ValueError) as error:
        attempt(tmp_path)
    assert expected in str(error.value)
