"""Find what the columns of a table mean, by the names that published tables use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diptych.errors import UserError
from diptych.terminal import shown

URL_COLUMNS = ("url", "image_url", "image_urls", "img_url")
"""LAION, COYO, DataComp, img2dataset and cc2dataset use url, in any case; SBU uses image_urls."""
PATH_COLUMNS = (
    *("path", "file", "file_name", "filename", "file_path", "filepath", "image", "image_path", "picture", "img"),
)
"""Hugging Face's metadata.csv and metadata.jsonl use file_name."""
CAPTION_COLUMNS = ("caption", "text", "captions", "alt", "alt_text")
"""LAION, COYO and DataComp use text; img2dataset caption; SBU captions; cc2dataset alt."""
TITLE_COLUMNS = ("title",)
"""Used as the caption only if the table has none of the other names."""
HASH_COLUMNS = ("sha256",)
"""Hashes of the downloaded bytes, as in DataComp and img2dataset. LAION's `md5` column is something else."""
BOXES_COLUMNS = ("face_bboxes",)
"""DataComp's boxes to blur, relative [x0, y0, x1, y1]."""
UID_COLUMNS = ("uid",)
HASH_KINDS = ("sha256", "md5", "sha512")
NO_COLUMN = "none"
"""The value of an option that means: use no column."""


class TableError(UserError):
    """The table, or an option about it, cannot be used; the message is one line for the user."""


def not_parquet(file: object, error: Exception, way_out: str = "") -> str:
    """The line about a file that should be parquet and cannot be read as such."""
    return f"{shown(file)} is not a readable parquet file ({shown(error)}){way_out and f'; {way_out}'}"


@dataclass(frozen=True)
class Columns:
    """The names of the columns with a meaning; every other column is stored as it is."""

    url: str
    caption: str | None = None
    hash: str | None = None
    hash_kind: str = "sha256"
    boxes: str | None = None


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """The columns that the user names; a column that is None is found by its name."""

    url: str | None = None
    caption: str | None = None
    hash: str | None = None
    hash_kind: str = "sha256"
    boxes: str | None = None
    extra: tuple[str, ...] | None = None
    """Other columns to store; all if None."""

    def __post_init__(self) -> None:
        if self.hash_kind not in HASH_KINDS:
            raise TableError(f"hash kind {self.hash_kind!r} is not one of {', '.join(HASH_KINDS)}")


def choose_columns(names: Sequence[str], options: ColumnOptions, table: str, texts: Sequence[str] = ()) -> Columns:
    """Find the columns with a meaning among `names`.

    texts: those that hold text; if one of them may be the caption but none has a usual name, the user is asked.
    """
    url = find_column("url", options.url, URL_COLUMNS, names, table)
    if url is None:
        raise TableError(
            f"{table} has no column that could be the url; name it with --url-column. {list_columns(names)}"
        )
    caption = find_caption(options.caption, names, table)
    digest = find_column("hash", options.hash, HASH_COLUMNS, names, table)
    boxes = find_column("boxes", options.boxes, BOXES_COLUMNS, names, table)
    others = [name for name in texts if name not in (url, digest, boxes) and name.lower() not in UID_COLUMNS]
    if caption is None and options.caption is None and others:
        raise TableError(
            f"{table} has no column that could be the caption; name it with --caption-column, or use "
            f"--caption-column {NO_COLUMN}. {list_columns(names)}"
        )
    if caption == url:
        raise TableError(f"{table}: column {shown(url)!r} cannot be both the url and the caption")
    return Columns(url, caption, digest, options.hash_kind if options.hash else "sha256", boxes)


def choose_extra(names: Sequence[str], columns: Columns, options: ColumnOptions, table: str) -> list[str]:
    """The columns to read, in the table's order: those with a meaning and those to be stored."""
    if options.extra is None:
        return [name for name in names if name != "__index_level_0__"]  # row numbers that pandas wrote
    extra = {find_column("extra", name, (), names, table) for name in options.extra}
    return [name for name in names if name in extra | {columns.url, columns.caption, columns.hash, columns.boxes}]


def find_caption(given: str | None, names: Sequence[str], table: str, option: str = "--caption-column") -> str | None:
    """The column of the captions; None if there is none, or none is wanted."""
    found = find_column("caption", given, CAPTION_COLUMNS, names, table, option)
    return found or (find_column("caption", None, TITLE_COLUMNS, names, table, option) if given is None else None)


def find_column(
    kind: str, given: str | None, usual: Sequence[str], names: Sequence[str], table: str, option: str = ""
) -> str | None:
    """The one column of this meaning; None if there is none, or none is wanted.

    option: what names it in the command, by default `--KIND-column`.

    Raises:
        TableError: the given one is not there, or more than one fits.
    """
    if given == NO_COLUMN and NO_COLUMN not in names:
        return None
    if given is not None and given in names:
        return given
    wanted = usual if given is None else (given.strip().lower(),)
    fitting = [name for name in names if name.strip().lower() in wanted]
    if len(fitting) > 1:
        which = ", ".join(map(shown, fitting))
        raise TableError(f"{table} has {len(fitting)} columns that could be the {kind}: {which}; "
                         f"name one with {option or f'--{kind}-column'}")  # fmt: skip
    if given is not None and not fitting:
        raise TableError(f"{table} has no column {shown(given)!r}. {list_columns(names)}")
    return fitting[0] if fitting else None


def list_columns(names: Sequence[str]) -> str:
    return f"Its columns: {', '.join(map(shown, names)) or 'none'}"
