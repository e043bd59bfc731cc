"""Write the kept pairs to parquet files, and on demand the dropped ones, each with its reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from diptych.data.captions import clean_caption
from diptych.files import commit_file
from diptych.pages.histograms import Tally
from diptych_shards.curate.examine import Examined, Setup
from diptych_shards.curate.pairs import Unit, read_rows, texts_of
from diptych_shards.curate.rules import KEPT, REASONS
from diptych_shards.curate.state import Output, committed_in_its_folder
from diptych_shards.report.hosts import Domains
from diptych_shards.report.tally import LONGEST_CAPTION, add_lengths

LANGUAGE, SCORE, REASON = "caption_language", "caption_language_score", "reason"
ROWS_PER_GROUP = 65_536
LONGEST_EXAMPLE = 300
MOST_EXAMPLES_KNOWN = 200
"""Different captions that are counted for each reason of a part."""


@dataclass(frozen=True)
class Part:
    """A file of the output, and the units whose pairs it contains."""

    number: int
    units: tuple[Unit, ...]


def plan_parts(units: Sequence[Unit], kept_by_unit: Sequence[int], pairs_per_part: int) -> list[Part]:
    """Divide the units, whole and in their order, into parts; a part ends once it has enough pairs."""
    groups: list[list[Unit]] = [[]]
    kept = 0
    for unit, number in zip(units, kept_by_unit, strict=True):
        if kept >= pairs_per_part and number:
            groups.append([])
            kept = 0
        groups[-1].append(unit)
        kept += number
    return [Part(number, tuple(group)) for number, group in enumerate(groups)]


def write_part(setup: Setup, schema: pyarrow.Schema, part: Part) -> int:
    """Write the part, unless it is there; return its number."""
    output = Output(setup.out)
    if output.part(part.number).exists():
        return part.number
    examples: dict[str, Counter[str]] = {}
    facts = KeptFacts()
    with ExitStack() as stack:
        # The part is committed last: if it is there, its dropped pairs and its examples are there too.
        kept = stack.enter_context(_writer(output.part(part.number), _schema(setup, schema, has_reason=False)))
        dropped = None
        if setup.options.writes_dropped:
            path = output.dropped_part(part.number)
            dropped = stack.enter_context(_writer(path, _schema(setup, schema, has_reason=True)))
        for rows, examined in _rows(part, schema, output):
            is_kept = examined.reasons == 0
            _add_examples(examples, rows, examined.reasons, setup.caption)
            chosen = np.flatnonzero(is_kept)
            pairs = _with_ours(setup, rows, examined, chosen, kept.schema, has_reason=False)
            kept.add(pairs)
            facts.add(*(pyarrow.array(texts_of(pairs, name), pyarrow.string()) for name in (setup.url, setup.caption)))
            if dropped is not None:
                chosen = np.flatnonzero(~is_kept)
                dropped.add(_with_ours(setup, rows, examined, chosen, dropped.schema, has_reason=True))
        commit_file(output.examples(part.number), json.dumps(examples).encode())
        commit_file(output.kept_facts(part.number), json.dumps(facts.record()).encode())
    return part.number


def _schema(setup: Setup, schema: pyarrow.Schema, *, has_reason: bool) -> pyarrow.Schema:
    """The columns of the tables, then ours; ours replace columns of the same name."""
    ours = [(LANGUAGE, pyarrow.string()), (SCORE, pyarrow.float32())] if setup.options.languages else []
    if has_reason:
        ours.append((REASON, pyarrow.string()))
    theirs = [(field.name, pyarrow.string() if field.name == setup.caption else field.type) for field in schema]
    return pyarrow.schema([*(field for field in theirs if field[0] not in dict(ours)), *ours])


def _rows(part: Part, schema: pyarrow.Schema, output: Output) -> Iterator[tuple[pyarrow.Table, Examined]]:
    """Read all rows of the part, some at a time, with what was found and decided."""
    for unit in part.units:
        examined = Examined.load(output.examined(unit.number))
        examined.reasons = np.load(output.decided(unit.number))
        first = 0
        for table in read_rows(unit, schema):
            yield table, examined.rows(first, first + len(table))
            first += len(table)


def _with_ours(
    setup: Setup,
    rows: pyarrow.Table,
    examined: Examined,
    chosen: np.ndarray,
    schema: pyarrow.Schema,
    *,
    has_reason: bool,
) -> pyarrow.Table:
    """Take the chosen rows, clean their captions, and add our columns."""
    rows = rows.take(chosen)
    languages = examined.languages[chosen]
    values: dict[str, Any] = {setup.caption: [clean_caption(text) or None for text in texts_of(rows, setup.caption)]}
    if setup.options.languages:
        values[LANGUAGE] = pyarrow.array(languages.tolist(), mask=languages == "", type=pyarrow.string())
        values[SCORE] = pyarrow.array(examined.scores[chosen], mask=languages == "")
    if has_reason:
        values[REASON] = [REASONS[code] for code in examined.reasons[chosen]]
    columns = [
        pyarrow.array(values[field.name], field.type) if field.name in values else rows.column(field.name)
        for field in schema
    ]
    return pyarrow.Table.from_arrays(columns, schema=schema)


def _add_examples(examples: dict[str, Counter[str]], rows: pyarrow.Table, reasons: np.ndarray, caption: str) -> None:
    """Count the captions of each reason; only the first different ones are counted."""
    for code in np.unique(reasons):
        found = examples.setdefault(REASONS[code], Counter())
        places = np.flatnonzero(reasons == code)
        if REASONS[code] == KEPT:  # nearly all differ, so that their counts mean nothing
            places = places[: MOST_EXAMPLES_KNOWN - found.total()]
        for text, times in Counter(text[:LONGEST_EXAMPLE] for text in texts_of(rows.take(places), caption)).items():
            if text in found or len(found) < MOST_EXAMPLES_KNOWN:
                found[text] += times


class _Writer:
    """Writes row groups of about one size."""

    def __init__(self, path: Path, schema: pyarrow.Schema):
        self.schema = schema
        self._file = parquet.ParquetWriter(path, schema, compression="zstd")
        self._waiting: list[pyarrow.Table] = []
        self._num_waiting = 0

    def add(self, table: pyarrow.Table) -> None:
        self._waiting.append(table)
        self._num_waiting += len(table)
        if self._num_waiting >= ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        if self._num_waiting:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        self._file.write_table(pyarrow.concat_tables(self._waiting), row_group_size=self._num_waiting)
        self._waiting, self._num_waiting = [], 0


@contextmanager
def _writer(path: Path, schema: pyarrow.Schema) -> Iterator[_Writer]:
    with committed_in_its_folder(path) as partial:
        writer = _Writer(partial, schema)
        yield writer
        writer.close()


DOMAINS_PER_PART = 1_000
"""The most frequent domains of each part are added up; rarer ones are not counted."""


class KeptFacts:
    """Domains and caption lengths of the kept pairs of one part, or of all parts."""

    def __init__(self) -> None:
        self.domains: Counter[str] = Counter()
        self.characters = Tally(LONGEST_CAPTION)
        self.words = Tally(LONGEST_CAPTION)
        self._seen = Domains()

    def add(self, urls: pyarrow.Array, captions: pyarrow.Array) -> None:
        self._seen.add(urls, np.ones(len(urls), bool))
        add_lengths(captions, self.characters, self.words)

    def record(self) -> dict[str, Any]:
        """The counts as JSON."""
        domains = {domain.name: domain.kept for domain in self._seen.most_frequent(DOMAINS_PER_PART)}
        return {"domains": domains, "characters": self.characters.nonzero, "words": self.words.nonzero}


def read_kept_facts(files: Iterable[Path]) -> KeptFacts:
    """Add up the facts of all parts; a part without such a file adds nothing."""
    facts = KeptFacts()
    for file in files:
        if file.exists():
            part = json.loads(file.read_bytes())
            facts.domains.update(part["domains"])
            facts.characters.add_counts(part["characters"])
            facts.words.add_counts(part["words"])
    return facts
