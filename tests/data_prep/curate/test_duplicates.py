"""Which pairs are the same; all of them are found."""

import random

import numpy as np
import pytest

from diptych_shards.curate.duplicates import FOUND, RECORD, find_duplicates, near_hash, pair_hash, place, size_of
from diptych_shards.curate.external_sort import write_sorted

CAT = ("https://a.org/cat.jpg", "A cat on a mat.")


@pytest.mark.parametrize(
    "url, caption",
    [
        ("http://www.a.org:80/cat.jpg?width=300", "a cat on a mat"),
        ("https://A.org/cat-300x200.jpg#top", "A  CAT, on a mat!!"),
        ("//a.org/c%61t.jpg", "“A cat on a mat”"),
    ],
)
def test_near_duplicates(url, caption):
    assert near_hash(url, caption) == near_hash(*CAT)
    assert pair_hash(url, caption) != pair_hash(*CAT)


@pytest.mark.parametrize(
    "url, caption",
    [
        ("https://a.org/cat.jpg", "A cat on a map."),
        ("https://a.org/cat2.jpg", "A cat on a mat."),
        ("https://b.org/cat.jpg", "A cat on a mat."),
        ("https://a.org:81/cat.jpg", "A cat on a mat."),
        ("https://[a.org/cat.jpg", "A cat on a mat."),
    ],
)
def test_other_pairs(url, caption):
    assert near_hash(url, caption) != near_hash(*CAT)


def test_a_query_names_the_picture_where_the_path_does_not():
    assert near_hash("https://a.org/show?id=1", "x") != near_hash("https://a.org/show?id=2", "x")


def test_letters_of_all_scripts_count_and_signs_alone_are_kept():
    assert near_hash("u", "красный — дом") == near_hash("u", "Красный дом")
    assert near_hash("u", "किताब") != near_hash("u", "किताबें")
    assert near_hash("u", "♥♥") != near_hash("u", "★")


FROM_THE_LARGEST_ON = [
    ["cat.jpg 90", "cat.jpg 0", "cat-1024x768.jpg 0", "cat_1000x768.JPG?v=2 0", "cat-99x99.png 9000000000"],
    ["c.jpg 8000000000", "c.jpg?fit=1024%2C768 0", "c.jpg?w=300&q=80 0", "c.jpg?a=1&height=20&width=40 0"],
    ["cat-300x300.jpg?w=2000 0", "cat-2000x2000.jpg?w=200 0"],
]


@pytest.mark.parametrize("pictures", FROM_THE_LARGEST_ON)
def test_sizes_are_read_from_addresses_and_hints(pictures):
    sizes = [size_of(url, int(hint)) for url, hint in map(str.split, pictures)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    assert all(0 <= size < 2**32 for size in sizes)


@pytest.mark.parametrize("num_shares", [1, 2, 7])
def test_one_of_equal_pairs_stays_whatever_the_shares(tmp_path, num_shares):
    draw = random.Random(num_shares)
    pairs = [(draw.randrange(100), draw.randrange(3), draw.randrange(3)) for _ in range(240)]
    records = np.zeros(len(pairs), RECORD)
    for number, (near, pair, size) in enumerate(pairs):
        records[number] = near * (2**64 // 100), near, pair, size, place(number // 60, number % 60)
    paths = [tmp_path / str(unit) for unit in range(4)]
    for path, of_unit in zip(paths, np.split(records, 4), strict=True):
        write_sorted(path, of_unit)
    found = np.concatenate([find_duplicates(paths, share, num_shares) for share in range(num_shares)])
    dropped = {key: bool(is_exact) for key, is_exact in found.tolist()}
    assert len(found) == len(dropped)

    for near in {near for near, _, _ in pairs}:
        group = [record for record, pair in zip(records.tolist(), pairs, strict=True) if pair[0] == near]
        group.sort(key=lambda record: (-record[3], record[2], record[4]))
        assert group[0][4] not in dropped  # the largest stays, then the smallest hash, then the first
        firsts = {}
        for _, _, pair, _, where in group:
            firsts.setdefault(pair, where)
        for _, _, pair, _, where in group[1:]:
            assert dropped.pop(where) == (where != firsts[pair])
    assert not dropped


def test_pairs_whose_hashes_only_start_alike_are_not_duplicates(tmp_path):
    write_sorted(tmp_path / "a", np.array([(5, 1, 0, 0, 0), (5, 2, 0, 0, 1), (5, 2, 0, 0, 2)], RECORD))
    assert find_duplicates([tmp_path / "a"], 0, 1).tolist() == [(2, True)]
    assert find_duplicates([], 0, 1).dtype == FOUND
