"""What `diptych evaluate MODEL... --suite SUITE` does: measure what is there, print the table and write it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych.errors import UserError
from diptych.evaluation.calibration_file import CALIBRATION_FILE
from diptych.evaluation.evaluator import AVERAGED
from diptych.evaluation.suites.data_folders import find_data
from diptych.evaluation.suites.page import as_page
from diptych.evaluation.suites.runner import Cell, Results, SuiteModel, measure_suite
from diptych.evaluation.suites.suite import Suite, load_suite
from diptych.evaluation.suites.table import SuiteTable
from diptych.evaluation.suites.table_files import as_csv, as_json, as_markdown
from diptych.evaluation.suites.text import as_text, wrapped
from diptych.files import check_writable, commit_file, sha256_of, short_names, writing
from diptych.terminal import counted, percent, printable, unknown_word

SHOWN_FIRST = "ViT-B/32"
"""The published model next to the user's, if the suite has it and the user names none."""
WAY_OUT = "make room there, or name another folder with --out"


@dataclass(frozen=True)
class SuiteOptions:
    """What the command was given."""

    models: Sequence[Path]
    suite: str
    data: Path | None = None
    out: Path | None = None
    published: str | None = None
    device: str | None = None
    ema: bool = False


def evaluate_suite(options: SuiteOptions) -> int:
    """Measure the models and write the table; the exit status, which is 1 if a measurement failed.

    Raises:
        UserError: the suite, a model or the folder of the data cannot be used at all.
    """
    suite = load_suite(options.suite)
    reference = _reference(suite, options.published)
    present = find_data(suite, options.data)
    models = [_model(path, title, options) for path, title in zip(options.models, _titles(options.models), strict=True)]
    out = options.out or Path(f"suite_{suite.name}")
    check_writable(out / "table.json", WAY_OUT)

    cells = measure_suite(suite, present, models, Results(out / "results"), _report)
    if kept := sum("kept" in cell for row in cells.values() for cell in row.values()):
        print(f"{counted(kept, 'result')} kept from {printable(str(out / 'results'))}")
    shown = SuiteTable(suite, tuple(model.title for model in models), cells)
    print(f"\n{as_text(shown, reference)}")
    for ending, text in {
        "json": json.dumps(as_json(shown), ensure_ascii=False, indent=1) + "\n",
        "csv": as_csv(shown),
        "md": as_markdown(shown, reference),
        "html": as_page(shown, reference),
    }.items():
        path = out / f"table.{ending}"
        with writing(path, WAY_OUT):
            commit_file(path, text.encode("utf-8", "backslashreplace"))
    print(f"\ntables: {printable(str(out))}/table.json, .csv, .md, .html")
    return 1 if shown.failed else 0


def _reference(suite: Suite, wanted: str | None) -> str | None:
    """The published model that is shown next to the measured ones."""
    known = suite.published_models
    if wanted is None:
        return next((each for each in (SHOWN_FIRST, *known) if each in known), None)
    if wanted not in known:
        has = unknown_word("published model", wanted, known) if known else f"it has none, so not {wanted}"
        raise UserError(f"suite {suite.name}: {has}; name another one with --published, or leave it out")
    return wanted


def _titles(models: Sequence[Path]) -> list[str]:
    """The shortest end of each path that no other model has."""
    titles = short_names(models)
    if twice := [title for title, count in Counter(titles).items() if count > 1]:
        raise UserError(f"the model {twice[0]} is given twice; give each model once")
    return titles


def _model(path: Path, title: str, options: SuiteOptions) -> SuiteModel:
    from diptych.encoder import load
    from diptych.model_folder import model_folder

    folder = model_folder(path, ema=options.ema)
    return SuiteModel(
        f"{title}{AVERAGED}" if options.ema else title,
        str(folder),
        _identity(folder),
        lambda: load(folder, options.device),
    )


def _identity(folder: Path) -> str:
    """A hash of the files that decide what the model computes."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    hashes = [[path.name, sha256_of(path)] for path in files if path.name != CALIBRATION_FILE]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _report(data_set: str, model: str, cell: Cell) -> None:
    what = f"failed: {cell['failed']}" if "failed" in cell else percent(cell["value"])
    line = printable(f"{data_set}, {model}: {what}" if model else f"{data_set}: {what}")
    print(wrapped(line), flush=True)
