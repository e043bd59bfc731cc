"""The demo's classes, combinations of a noun and a colour: their captions, and which are held out from training.

Training sees the noun and the colour of a held-out combination (an owl on a green background), but never together, so
naming it right is zero-shot by composition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NOUNS = {
    # animals
    "dog": "1F436", "cat": "1F431", "lion": "1F981", "frog": "1F438", "pig": "1F437", "rabbit": "1F430",
    "fox": "1F98A", "panda": "1F43C", "elephant": "1F418", "giraffe": "1F992", "penguin": "1F427",
    "owl": "1F989", "fish": "1F41F", "octopus": "1F419", "butterfly": "1F98B", "bee": "1F41D",
    "snail": "1F40C", "turtle": "1F422", "crab": "1F980", "whale": "1F433",
    # food
    "apple": "1F34E", "banana": "1F34C", "pear": "1F350", "strawberry": "1F353", "pineapple": "1F34D",
    "carrot": "1F955", "mushroom": "1F344", "pizza": "1F355", "hamburger": "1F354", "doughnut": "1F369",
    "cake": "1F382", "watermelon": "1F349", "avocado": "1F951", "pretzel": "1F968",
    # things
    "bicycle": "1F6B2", "car": "1F697", "rocket": "1F680", "sailboat": "26F5", "umbrella": "2602",
    "guitar": "1F3B8", "drum": "1F941", "key": "1F511", "clock": "23F0", "book": "1F4D5", "camera": "1F4F7",
    "chair": "1FA91", "teapot": "1FAD6", "hammer": "1F528", "crown": "1F451", "house": "1F3E0",
    "tree": "1F333", "balloon": "1F388",
}  # fmt: skip
"""Noun → the code point of its artwork."""

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

COLOURED_CAPTIONS = (
    "{noun} on {colour} background",
    "a picture of {noun} on {colour} background",
    "a drawing of {noun} on {colour} background",
    "{colour} card with {noun} on it",
    "{noun} in front of {colour} wall",
    "{noun}, and behind it {colour} background",
    "this card shows {noun} on {colour} background",
)
TRAINING_CAPTIONS = (*COLOURED_CAPTIONS, "a picture of {noun}", "this card shows {noun}")
"""As in a crawl, some captions do not mention everything that the picture shows."""

CLASS_NAME = COLOURED_CAPTIONS[0]
ZERO_SHOT_TEMPLATES = ("{}", "a picture of {}", "a drawing of {}", "this card shows {}")
"""Templates for a class's name, which already has its article."""

# Each noun gets two held-out colours. The nouns are taken in rounds of eight: their first colours run through all
# eight, and the second colour is this many places after the first. The last round has only four nouns; there a
# distance of four makes all counts equal.
_DISTANCE_OF_SECOND = (1, 2, 3, 5, 6, 7, 4)


@dataclass(frozen=True)
class Combination:
    noun: str
    colour: str

    @property
    def class_name(self) -> str:
        return self.caption(CLASS_NAME)

    def caption(self, template: str) -> str:
        return template.format(noun=with_article(self.noun), colour=with_article(self.colour))


def combinations() -> list[Combination]:
    """All classes, in the order of `classes.yaml`."""
    return [Combination(noun, colour) for noun in NOUNS for colour in COLOURS]


def held_out_combinations(seed: int) -> list[Combination]:
    """The combinations left out of training: two colours of every noun, every colour equally often."""
    random = np.random.default_rng(seed)
    nouns, colours = (random.permutation(list(names)).tolist() for names in (NOUNS, COLOURS))
    chosen = set()
    for place, noun in enumerate(nouns):
        second = place + _DISTANCE_OF_SECOND[place // len(colours)]
        chosen |= {Combination(noun, colours[position % len(colours)]) for position in (place, second)}
    return [combination for combination in combinations() if combination in chosen]


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
