"""Write the report as one page that loads nothing, runs nothing, and shows text from the web as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from diptych.data.picture_safety import PictureError, PictureFile
from diptych.data.shard_index_file import ShardError
from diptych.data.shards import open_index
from diptych.pages.axes import short_size
from diptych.pages.histograms import Tally, length_histogram, ratio_histogram, side_histogram
from diptych.pages.template import day, template
from diptych.pages.thumbnail import thumbnail_uri
from diptych_shards.report.gather import Example, Gathered, gather
from diptych_shards.report.hosts import registrable
from diptych_shards.report.reasons import funnel, meaning
from diptych_shards.report.rows import ResultsReader, describe_not_whole

REPORT_FILE = "report.html"
MOST_DOMAINS = 20
MOST_LOSSY_DOMAINS = 12
MOST_REPEATED = 6
MOST_REASONS_OF_STAGE = 3

_GRIDS = {
    "random": "",
    "smallest": "Smallest originals",
    "longest": "Most elongated",
    "short_caption": "Shortest captions",
    "long_caption": "Longest captions",
}
_THUMBNAIL_SIDE = 300
"""Pixels of the longer side: twice the size on the page, for screens of high density."""
_CAPTION_LENGTH = 280
_NAME_LENGTH = 240


@dataclass(frozen=True)
class Shown:
    """A kept picture in a grid."""

    picture: str | None
    caption: str | None
    origin: str
    size: str


def render_report(source: ResultsReader, *, pictures: int = 36, seed: int = 0) -> bytes:
    """Render the page about the output of a build or a pack, or about other shards; equal outputs give equal pages.

    Raises:
        ShardError: a shard is damaged within, or none is whole.
    """
    found = gather(source, pictures=pictures, seed=seed)
    is_end_only = source.kind in ("select", "shards")
    page = template("diptych_shards", "report/page.html.jinja").render(
        title=source.out.resolve().name,
        source=source,
        found=found,
        size=short_size(source.num_bytes),
        times=_times(source),
        not_whole=describe_not_whole(source.not_whole) if source.not_whole else "",
        stages=[] if is_end_only else funnel(source.kind, found.kept, found.refused),
        not_known=_not_known(found) if is_end_only else [],
        reasons_of_stage=MOST_REASONS_OF_STAGE,
        reasons=_reasons(found),
        domains=found.domains.most_frequent(MOST_DOMAINS) if found.domains.num[0] > 1 else [],
        lossy_domains=found.domains.most_refused(MOST_LOSSY_DOMAINS),
        shapes=_drawn(
            side_histogram("Shorter side, original", found.shorter_side) if _differ(found.shorter_side) else None,
            side_histogram("Shorter side, stored", found.stored_side) if _stores_sizes(found) else None,
            ratio_histogram("Width to height, original", found.ratio) if _differ(found.ratio) else None,
        ),
        shape_words=_shape_words(found),
        lengths=_drawn(
            length_histogram("Characters", "characters", found.characters) if _differ(found.characters) else None,
            length_histogram("Words", "words", found.words) if _differ(found.words) else None,
        ),
        length_words=[
            f"All have {tally.quantile(1):,} {unit}."
            for unit, tally in (("characters", found.characters), ("words", found.words))
            if tally.num_different == 1
        ],
        grids=_grids(source, found),
        caption_length=_CAPTION_LENGTH,
        name_length=_NAME_LENGTH,
        options=source.options,
    )
    return page.encode()


def _reasons(found: Gathered) -> list[dict[str, Any]]:
    """Most frequent first, each with examples."""
    ordered = sorted(found.refused.items(), key=lambda item: (-item[1], item[0]))
    return [
        {"name": reason, "rows": rows, "meaning": meaning(reason), "examples": _examples(found, reason)}
        for reason, rows in ordered
    ]


def _not_known(found: Gathered) -> list[str]:
    """What is not known about shards whose history is not recorded."""
    known = {
        "what was left out before, and why": False,
        "captions": found.has_captions,
        "sizes": found.shorter_side.total > 0,
        "where they came from": found.has_origins,
    }
    return [what for what, is_known in known.items() if not is_known]


def _examples(found: Gathered, reason: str) -> list[Example]:
    return found.examples_of_refused[reason].items if reason in found.examples_of_refused else []


def _grids(source: ResultsReader, found: Gathered) -> list[tuple[str, list[Shown]]]:
    """(heading, pictures) of each grid; a grid chosen by a value that all pictures share is left out."""
    differing = {
        "smallest": found.shorter_side,
        "longest": found.ratio,
        "short_caption": found.characters,
        "long_caption": found.characters,
    }
    grids = [
        (heading, [_shown(source, example) for example in found.grids[name].items])
        for name, heading in _GRIDS.items()
        if name not in differing or _differ(differing[name])
    ]
    repeated = [
        Shown(_thumbnail(source, each.shard, each.sample), None, "", f"{each.times:,} times")
        for each in found.repeated.most_frequent(MOST_REPEATED)
    ]
    return [*grids, ("The same file many times", repeated)]


def _differ(tally: Tally) -> bool:
    return tally.num_different > 1


def _shape_words(found: Gathered) -> list[str]:
    """Describe in words what would be a chart of one bar."""
    side, ratio = found.shorter_side, found.ratio
    if side.num_different == ratio.num_different == 1:
        example = found.grids["random"].items[0] if found.grids["random"].items else None
        return (
            [f"All were originally {example.width:,} × {example.height:,} pixels."] if example and example.width else []
        )
    if side.num_different == 1:
        return [f"All had a shorter side of {side.quantile(1):,} pixels originally."]
    return ["All have the same ratio of width to height."] if ratio.num_different == 1 else []


def _drawn(*charts: Any) -> Sequence[Any]:
    return [chart for chart in charts if chart is not None]


def _stores_sizes(found: Gathered) -> bool:
    """Whether the stored sizes are worth a chart: they differ from each other, and from the original sizes."""
    stored = found.stored_side
    return stored.num_different > 1 and not np.array_equal(stored.counts, found.shorter_side.counts)


def _shown(source: ResultsReader, example: Example) -> Shown:
    size = f"{example.width:,} × {example.height:,}" if example.width and example.height else ""
    return Shown(_thumbnail(source, example.shard, example.sample), example.caption, _origin(source, example), size)


def _origin(source: ResultsReader, example: Example) -> str:
    if not source.has_urls:
        return example.name
    try:
        return registrable(urlsplit(example.name).hostname or "")
    except ValueError:
        return ""


def _times(source: ResultsReader) -> str:
    if source.times is None:
        return ""
    first, last = (day(seconds) for seconds in source.times)
    return first if first == last else f"{first} to {last}"


def _thumbnail(source: ResultsReader, shard: int, sample: int) -> str | None:
    """The picture of a sample as a data: URI; None if it cannot be read."""
    try:
        picture, _ = PictureFile(_stored(source, shard, sample)).decode()
    except (ShardError, PictureError, OSError):
        return None
    return thumbnail_uri(picture, _THUMBNAIL_SIDE)


def _stored(source: ResultsReader, shard: int, number: int) -> bytes:
    index = open_index(source.tar(shard))
    name = index.shards[0].name
    if number >= len(index):
        raise ShardError(f"{name} has no sample {number}")
    sample = index.sample(0, number)
    if sample.picture_suffix is None:
        raise ShardError(f"sample {number} of {name} has no picture")
    return index.read(sample, sample.picture_suffix)[sample.picture_suffix]
