"""Open tables of pictures and texts that are to be matched, in the layouts of Winoground and WinoGAViL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.data.caption_files import CaptionError, CaptionReason, check_caption
from diptych.data.picture_formats import PICTURE_ENDINGS
from diptych.documents import parse_json
from diptych.errors import UserError
from diptych.evaluation.left_out import check_some_are_captioned
from diptych.evaluation.pictures import Cue, Pictures, files_of

if TYPE_CHECKING:
    from diptych_shards.tables.picture_table import PictureRow

COLUMNS = ("image_0", "image_1", "caption_0", "caption_1")
CUE_COLUMNS = ("cue", "candidates", "associations")
FOLDERS = ("", "images", "winogavil_images")
"""Where the pictures are, relative to the table."""


def matched_table(location: str) -> Pictures:
    """Open a table with the columns image_0, image_1, caption_0 and caption_1, as Winoground's examples.jsonl.

    A picture is a path relative to the table's folder; its ending, and a folder `images`, may be left out. Example i
    has the pictures 2i and 2i + 1, with one caption each. Rows that cannot be used are left out, with their reasons in
    `refused`.

    Raises:
        UserError: the table cannot be read, has other columns, or no row can be used.
    """
    from diptych_shards.tables.picture_table import BadRow, Wanted, read_picture_table  # here: loads pyarrow

    folder = Path(location).parent
    files: list[Path] = []
    captions: list[tuple[str, ...]] = []
    refused: dict[str, CaptionError] = {}
    wanted = Wanted(path=COLUMNS[0], caption=COLUMNS[2], option="a column of that name")
    for row in read_picture_table(location, wanted):
        if isinstance(row, BadRow):
            refused[row.place] = CaptionError(CaptionReason.MALFORMED_ROW, row.why)
            continue
        if missing := [column for column in (COLUMNS[1], COLUMNS[3]) if column not in row.extra]:
            raise UserError(f"{location} has no column {missing[0]}; expected the columns {', '.join(COLUMNS)}")
        try:
            matched = list(_matched(row, folder))
        except CaptionError as error:
            refused[row.place] = error
        else:
            files += [file for file, _ in matched]
            captions += [(caption,) for _, caption in matched]
    check_some_are_captioned(location, len(files), refused, f"{', '.join(COLUMNS)} in each row")
    return Pictures(location, *files_of(files, folder), captions=tuple(captions), refused=refused)


def cue_table(location: str) -> Pictures:
    """Open a table with the columns cue, candidates and associations, as WinoGAViL's winogavil_dataset.csv.

    candidates are the names of pictures, and associations those of them that the cue belongs to, each a list or its
    JSON. A picture is found as in `matched_table`, also in a folder `winogavil_images`; each is listed once. Rows that
    cannot be used are left out, with their reasons in `refused`.

    Raises:
        UserError: the table cannot be read, has other columns, or no row can be used.
    """
    from diptych_shards.tables.picture_table import BadRow, Wanted, read_picture_table  # here: loads pyarrow

    folder = Path(location).parent
    file_of = cache(lambda name: _picture_file(name, folder))
    place_of: dict[Path, int] = {}
    cues: list[Cue] = []
    refused: dict[str, CaptionError] = {}
    wanted = Wanted(path=CUE_COLUMNS[0], caption=CUE_COLUMNS[1], option="a column of that name")
    for row in read_picture_table(location, wanted):
        if isinstance(row, BadRow):
            refused[row.place] = CaptionError(CaptionReason.MALFORMED_ROW, row.why)
            continue
        if CUE_COLUMNS[2] not in row.extra:
            raise UserError(f"{location} has no column {CUE_COLUMNS[2]}; expected the columns {', '.join(CUE_COLUMNS)}")
        try:
            candidates, associations = (_names(each) for each in (row.value, row.extra[CUE_COLUMNS[2]]))
            if not associations or not set(associations) <= set(candidates):
                raise CaptionError(CaptionReason.MALFORMED_ROW, "its associations are not among its candidates")
            text, files = check_caption(row.path), [file_of(name) for name in candidates]
        except CaptionError as error:
            refused[row.place] = error
        else:
            places = tuple(place_of.setdefault(file, len(place_of)) for file in files)
            cues.append(Cue(text, places, tuple(name in associations for name in candidates)))
    check_some_are_captioned(location, len(cues), refused, f"{', '.join(CUE_COLUMNS)} in each row")
    return Pictures(location, *files_of(list(place_of), folder), cues=tuple(cues), refused=refused)


def _names(value: Any) -> list[str]:
    """The names in a list or in its JSON, which are not empty."""
    try:
        names = parse_json(value) if isinstance(value, str) else value
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise CaptionError(CaptionReason.MALFORMED_ROW, f"{str(value)[:80]} is no list of names")
    return names


def _matched(row: PictureRow, folder: Path) -> Iterator[tuple[Path, str]]:
    for name, caption in ((row.path, row.value), (row.extra[COLUMNS[1]], row.extra[COLUMNS[3]])):
        yield _picture_file(name, folder), check_caption(caption)


def _picture_file(name: Any, folder: Path) -> Path:
    if isinstance(name, str) and name.strip() and "\0" not in name:
        for place in (folder / each / name for each in FOLDERS):
            for ending in ("", *PICTURE_ENDINGS):
                if os.path.isfile(f"{place}{ending}"):
                    return Path(f"{place}{ending}")
    raise CaptionError(CaptionReason.MISSING_FILE, str(name)[:80])
