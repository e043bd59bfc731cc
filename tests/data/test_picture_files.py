import os

import pytest

from diptych.data.picture_files import FileReason, find_pictures, walk


@pytest.fixture
def folder(tmp_path):
    for name in (
        *("b.jpg", "b.txt", "a/one.PNG", "a/two.bmp", "a/three.tif", "a/four.avif", "a/five.gif", "a/six.heic"),
        *("a/.hidden.jpg", ".ipynb_checkpoints/copy.jpg", "a/drawing.svg", "a/notes.md", "a/none", "a/b.json"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "linked.jpg").symlink_to(tmp_path / "b.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    return tmp_path


def test_every_picture_is_found_and_everything_else_is_named(folder):
    found = find_pictures(folder)
    assert found.paths == [
        *("a/five.gif", "a/four.avif", "a/one.PNG", "a/six.heic", "a/three.tif", "a/two.bmp", "b.jpg", "linked.jpg")
    ]
    assert {refusal.path: refusal.reason for refusal in found.refusals} == {
        ".ipynb_checkpoints": FileReason.HIDDEN.value,
        "a/.hidden.jpg": FileReason.HIDDEN.value,
        "a/drawing.svg": FileReason.FORMAT_NOT_ALLOWED.value,
        "a/none": FileReason.NOT_A_PICTURE.value,
        "a/notes.md": FileReason.NOT_A_PICTURE.value,
        "gone.jpg": FileReason.MISSING_FILE.value,
        "loop": FileReason.LINKED_FOLDER.value,
        "pipe.jpg": FileReason.NOT_A_FILE.value,
    }


def test_a_walk_gives_each_folder_with_the_files_in_it(folder):
    files = {each.path: list(each.files) for each in walk(folder)}
    assert files.keys() == {"", "a/"} and files[""] == ["b.jpg", "b.txt", "linked.jpg"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        find_pictures(tmp_path / "none")
