"""Two tasks to learn: drawn cards of a noun on a colour, of which some combinations are never trained on."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from diptych.data.shard_writer import ShardWriter
from diptych.data.tokenizer import train_vocabulary
from diptych.demo.cards import draw_artwork, names_of_artwork
from diptych.demo.combinations import COLOURS, NOUNS, TRAINING_CAPTIONS, Combination
from diptych.files import commit_file

PIXELS = 48
SYMBOLS = range(0x1F300, 0x1FB00)
"""The code points whose artwork shows a thing."""
MANY_NOUNS = 240
VOCABULARY_SIZE = 2048


@dataclass(frozen=True)
class Task:
    """What there is to learn, and how long the plain recipe may take."""

    nouns: Mapping[str, str]
    """Noun → code point of its artwork."""
    cards_a_combination: int
    held_out_cards: int
    """Cards of each held-out combination."""


def cards() -> Task:
    """The demo's 52 nouns on 8 colours."""
    return Task(NOUNS, cards_a_combination=50, held_out_cards=12)


def many_nouns() -> Task:
    """240 nouns on 8 colours: 1,920 classes, with few cards of each."""
    return Task(_single_words(), cards_a_combination=12, held_out_cards=4)


TASKS = {"cards": cards, "many_nouns": many_nouns}


def write_task(name: str, folder: Path, seed: int = 0) -> Path:
    """Write shards/, vocabulary.json, dev/, test/ and classes.yaml, unless they are there; return the folder.

    Two colours of each noun are never trained on: one is for the development split, by which learning rates are chosen,
    the other for the test split, by which recipes are compared.
    """
    task, mark = TASKS[name](), folder / "task.json"
    drawn = json.dumps({"task": name, "seed": seed})
    if mark.exists() and mark.read_text() == drawn:
        return folder
    held_out = _held_out(task.nouns, seed)
    trained = [each for each in _combinations(task.nouns) if each not in held_out["dev"] + held_out["test"]]
    for split, combinations in held_out.items():
        for number, combination in enumerate(combinations * task.held_out_cards):
            path = folder / split / combination.class_name / f"{number:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_card(task, combination, (seed, len(split), number)))
    classes = [each.class_name for each in _combinations(task.nouns)]
    (folder / "classes.yaml").write_text(yaml.safe_dump({"classes": classes, "templates": ["{}"]}, sort_keys=False))
    captions = list(_write_shards(task, trained, folder / "shards", seed))
    train_vocabulary(captions, VOCABULARY_SIZE).save(folder / "vocabulary.json")
    commit_file(mark, drawn.encode())
    return folder


def _write_shards(task: Task, trained: Sequence[Combination], folder: Path, seed: int) -> Iterator[str]:
    random = np.random.default_rng(seed)
    shown = [combination for combination in trained for _ in range(task.cards_a_combination)]
    with ShardWriter(folder, 0) as writer:
        for number, place in enumerate(random.permutation(len(shown)).tolist()):
            caption = shown[place].caption(TRAINING_CAPTIONS[random.integers(len(TRAINING_CAPTIONS))])
            writer.add(f"{number:09}", {"png": _card(task, shown[place], (seed, 0, place)), "txt": caption.encode()})
            yield caption


def _card(task: Task, combination: Combination, key: tuple[int, ...]) -> bytes:
    data = io.BytesIO()
    colour = COLOURS[combination.colour]
    drawn = draw_artwork(task.nouns[combination.noun], colour, PIXELS, np.random.default_rng(key))
    drawn.save(data, "PNG", compress_level=1)
    return data.getvalue()


def _combinations(nouns: Mapping[str, str]) -> list[Combination]:
    return [Combination(noun, colour) for noun in nouns for colour in COLOURS]


def _held_out(nouns: Mapping[str, str], seed: int) -> dict[str, list[Combination]]:
    """A colour of each noun for each split."""
    random = np.random.default_rng(seed)
    pairs = [random.permutation(list(COLOURS))[:2].tolist() for _ in nouns]
    return {
        split: [Combination(noun, pair[place]) for noun, pair in zip(nouns, pairs, strict=True)]
        for place, split in enumerate(("dev", "test"))
    }


def _single_words() -> dict[str, str]:
    """Nouns of one word, by the names that Unicode gives symbols."""
    words: dict[str, str] = {}
    for code_point in names_of_artwork():
        if re.fullmatch("[0-9A-F]{5}", code_point) and int(code_point, 16) in SYMBOLS:
            word = unicodedata.name(chr(int(code_point, 16)), "").lower().removesuffix(" face")
            if word.isalpha():
                words.setdefault(word, code_point)
    chosen = np.random.default_rng(0).permutation(sorted(words))[:MANY_NOUNS].tolist()
    return {word: words[word] for word in sorted(chosen)}
