"""Write one page that shows what verdicts keep and leave out; it loads and runs nothing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.data.picture_safety import PictureError, open_picture
from diptych.data.shard_index_file import INDEX_FOLDER, ShardError
from diptych.data.shards import ShardIndex, open_index
from diptych.pages.template import template
from diptych.pages.thumbnail import thumbnail_uri
from diptych_shards.metadata import facts_of_samples
from diptych_shards.pictures.perceptual_hash import STEADY, perceptual_hash
from diptych_shards.run.worker_pool import PICTURE_SILENCE_SECONDS, WorkerPool, for_each, results_in_order
from diptych_shards.select.duplicates import IN_EVALUATION
from diptych_shards.select.examples import Drawn, Judged, JudgedSamples, draw
from diptych_shards.select.picture_places import Place, place_of
from diptych_shards.select.verdicts import Verdict

PREVIEW_FILE = "preview.html"
MOST_REASONS = 40
_THUMBNAIL_SIDE = 240
_CAPTION_LENGTH = 200
_NAME_LENGTH = 120


@dataclass(frozen=True)
class _Thumbnail:
    """A small copy as a data: URI, with the size and the perceptual hash of the picture; None for a flat picture."""

    uri: str
    width: int
    height: int
    look: int | None


@dataclass(frozen=True)
class _Card:
    """A picture as the page shows it."""

    picture: _Thumbnail | None
    caption: str | None
    name: str
    origin: str = ""
    """The path or URL that a sample came from, where it is known."""


def render_preview(
    title: str, index: ShardIndex, verdicts: Sequence[Verdict], *, examples: int, seed: int, processes: int
) -> bytes:
    """Render the page; equal shards and verdicts give equal pages.

    verdicts: with those that they considered.
    examples: how many of each reason, and of what is kept.

    Raises:
        ShardError: a shard is damaged.
    """
    in_order = sorted(verdicts, key=lambda verdict: (len(verdict.considered), verdict.name))
    judged = draw(index, in_order, examples, seed)
    cards = _Cards(index, judged, processes)
    page = template("diptych_shards", "select/preview.html.jinja").render(
        title=title,
        judged=judged,
        verdicts=[_shown(of, cards, title) for of in judged.verdicts],
        bits_between=_bits_between,
        most_reasons=MOST_REASONS,
        caption_length=_CAPTION_LENGTH,
        name_length=_NAME_LENGTH,
    )
    return page.encode("utf-8", "backslashreplace")


def _shown(of: JudgedSamples, cards: _Cards, title: str) -> dict[str, Any]:
    counts = of.verdict.counts
    reasons = sorted(((r, times) for r, times in counts.items() if r), key=lambda each: (-each[1], each[0]))
    meanings = of.verdict.facts.get("meanings", {})
    return {
        "name": of.verdict.name,
        "command": of.verdict.facts["command"],
        "options": {name: value for name, value in of.verdict.facts["options"].items() if value and name != "name"},
        "considered": list(of.verdict.considered),
        "undo": f"rm {shlex.quote(f'{title}/{INDEX_FOLDER}/select/{of.verdict.name}.parquet')}",
        "kept": counts[""] - of.left_out_by_others,
        "left_out_by_others": of.left_out_by_others,
        "dropped": sum(times for _, times in reasons),
        "alone": of.alone,
        "examples": [cards.of_sample(drawn) for drawn in of.kept.items],
        "reasons": [
            {
                "name": reason,
                "meaning": meanings.get(reason, ""),
                "samples": times,
                "shown_with": "evaluation picture" if reason == IN_EVALUATION else "stays",
                "examples": [
                    (cards.of_sample(drawn), cards.of_original(drawn, reason)) for drawn in of.dropped[reason].items
                ],
            }
            for reason, times in reasons
        ],
    }


def _bits_between(one: _Card, other: _Card | None) -> int | None:
    """How many bits the perceptual hashes of two pictures differ in, as in `dedup`; None if one has no hash."""
    first, second = (card.picture.look if card and card.picture else None for card in (one, other))
    return None if first is None or second is None else (first ^ second).bit_count()


class _Cards:
    """All pictures that the page shows, gathered so that each is read once."""

    def __init__(self, index: ShardIndex, judged: Judged, processes: int):
        self._index = index
        drawn = [
            (each, reason)
            for of in judged.verdicts
            for reason, examples in (("", of.kept), *of.dropped.items())
            for each in examples.items
        ]
        self._samples = _find_keys(index, {d.duplicate_of for d, why in drawn if why != IN_EVALUATION} - {None})
        self._places = {(each.shard, each.row): self._place(each.shard, each.row) for each, _ in drawn}
        self._places |= {sample: self._place(*sample) for sample in self._samples.values()}
        self._evaluation = {
            d.duplicate_of: _evaluation_place(d.duplicate_of)
            for d, why in drawn
            if why == IN_EVALUATION and d.duplicate_of
        }
        wanted = [*self._places.values(), *self._evaluation.values()]
        self._thumbnails = _thumbnails([place for place in wanted if place is not None], processes)

    def of_sample(self, drawn: Drawn) -> _Card:
        return self._card(drawn.shard, drawn.row)

    def of_original(self, drawn: Drawn, reason: str) -> _Card | None:
        """The card that a duplicate is shown next to; None for a sample that is not a duplicate."""
        if drawn.duplicate_of is None:
            return None
        if reason == IN_EVALUATION:
            short = "/".join(Path(drawn.duplicate_of).parts[-2:])
            return _Card(self._thumbnail(self._evaluation[drawn.duplicate_of]), None, short)
        sample = self._samples.get(drawn.duplicate_of)
        return _Card(None, None, drawn.duplicate_of) if sample is None else self._card(*sample)

    def _card(self, shard: int, row: int) -> _Card:
        key = self._index.sample(shard, row).key
        facts = facts_of_samples(self._index, shard, [row])[0]
        caption = None if facts.get("caption") is None else str(facts["caption"])
        origin = str(facts.get("path") or facts.get("url") or "")
        return _Card(self._thumbnail(self._places[shard, row]), caption, key, origin)

    def _thumbnail(self, place: Place | None) -> _Thumbnail | None:
        return None if place is None else self._thumbnails[place]

    def _place(self, shard: int, row: int) -> Place | None:
        return place_of(self._index.sample(shard, row))


def _find_keys(index: ShardIndex, keys: Iterable[str | None]) -> dict[str, tuple[int, int]]:
    """The shard and row of each key; of its first sample if it occurs twice."""
    wanted = set(keys)
    found: dict[str, tuple[int, int]] = {}
    for number in range(len(index.shards)):
        if len(found) == len(wanted):
            break
        for row, key in enumerate(index.keys(number)):
            if key in wanted:
                found.setdefault(key, (number, row))
    return found


def _evaluation_place(name: str) -> Place | None:
    """Where an evaluation picture is: a file, or a sample as TAR/KEY; None if it is gone."""
    if os.path.isfile(name):
        return Place(name)
    tar, slash, key = name.partition(".tar/")
    if not slash or not Path(f"{tar}.tar").is_file():
        return None
    try:
        index = open_index(f"{tar}.tar")
    except ShardError:
        return None
    sample = _find_keys(index, {key}).get(key)
    return None if sample is None else place_of(index.sample(*sample))


def _thumbnails(places: Sequence[Place], processes: int) -> dict[Place, _Thumbnail | None]:
    """The thumbnail of each picture; None if it cannot be shown."""
    distinct = list(dict.fromkeys(places))
    batches = (distinct[start : start + 8] for start in range(0, len(distinct), 8))
    size = min(processes, max(len(distinct), 1))
    with WorkerPool(for_each(_thumbnail), size, silence_seconds=PICTURE_SILENCE_SECONDS) as pool:
        found = list(results_in_order(pool, batches, give_up=_cannot_be_shown))
    return dict(zip(distinct, found, strict=True))


def _thumbnail(place: Place) -> _Thumbnail | None:
    try:
        picture = open_picture(place.read())
    except (PictureError, ShardError, OSError):
        return None
    return _Thumbnail(thumbnail_uri(picture, _THUMBNAIL_SIDE), *picture.size, perceptual_hash(picture, margin=STEADY))


def _cannot_be_shown(place: Place) -> None:
    return None
