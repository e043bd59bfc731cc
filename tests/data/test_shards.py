import io
import math
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diptych.data import shard_list, shards
from diptych.data.foreign_shards import index_shard
from diptych.data.shard_index_file import ALLOWED_SUFFIXES, Shard, ShardError, folder_list_path, read_shard
from diptych.data.shard_list import write_folder_list
from diptych.data.shard_writer import ShardWriter
from diptych.data.shards import ShardIndex, open_index, read_sample
from diptych.files import sha256_of

SAMPLES = {
    f"{number:05d}": {
        "jpg": bytes([number]) * (700 * number),
        "txt": f"caption {number} é".encode(),
        "json": b"{}",
    }
    for number in range(6)
}


def write(folder, name, samples=SAMPLES):
    with ShardWriter(folder, name) as writer:
        for key, members in samples.items():
            writer.add(key, members)
    return Path(folder) / (name if isinstance(name, str) else f"{name:05d}.tar")


def open_again(index):
    """The same index in a process that has no open tars."""
    return ShardIndex(index.shards)


def read_all(index):
    """Every sample, read by offset."""
    return {sample.key: index.read(sample) for sample in index.samples()}


def write_tar(path, files, **options):
    """A tar as others write them."""
    with tarfile.open(path, "w:", **options) as tar:
        for name, data in files:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


# -- writing and reading ------------------------------------------------------------------------------


# webdataset leaves the tar open
@pytest.mark.filterwarnings(r"ignore:Exception ignored in. <_io\.FileIO:pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_the_same_samples(tmp_path):
    import webdataset

    tar = write(tmp_path, 0)
    seen = {}
    for sample in webdataset.WebDataset(str(tar), shardshuffle=False):
        seen[sample["__key__"]] = {suffix: data for suffix, data in sample.items() if not suffix.startswith("__")}
    assert seen == SAMPLES == read_all(open_index(tmp_path))


def test_equal_samples_give_equal_bytes_and_the_index_knows_their_hash(tmp_path):
    one, two = write(tmp_path / "one", 0), write(tmp_path / "two", 0)
    assert one.read_bytes() == two.read_bytes()
    (shard,) = open_index(one).shards
    assert shard.sha256 == sha256_of(one)
    assert shard.num_bytes == one.stat().st_size


def test_indexing_our_own_tar_gives_the_index_its_writer_wrote(tmp_path):
    tar = write(tmp_path, 0)
    index = tmp_path / "_index" / "00000.tar.index"
    written = index.read_bytes()
    index.unlink()
    assert read_all(open_index(tar)) == SAMPLES
    assert index.read_bytes() == written


def test_long_keys_survive(tmp_path):
    samples = {"a/" + "k" * 250 + str(n): {"txt": b"x"} for n in range(3)}
    write(tmp_path, 0, samples)
    assert read_all(open_index(tmp_path)) == samples


def test_an_empty_shard_is_a_shard_of_no_samples(tmp_path):
    write(tmp_path, 0, {})
    (tmp_path / "_index" / "00000.tar.index").unlink()
    assert len(open_index(tmp_path)) == 0


@pytest.mark.parametrize("key", ["", "a.b", "../a", "/a", "a b", "a\n", "é", "k" * 257, "a\x1b[31m"])
def test_a_key_that_is_no_safe_name_is_refused(tmp_path, key):
    with pytest.raises(ShardError, match="key"), ShardWriter(tmp_path, 0) as writer:
        writer.add(key, {"txt": b"x"})


@pytest.mark.parametrize("suffix", ["pyd", "pkl", "pth", "npz", "jpg.txt", "JPG", ""])
def test_a_suffix_that_could_carry_code_is_refused(tmp_path, suffix):
    with pytest.raises(ShardError, match="suffix"), ShardWriter(tmp_path, 0) as writer:
        writer.add("a", {suffix: b"x"})


def test_a_key_is_taken_once(tmp_path):
    with pytest.raises(ShardError, match="'a' is already in"), ShardWriter(tmp_path, 0) as writer:
        writer.add("a", {"txt": b"x"})
        writer.add("a", {"jpg": b"x"})


def test_an_exception_while_writing_leaves_no_shard(tmp_path):
    with pytest.raises(KeyError), ShardWriter(tmp_path, 0) as writer:
        writer.add("a", {"txt": b"x"})
        raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ["_index"]


def test_a_complete_shard_is_not_overwritten(tmp_path):
    write(tmp_path, 0)
    with pytest.raises(ShardError, match="complete"):
        ShardWriter(tmp_path, 0)


# -- the list of a folder's shards --------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path):
    """A folder of three shards with a list of them."""
    for number in range(3):
        write(tmp_path, number, {f"{number}-{row}": {"txt": b"x"} for row in range(number + 1)})
    write_folder_list(tmp_path)
    return tmp_path


def without_list(folder):
    """What opening the folder finds in the shards' own indexes."""
    folder_list_path(folder).rename(folder / "all.index")
    index = open_index(folder)
    (folder / "all.index").rename(folder_list_path(folder))
    return index


@pytest.mark.parametrize("location", ["{}", "{}/{{00002..00000}}.tar", "{}/00001.tar"])
def test_a_listed_folder_is_opened_without_reading_the_indexes_of_its_shards(listed, monkeypatch, location):
    read = []
    monkeypatch.setattr(shard_list, "read_shard", lambda tar: read.append(tar) or read_shard(tar))
    index = open_index(location.format(listed))
    assert read == ([listed / "00001.tar"] if location.endswith("1.tar") else [])
    shards = open_index([listed / shard.name for shard in index.shards]).shards
    assert [*index.shards] == [*shards] == [read_shard(shard.path) for shard in shards]
    assert index.fingerprint == ShardIndex([*shards]).fingerprint
    assert read_all(index) == {key: {"txt": b"x"} for shard in shards for key in open_index(shard.path).keys(0)}


def test_a_list_is_not_believed_about_a_shard_that_was_written_again(listed):
    (listed / "00001.tar").unlink()
    (listed / "_index" / "00001.tar.index").unlink()
    write(listed, 1, {"other": {"txt": b"y"}})
    assert not folder_list_path(listed).exists()
    assert open_index(listed).counts.tolist() == [1, 1, 3]


def test_a_list_is_not_believed_about_a_tar_of_another_size(listed, tmp_path_factory):
    other = write(tmp_path_factory.mktemp("other"), 1, {f"{row}": {"txt": b"y" * 9_000} for row in range(9)})
    for path in (other, other.parent / "_index" / "00001.tar.index"):
        os.replace(path, listed / path.relative_to(other.parent))
    assert open_index(listed).counts.tolist() == [1, 9, 3]
    assert [*open_index(listed).shards] == [*without_list(listed).shards]


def test_a_shard_whose_index_was_deleted_is_indexed_again_although_it_is_listed(listed):
    (listed / "_index" / "00001.tar.index").unlink()
    assert open_index(listed).counts.tolist() == [1, 2, 3]
    assert (listed / "_index" / "00001.tar.index").exists()


def test_a_shard_that_differs_from_its_row_in_the_list_is_an_error_that_names_the_way_out(listed, tmp_path_factory):
    other = write(tmp_path_factory.mktemp("other"), 1, {"1-0": {"txt": b"y"}, "1-1": {"txt": b"y"}})
    for path in (other, other.parent / "_index" / "00001.tar.index"):
        os.replace(path, listed / path.relative_to(other.parent))
    with pytest.raises(ShardError, match="diptych-shards index"):
        open_index(listed).sample(1, 0)
    write_folder_list(listed)
    assert open_index(listed).sample(1, 0).key == "1-0"


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_list_is_not_used(listed, data):
    path = folder_list_path(listed)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged[: data.draw(st.sampled_from([len(damaged), len(damaged) // 2, len(damaged) - 1]))])
    assert open_index(listed).counts.tolist() == [1, 2, 3]
    path.write_bytes(whole)


# -- opening ------------------------------------------------------------------------------------------


def test_folders_files_and_brace_patterns_give_the_shards_in_name_order(tmp_path):
    for number in (2, 0, 1):
        write(tmp_path, number, {f"{number}": {"txt": b"x"}})
    names = ["00000.tar", "00001.tar", "00002.tar"]
    assert [shard.name for shard in open_index(tmp_path).shards] == names
    assert [shard.name for shard in open_index(f"{tmp_path}/{{00002..00000}}.tar").shards] == names
    assert [
        shard.name for shard in open_index([f"{tmp_path}/00002.tar", f"{tmp_path}/{{00000,00001}}.tar"]).shards
    ] == ["00002.tar", "00000.tar", "00001.tar"]


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("photos", "but pictures; `diptych-shards pack photos SHARDS` makes shards of them"),
        ("classes", "but pictures; `diptych-shards pack classes SHARDS` makes shards of them"),
        ("packed", "holds no .tar file, but packed/held_out and packed/train do; name one of them"),
        ("packed/train/*.tar", "* is not a pattern here: name the folder, or a range in braces"),
        ("photos/a.jpg", "`diptych-shards pack FOLDER SHARDS`"),
        ("pairs.csv", "`diptych-shards build` fetches URLs"),
    ],
)
def test_a_location_of_something_else_is_led_to_the_command_that_makes_shards(tmp_path, monkeypatch, location, told):
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.jpg", "photos/a.txt", "classes/cat/a.webp", "pairs.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for part in ("train", "held_out"):
        (tmp_path / "packed" / part).mkdir(parents=True)
        write(tmp_path / "packed" / part, 0)
    with pytest.raises(ShardError) as error:
        open_index(location)
    assert told in str(error.value)


def test_what_is_being_written_is_not_listed(tmp_path):
    write(tmp_path, 0)
    writer = ShardWriter(tmp_path, 1)
    assert len(open_index(tmp_path).shards) == 1
    writer.discard()


@pytest.mark.parametrize(
    "location, told",
    [
        ("nowhere", "does not exist"),
        ("empty", "holds no .tar file; `diptych-shards pack` or `diptych-shards build` makes shards"),
        ("{0..3}.tar", "does not exist"),
        ("{0..3", "unbalanced"),
        ("{0..9999999999}.tar", "more than"),
        ("file.txt", "neither a folder"),
        ("pipe:cat 00000.tar", "shards are read from paths, and from addresses such as"),
    ],
)
def test_a_location_without_shards_is_an_error_that_says_why(tmp_path, monkeypatch, location, told):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file.txt").write_text("x")
    with pytest.raises(ShardError, match=told):
        open_index(location)


@pytest.mark.parametrize(
    "other", ["{0}/a/00000.tar", "a/00000.tar", "00000.tar", "{0}/a/../a", "{0}/folder", "{0}/tars"]
)
def test_a_shard_named_twice_is_refused(tmp_path, monkeypatch, other):
    folder = write(tmp_path / "a", 0).parent
    (tmp_path / "folder").symlink_to(folder)
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "b.tar").symlink_to(folder / "00000.tar")
    monkeypatch.chdir(folder if other == "00000.tar" else tmp_path)
    with pytest.raises(ShardError, match="more than once"):
        open_index([folder, other.format(tmp_path)])


@pytest.mark.parametrize("change, told", [(lambda data: data[:-1], "truncated"), (lambda data: data + b"\0", "longer")])
def test_a_tar_of_another_size_than_indexed_is_refused(tmp_path, change, told):
    tar = write(tmp_path, 0)
    tar.write_bytes(change(tar.read_bytes()))
    with pytest.raises(ShardError, match=f"00000.tar.*{told}"):
        open_index(tmp_path)


def test_a_tar_that_is_gone_is_missed(tmp_path):
    write(tmp_path, 0)
    write(tmp_path, 1).unlink()
    with pytest.raises(ShardError, match="00001.tar"):
        open_index(tmp_path)


def test_a_shard_that_cannot_be_indexed_in_place_says_so(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.txt", b"x")])
    (tmp_path / "_index").write_text("a file where the folder should be")
    with pytest.raises(ShardError, match="not writable"):
        open_index(tmp_path)


def test_shards_of_an_unfinished_pack_are_used_with_a_warning(tmp_path, caplog):
    write(tmp_path, 0)
    (tmp_path / "_index" / "pack.json").write_text('{"finished": false}')
    assert len(open_index(tmp_path)) == len(SAMPLES)
    assert "not finished" in caplog.text


# -- the index ----------------------------------------------------------------------------------------


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_locate_finds_every_sample_once(counts):
    index = ShardIndex([Shard(Path(f"{n}.tar"), count, 0, "") for n, count in enumerate(counts)])
    places = [(number, row) for number, count in enumerate(counts) for row in range(count)]
    assert [index.locate(sample) for sample in range(len(index))] == places
    shard_numbers, rows = index.locate_many(np.arange(len(index)))
    assert list(zip(shard_numbers.tolist(), rows.tolist(), strict=True)) == places
    for outside in (-1, len(index)):
        with pytest.raises(IndexError):
            index.locate(outside)


def test_open_files_are_bounded_and_come_back_when_needed(tmp_path, monkeypatch):
    for number in range(5):
        write(tmp_path, number, {f"{number}-{row}": {"txt": b"%d" % row} for row in range(10)})
    index = open_index(tmp_path)
    monkeypatch.setattr(shards, "MAX_OPEN_SHARDS", 2)
    before = len(os.listdir("/dev/fd"))
    for number in (0, 1, 2, 3, 4, 0):
        sample = index.sample(number, 7)
        assert sample.key == f"{number}-7" and index.read(sample) == {"txt": b"7"}
        assert len(os.listdir("/dev/fd")) <= before + 4


@pytest.mark.parametrize(("allowed", "number"), [(math.inf, 4096), (100_000, 4096), (1024, 256)])
def test_a_process_keeps_a_quarter_of_the_files_that_it_may_open(monkeypatch, allowed, number):
    monkeypatch.setattr(shards, "open_files_limit", lambda: allowed)
    assert shards.max_open_shards() == number


def test_an_index_travels_to_other_processes(tmp_path):
    write(tmp_path, 0)
    index = open_index(tmp_path)
    assert read_all(index) == SAMPLES
    copy = pickle.loads(pickle.dumps(index))
    assert read_all(copy) == SAMPLES and copy.fingerprint == index.fingerprint


def test_the_fingerprint_is_of_the_contents(tmp_path):
    one = open_index(write(tmp_path / "one", 0))
    assert open_index(write(tmp_path / "two", 0)).fingerprint == one.fingerprint
    assert open_index(write(tmp_path / "three", 0, {"a": {"txt": b"x"}})).fingerprint != one.fingerprint


def test_a_shard_indexed_again_behind_our_back_is_noticed(tmp_path):
    tar = write(tmp_path, 0)
    index = open_index(tmp_path)
    tar.unlink()
    (tmp_path / "_index" / "00000.tar.index").unlink()
    write(tmp_path, 0, {"a": {"txt": b"x"}})
    with pytest.raises(ShardError, match="indexed again"):
        index.sample(0, 0)


@pytest.mark.parametrize("change", ["replaced", "overwritten", "truncated"])
def test_an_index_file_that_changes_while_it_is_used_gives_the_same_sample_or_an_error(tmp_path, monkeypatch, change):
    monkeypatch.setattr(shards, "MAX_OPEN_SHARDS", 1)
    for number in range(2):
        write(tmp_path, number, {f"{number}-{row}": {"txt": b"%d" % row} for row in range(10)})
    index = open_index(tmp_path)
    before = index.sample(0, 9)
    file = tmp_path / "_index" / "00000.tar.index"
    damaged = file.read_bytes()[:-1] + b"X"
    if change == "replaced":
        os.rename(file, tmp_path / "earlier")
        file.write_bytes(damaged)
        assert index.sample(0, 9) == before
    elif change == "overwritten":
        file.write_bytes(damaged)
        os.utime(file, (1, 1))  # two writes within one tick of the clock have the same time
    else:
        os.truncate(file, len(damaged) - 1)
        with pytest.raises(ShardError, match="00000.tar.index is damaged"):
            index.sample(0, 9)
    assert index.sample(1, 9).key == "1-9"
    with pytest.raises(ShardError, match="00000.tar.index is damaged"):
        index.sample(0, 9)


def test_samples_are_those_of_all_shards_of_one_or_of_some_rows(tmp_path):
    for number in range(3):
        write(tmp_path, number, {f"{number}-{row}": {"txt": b"%d" % row} for row in range(4)})
    index = open_index(tmp_path)
    keys = [[f"{number}-{row}" for row in range(4)] for number in range(3)]
    assert [sample.key for sample in index.samples()] == [key for of_shard in keys for key in of_shard]
    assert [sample.key for sample in index.samples(1)] == index.keys(1) == keys[1]
    assert [sample.name for sample in index.samples(2, [3, 0])] == ["00002.tar/2-3", "00002.tar/2-0"]


def test_of_a_sample_only_the_files_that_are_asked_for_are_read(tmp_path):
    files = {"txt": b"a caption", "png": b"the first", "jpg": b"the second", "json": b"{}"}
    index = open_index(write(tmp_path, 0, {"a": files, "b": {"txt": b"alone"}}))
    one, other = index.samples()
    assert one.suffixes == tuple(files) and one.picture_suffix == "png" and other.picture_suffix is None
    assert index.read(one) == files == read_sample(one)
    assert index.read(one, "json", "txt", "cls") == {"txt": b"a caption", "json": b"{}"}
    assert index.read(other, "json") == {}


def test_the_announced_stretches_of_samples_hold_all_their_members(tmp_path, monkeypatch):
    for number in range(2):
        write(tmp_path, number)
    index, announced = open_index(tmp_path), []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, size, advice: announced.append((start, start + size)))
    wanted = [0, 2, 5, 6, 11]
    index.announce(np.array(wanted))
    samples = [index.sample(*index.locate(number)) for number in wanted]
    expected = [(each.members[0].offset, each.members[-1].offset + each.members[-1].size) for each in samples]
    assert announced == expected


def test_announcing_what_cannot_be_read_is_no_error(tmp_path):
    tar = write(tmp_path, 0)
    index = open_index(tmp_path)
    tar.unlink()
    index.announce(np.array([0, 5]))


def test_a_sample_is_read_in_another_process(tmp_path):
    index = open_index(write(tmp_path, 0))
    samples = pickle.loads(pickle.dumps(list(index.samples())))
    assert {sample.key: read_sample(sample) for sample in samples} == SAMPLES
    assert {sample.key: index.read(sample) for sample in samples} == SAMPLES


@pytest.mark.parametrize("is_open", [False, True])
def test_what_cannot_be_read_is_an_error_that_names_it(tmp_path, is_open):
    tar = write(tmp_path, 0, {"a": {"txt": b"a caption"}, "b": {"txt": b"another"}})
    index = open_index(tmp_path)
    first, second = index.samples()
    if is_open:
        index.read(first)
    member = second.members[0]
    with open(tar, "r+b") as file:
        file.seek(member.offset)
        file.write(b"X")
    with pytest.raises(ShardError, match=f"00000.tar: b.txt: at byte {member.offset}: the 7 bytes are not those"):
        index.read(second)
    os.truncate(tar, member.offset + 2)
    told = "b.txt.* 2 of 7 bytes: the tar is truncated" if is_open else "has .* bytes, its index says"
    with pytest.raises(ShardError, match=f"00000.tar: {told}"):
        (index if is_open else open_again(index)).read(second)
    tar.unlink()
    with pytest.raises(ShardError, match="00000.tar cannot be read: No such file"):
        open_again(index).read(first)


# -- damage -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return write(folder, 0).read_bytes(), (folder / "_index" / "00000.tar.index").read_bytes()


def damaged_copy(folder, tar, index=None):
    folder.mkdir(exist_ok=True)
    (folder / "_index").mkdir(exist_ok=True)
    (folder / "00000.tar").write_bytes(tar)
    path = folder / "_index" / "00000.tar.index"
    path.unlink(missing_ok=True)
    if index is not None:
        path.write_bytes(index)
    return folder / "00000.tar"


def flipped(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


reuse_folder = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(data=st.data())
@reuse_folder
def test_a_flipped_bit_in_the_tar_is_an_error_or_does_no_harm(tmp_path, whole, data):
    tar, index = whole
    damaged_copy(tmp_path, flipped(tar, data.draw(st.integers(0, 8 * len(tar) - 1))), index)
    try:
        assert read_all(open_index(tmp_path)) == SAMPLES
    except ShardError:
        pass


@given(data=st.data())
@reuse_folder
def test_a_flipped_bit_in_the_index_is_an_error_or_does_no_harm(tmp_path, whole, data):
    tar, index = whole
    damaged_copy(tmp_path, tar, flipped(index, data.draw(st.integers(0, 8 * len(index) - 1))))
    try:
        assert read_all(open_index(tmp_path)) == SAMPLES
    except ShardError:
        pass


def test_a_changed_count_in_the_index_is_an_error(tmp_path, whole):
    tar, index = whole
    damaged_copy(tmp_path, tar, index.replace(b'"samples": 6', b'"samples": 5'))
    with pytest.raises(ShardError, match="damaged"):
        open_index(tmp_path)


@given(data=st.data())
@reuse_folder
def test_a_cut_index_is_an_error(tmp_path, whole, data):
    tar, index = whole
    damaged_copy(tmp_path, tar, index[: data.draw(st.integers(0, len(index) - 1))])
    with pytest.raises(ShardError):
        read_all(open_index(tmp_path))


@given(data=st.data())
@reuse_folder
def test_a_cut_tar_without_index_is_an_error_or_keeps_all_samples(tmp_path, whole, data):
    tar, _ = whole
    path = damaged_copy(tmp_path, tar[: data.draw(st.integers(0, len(tar) - 1))])
    try:
        assert read_all(open_index(path)) == SAMPLES
    except ShardError as error:
        assert "00000.tar: at byte" in str(error)


@given(data=st.data())
@reuse_folder
def test_a_flipped_bit_in_a_header_never_ends_the_tar_quietly(tmp_path, whole, data):
    tar, _ = whole
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        headers = [member.offset for member in archive]
    bit = data.draw(st.sampled_from(headers)) * 8 + data.draw(st.integers(0, 512 * 8 - 1))
    path = damaged_copy(tmp_path, flipped(tar, bit))
    try:
        assert read_all(open_index(path)) == SAMPLES
    except ShardError as error:
        assert "00000.tar: at byte" in str(error)


# -- tars of others -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_third_party_tars_are_indexed_where_they_are(tmp_path, form):
    long_name = "./" + "d" * 60 + "/" + "n" * 50 + ("x" * 80 if form != tarfile.USTAR_FORMAT else "")
    files = [
        (f"{long_name}.JPG", b"1"),
        (f"{long_name}.txt", b"2"),
        ("b/c.d/key.png", b"3"),
        ("b/c.d/key.json", b"4"),
    ]
    write_tar(tmp_path / "a.tar", files, format=form)
    assert read_all(open_index(tmp_path)) == {
        long_name: {"jpg": b"1", "txt": b"2"},
        "b/c.d/key": {"png": b"3", "json": b"4"},
    }
    before = (tmp_path / "_index" / "a.tar.index").stat().st_mtime_ns
    open_index(tmp_path)
    assert (tmp_path / "_index" / "a.tar.index").stat().st_mtime_ns == before


names = st.from_regex(r"\A(a/|a\.b/)?[ab](\.(seg|JPG|jpg|png|txt|json|pyd|cls))?(\.(jpg|txt))?\Z")


@given(files=st.lists(names, unique_by=str.lower, max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_members_are_grouped_as_webdataset_groups_them(tmp_path, files):
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    path = write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in files])
    with open(path, "rb") as file:
        members = [member | {"__url__": ""} for member in tar_file_iterator(file)]
    expected = []
    for sample in group_by_keys(members):
        allowed = {suffix: data for suffix, data in sample.items() if suffix in ALLOWED_SUFFIXES}
        expected += [(sample["__key__"], allowed)] if allowed else []
    index_shard(path)
    index = open_index(path)
    assert [(sample.key, index.read(sample)) for sample in index.samples()] == expected


def test_links_devices_folders_and_code_are_left_out_and_counted(tmp_path, caplog):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:") as tar:
        for name, kind in [
            ("l.jpg", tarfile.SYMTYPE),
            ("h.jpg", tarfile.LNKTYPE),
            ("f.jpg", tarfile.FIFOTYPE),
            ("c.jpg", tarfile.CHRTYPE),
            ("d.jpg", tarfile.DIRTYPE),
        ]:
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd"
            tar.addfile(header)
        for name in [
            "k.jpg",
            "k.pyd",
            "k.txt",
            "../up.jpg",
            "/root.jpg",
            "a/../b.jpg",
            "bad\nname.jpg",
            "e\x1b[31m.txt",
            b"\xff.jpg".decode("utf-8", "surrogateescape"),
            "__meta__/x.jpg",
            "nodot",
        ]:
            header = tarfile.TarInfo(name)
            header.size = 1
            tar.addfile(header, io.BytesIO(b"x"))
    assert read_all(open_index(path)) == {"k": {"jpg": b"x", "txt": b"x"}}
    assert "2 no_key, 4 not_a_plain_file, 1 suffix_not_allowed, 6 unsafe_key" in caplog.text


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_read_once_and_hashed_whole(tmp_path, form):
    members = [("video.mp4", b"v" * 1_500_000)]
    for number in range(40):
        members += [(f"{number:0150}.jpg", os.urandom(99_000)), (f"{number:0150}.txt", b"a caption")]
    members += [("huge.jpg", bytes(5_000_000)), ("end.bin", b"e" * 700_000)]
    path = write_tar(tmp_path / "a.tar", members, format=form)
    before = bytes_read()
    shard = index_shard(path)
    assert bytes_read() - before < 1.2 * shard.num_bytes
    assert shard.sha256 == sha256_of(path) and shard.samples == 41


def bytes_read():
    """By this process, from the disk or from the system's cache."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("mode, told", [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_a_compressed_tar_is_refused_with_the_way_out(tmp_path, mode, told):
    with tarfile.open(tmp_path / "a.tar", mode) as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(ShardError, match=f"{told}; unpack"):
        open_index(tmp_path)


@pytest.mark.parametrize(
    "data, told",
    [
        (b"", "empty"),
        (b"<!DOCTYPE html>" * 100, "at byte 0"),
        (b"\0" * 512, "truncated"),
        (b"x" * 10240, "at byte 0"),
    ],
)
def test_what_is_no_tar_is_refused(tmp_path, data, told):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(ShardError, match=told):
        open_index(tmp_path)


def test_two_tars_in_one_file_are_not_taken_for_the_first(tmp_path, whole):
    tar, _ = whole
    (tmp_path / "a.tar").write_bytes(tar + tar)
    with pytest.raises(ShardError, match=f"at byte {len(tar)}: more bytes"):
        open_index(tmp_path)


def test_a_member_that_is_there_twice_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.txt", b"1"), ("a.TXT", b"2")])
    with pytest.raises(ShardError, match="twice"):
        open_index(tmp_path)


def hostile_header(kind, size_field):
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT))
    header[156:157], header[124:136] = kind, size_field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"K", b"S"])
@pytest.mark.parametrize("size", [b"\xff" * 12, b"77777777777\0", b"\x80" + b"\x7f" * 11, b"-0000000001\0"])
def test_a_header_with_an_impossible_size_is_refused_at_once(tmp_path, kind, size):
    (tmp_path / "a.tar").write_bytes(hostile_header(kind, size) + b"\0" * 10240)
    with pytest.raises(ShardError, match="at byte"):
        open_index(tmp_path)


def test_a_chain_of_long_name_headers_is_refused(tmp_path):
    link = hostile_header(b"L", b"00000000001\0") + b"a" + b"\0" * 511
    (tmp_path / "a.tar").write_bytes(link * 5000 + b"\0" * 1024)
    with pytest.raises(ShardError, match="at byte"):
        open_index(tmp_path)


def test_a_failed_commit_leaves_nothing_behind(tmp_path):
    (tmp_path / "_index").mkdir()
    (tmp_path / "_index" / "00000.tar.index").mkdir()  # the rename of the index must fail
    with pytest.raises(ShardError):
        ShardWriter(tmp_path, 0)
    (tmp_path / "_index" / "00000.tar.index").rmdir()
    with pytest.raises(OSError), ShardWriter(tmp_path, 0) as writer:
        os.mkdir(tmp_path / "_index" / "00000.tar.index")
        writer.add("a", {"txt": b"x"})
    assert not list(tmp_path.rglob("*.partial"))
