"""Count words, and pairs of words, in a corpus: each file by itself, on any engine.

The counts of finished files stay in a folder. A stopped run, or a run with other thresholds, starts from them.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow
from pyarrow import parquet

from diptych.files import commit_file
from diptych.locks import LOCK_FILE, locked
from diptych.terminal import shown
from diptych_shards.curate.external_sort import DiskCounter, merge_counts, merge_to_few, read_counts, write_counts
from diptych_shards.curate.options import CurateError
from diptych_shards.curate.pairs import is_text, wanted_column
from diptych_shards.curate.state import committed_in_its_folder
from diptych_shards.run.engine import Engine
from diptych_shards.run.progress import map_with_progress
from diptych_shards.tables.columns import CAPTION_COLUMNS, not_parquet

# Words with one of these between them are no pair; quotation marks count only at the start or end of a word.
_BREAKS = re.compile(r"""[,.;:?!`\t\r\n"“”„«»()\[\]{}<>|*=]+|  +|(?<!\w)['‘’]+|['‘’]+(?!\w)""")


@dataclass(frozen=True)
class CorpusCounts:
    num_words: int
    """The counts of all files together."""
    _words: Sequence[Path]
    _pairs: Sequence[Path]

    def words(self) -> Iterator[tuple[str, int]]:
        """Read each word with its count, in the order of code points."""
        return read_counts(self._words)

    def pairs(self) -> Iterator[tuple[str, int]]:
        """Read each two words that follow each other, joined by a space, with their count, in the same order."""
        return read_counts(self._pairs)


@contextmanager
def corpus_counts(texts: Sequence[Path], column: str | None, out: Path, engine: Engine) -> Iterator[CorpusCounts]:
    """Count all files. The folder OUT.counts holds the counts; it is removed at the end if nothing was raised.

    column: the column of parquet files to read; None: found by name.

    Raises:
        CurateError: a file cannot be read, or OUT.counts holds something else.
    """
    folder = out.with_name(f"{out.name}.counts").resolve()
    request = json.dumps({"files": [_identity(path) for path in texts], "column": column}).encode()
    if folder.exists() and not (folder / "counts.json").exists() and not _is_empty(folder):
        raise CurateError(f"{shown(out)}.counts is where counts go, and holds something else; name another OUT")
    with locked(folder, "queries"):
        has_ended = False
        try:
            _begin(folder, request)
            numbered = list(enumerate(path.resolve() for path in texts))
            num_words = sum(map_with_progress(engine, partial(_count_file, folder, column), numbered, "file counted"))
            words, pairs = (
                merge_to_few(
                    engine,
                    [folder / f"{number:06}.{kind}" for number, _ in numbered],
                    merge_counts,
                    partial(_merged_path, folder, kind),
                )
                for kind in ("words", "pairs")
            )
            yield CorpusCounts(num_words, words, pairs)
            has_ended = True
        finally:
            if has_ended or not any(folder.glob("*.total")):  # there are no counts to start from
                shutil.rmtree(folder, ignore_errors=True)


def segments(text: str) -> Iterator[list[str]]:
    """Yield runs of words that only spaces separate."""
    for part in _BREAKS.split(text):
        words = [word for word in part.split(" ") if word]
        if words:
            yield words


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _identity(path: Path) -> list[str | int]:
    if not path.is_file():
        raise CurateError(f"{shown(path)} {'is a folder; name its files' if path.is_dir() else 'does not exist'}")
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _begin(folder: Path, request: bytes) -> None:
    """Remove counts of other files, and files that a killed process left half-written."""
    asked = folder / "counts.json"
    is_same = asked.exists() and asked.read_bytes() == request
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE and (not is_same or path.suffix == ".partial"):
            path.unlink()
    if not is_same:
        commit_file(asked, request)


def _count_file(folder: Path, column: str | None, numbered: tuple[int, Path]) -> int:
    """Count the file, unless its counts are there; return how many words it has."""
    number, path = numbered
    total = folder / f"{number:06}.total"
    if total.exists():
        return int(total.read_bytes())
    num_words = 0
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        words, pairs = (DiskCounter(Path(temporary) / kind) for kind in ("words", "pairs"))
        for text in read_corpus(path, column):
            for segment in segments(text):
                num_words += len(segment)
                words.add(segment)
                pairs.add(map(" ".join, zip(segment, segment[1:], strict=False)))
        for kind, counter in (("words", words), ("pairs", pairs)):
            with committed_in_its_folder(folder / f"{number:06}.{kind}") as unfinished:
                write_counts(unfinished, counter.items())
    commit_file(total, str(num_words).encode())
    return num_words


def _merged_path(folder: Path, kind: str, level: int, number: int) -> Path:
    return folder / f"merged_{level}_{number:06}.{kind}"


def read_corpus(path: Path, column: str | None) -> Iterator[str]:
    """Read the texts of a file; bytes that are not UTF-8 become U+FFFD.

    column: the column of a parquet file; None: found by name.

    Raises:
        CurateError: the file cannot be read.
    """
    yield from _column(path, column) if path.suffix == ".parquet" else _lines(path)


def _lines(path: Path) -> Iterator[str]:
    try:
        opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
        with opened as file:
            for line in file:
                yield line.decode("utf-8", "replace")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CurateError(f"{shown(path)}: damaged ({shown(error)})") from error


def _column(path: Path, given: str | None) -> Iterator[str]:
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            texts = [field.name for field in file.schema_arrow if is_text(field.type)]
            name = wanted_column("text", given, CAPTION_COLUMNS, texts, path)
            for batch in file.iter_batches(8_192, columns=[name], use_threads=False):
                for value in batch.column(0).cast(pyarrow.large_string()).cast(pyarrow.large_binary()).to_pylist():
                    if value is not None:
                        yield value.decode("utf-8", "replace")
    except (pyarrow.ArrowException, OSError) as error:
        raise CurateError(not_parquet(path, error)) from error
