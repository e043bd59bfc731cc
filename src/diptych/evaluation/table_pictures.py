"""Open labelled or captioned pictures listed in a table, which is read as `diptych-shards` reads it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.data.caption_files import CaptionError, CaptionReason, captions_of, check_caption
from diptych.errors import UserError
from diptych.evaluation.left_out import by_reason, check_some_are_captioned, in_words
from diptych.evaluation.pictures import Pictures, files_of

if TYPE_CHECKING:
    from diptych_shards.tables.picture_table import PictureRow

LABEL_SEPARATOR = "|"
EXPECTED = "the path of a picture, relative to the table's folder, and its {} in each row"


def labelled_table(location: str, label_key: str) -> Pictures:
    """Open pictures with a label in each row; labels that are all whole numbers are the numbers of classes.

    Raises:
        ValueError: a row cannot be used. The accuracy without it would be that of another data set.
    """
    folder = Path(location).parent
    paths, labels = [], []
    refused: dict[str, CaptionError] = {}
    for file, row in _rows(location, refused, label=label_key):
        try:
            labels.append(_label(row.value))
            paths.append(file)
        except CaptionError as error:
            refused[row.place] = error
    _check_all_are_labelled(location, label_key, len(labels), refused)
    return Pictures(location, *files_of(paths, folder), labels=tuple(labels), labels_are_numbers=are_numbers(labels))


def multi_labelled_table(location: str, label_key: str) -> Pictures:
    """Open pictures with any number of labels: a list, a text like `cat|dog`, or several rows; an empty cell is none.

    Raises:
        ValueError: a row cannot be used.
    """
    folder = Path(location).parent
    labels: dict[Path, tuple[str, ...]] = {}
    refused: dict[str, CaptionError] = {}
    for file, row in _rows(location, refused, label=label_key):
        try:
            labels[file] = tuple(dict.fromkeys([*labels.get(file, ()), *label_set(row.value)]))
        except CaptionError as error:
            refused[row.place] = error
    _check_all_are_labelled(location, label_key, len(labels), refused)
    return Pictures(
        location,
        *files_of(list(labels), folder),
        label_sets=tuple(labels.values()),
        labels_are_numbers=are_numbers(label for each in labels.values() for label in each),
    )


def label_set(value: Any) -> tuple[str, ...]:
    """The labels in a list or in a text with `|` between them; none for an empty one.

    Raises:
        CaptionError: the value or a label in the list is something else.
    """
    if value is None or value != value or isinstance(value, str) and not value.strip():
        return ()
    values = value.split(LABEL_SEPARATOR) if isinstance(value, str) else value if isinstance(value, list) else [value]
    return tuple(_label(each) for each in values)


def captioned_table(location: str, caption_key: str | None) -> Pictures:
    """Open pictures with the captions of all their rows; rows that cannot be used are left out, with their reasons."""
    folder = Path(location).parent
    captions: dict[Path, tuple[str, ...]] = {}
    refused: dict[str, CaptionError] = {}
    for file, row in _rows(location, refused, caption=caption_key):
        try:
            captions[file] = captions.get(file, ()) + captions_of(row.value)
        except CaptionError as error:
            refused[row.place] = error
    expected = EXPECTED.format("caption")
    if not captions and not refused:
        raise UserError(f"{location} has no rows; expected {expected}")
    check_some_are_captioned(location, len(captions), refused, expected)
    return Pictures(location, *files_of(list(captions), folder), captions=tuple(captions.values()), refused=refused)


def are_numbers(labels: Iterable[str]) -> bool:
    """Whether the labels are numbers of classes and not their names, since "a photo of a 0." is a useless prompt."""
    return all(re.fullmatch("[0-9]{1,9}", label) for label in labels)


def _rows(
    location: str, refused: dict[str, CaptionError], *, caption: str | None = None, label: str | None = None
) -> Iterator[tuple[Path, PictureRow]]:
    """Yield the rows whose picture exists; the others are added to `refused`, by their place in the table."""
    from diptych_shards.tables.picture_table import BadRow, Wanted, read_picture_table  # here: loads pyarrow

    folder = Path(location).parent
    for row in read_picture_table(location, Wanted(caption=caption, label=label, option="--caption-key")):
        if isinstance(row, BadRow):
            refused[row.place] = CaptionError(CaptionReason.MALFORMED_ROW, row.why)
        elif os.path.isfile(folder / row.path):
            yield folder / row.path, row
        else:
            refused[row.place] = CaptionError(CaptionReason.MISSING_FILE, row.path)


def _check_all_are_labelled(location: str, label_key: str, labelled: int, refused: Mapping[str, CaptionError]) -> None:
    expected = EXPECTED.format(label_key)
    if refused:
        rows = "one row" if len(refused) == 1 else f"{len(refused):,} rows"
        raise UserError(f"{location}: {rows} cannot be used: {in_words(by_reason(refused))}; expected {expected}")
    if not labelled:
        raise UserError(f"{location} has no rows; expected {expected}")


def _label(value: Any) -> str:
    """The name of a class, or its number as text; pandas writes 3 as 3.0 if another row has no label."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return check_caption(value)
