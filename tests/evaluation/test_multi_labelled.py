"""Pictures with any number of labels, in tables and shards."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest

from diptych.evaluation.labels import named
from diptych.evaluation.picture_sources import open_multi_labelled
from tests.evaluation.colours import COLOURS, picture


def write_pictures(folder):
    for colour, pixels in COLOURS.items():
        (folder / f"{colour}.png").write_bytes(picture(pixels))


def write_tar(path, samples):
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path)


def npy(values):
    file = io.BytesIO()
    np.save(file, np.array(values))
    return file.getvalue()


def test_a_table_has_labels_in_one_cell_or_in_several_rows_and_pictures_without_any(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / "a.csv").write_text("path,label\nred.png,warm|loud\nblue.png,cold\nblue.png,calm\ncyan.png,\n")
    pictures = open_multi_labelled(str(tmp_path / "a.csv"))
    assert pictures.names == ("red.png", "blue.png", "cyan.png")
    assert pictures.label_sets == (("warm", "loud"), ("cold", "calm"), ())
    assert not pictures.labels_are_numbers


def test_a_list_in_a_json_table_is_a_set_of_labels(tmp_path):
    write_pictures(tmp_path)
    rows = [{"path": "red.png", "tags": ["a", "b"]}, {"path": "blue.png", "tags": []}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pictures = open_multi_labelled(str(tmp_path / "a.jsonl"), "tags")
    assert pictures.label_sets == (("a", "b"), ())


def test_a_row_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\nred.png,warm|loud\n")
    with pytest.raises(ValueError, match="one row cannot be used: .*missing_file .*expected the path"):
        open_multi_labelled(str(tmp_path / "a.csv"))


def test_shards_of_clip_benchmark_have_arrays_that_name_classes(tmp_path):
    samples = {
        f"s{number}": {"jpg": picture(COLOURS["red"]), "npy": npy(values)}
        for number, values in enumerate([[1, 0, 1], [0, 0, 0], [0.0, 1.0, 0.0]])
    }
    pictures = open_multi_labelled(write_tar(tmp_path / "0.tar", samples))
    assert named(pictures, ["car", "dog", "cat"]).label_sets == (("car", "cat"), (), ("dog",))
    with pytest.raises(ValueError, match="has arrays of 3 labels, and there are 4 classes"):
        named(pictures, ["car", "dog", "cat", "cow"])


def test_shards_may_have_lists_in_json(tmp_path):
    samples = {
        "a": {"jpg": picture(COLOURS["red"]), "json": b'{"label": ["cat", "dog"]}'},
        "b": {"jpg": picture(COLOURS["blue"]), "json": b'{"label": []}'},
    }
    assert open_multi_labelled(write_tar(tmp_path / "0.tar", samples)).label_sets == (("cat", "dog"), ())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy([0, 2]), "its npy member has 2; expected an array with 0 or 1 for each class"),
        (npy([[0, 1]]), "no array of numbers in one dimension"),
        (npy(["cat"]), "no array of numbers in one dimension"),
        (b"PK\x03\x04", "its npy member"),
        (b"\x80\x04K\x01.", "cannot be read"),
    ],
)
def test_an_array_that_is_no_set_of_labels_is_one_line(tmp_path, data, message):
    samples = {"a": {"jpg": picture(COLOURS["red"]), "npy": data}}
    with pytest.raises(ValueError, match=message):
        open_multi_labelled(write_tar(tmp_path / "0.tar", samples))


def test_arrays_of_several_lengths_are_refused(tmp_path):
    samples = {key: {"jpg": picture(COLOURS["red"]), "npy": npy(values)} for key, values in (("a", [1]), ("b", [0, 1]))}
    with pytest.raises(ValueError, match="arrays of 1 to 2 labels"):
        open_multi_labelled(write_tar(tmp_path / "0.tar", samples))


def test_a_folder_is_refused_since_it_gives_one_label_each(tmp_path):
    with pytest.raises(ValueError, match="gives each picture one label; expected a table"):
        open_multi_labelled(str(tmp_path))
