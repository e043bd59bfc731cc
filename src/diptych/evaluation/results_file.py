"""Read, merge and write evaluation.json, which contains all results of a model from one or more evaluations."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.errors import UserError
from diptych.evaluation import EVALUATORS
from diptych.files import commit_file, read_text, writing

FORMAT = 1
WAY_OUT = "move it away, or name another file with --json"
"""For a file to which results are added."""


def merged(earlier: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """All results by evaluator and data set; new ones come first, and replace earlier ones with the same name."""
    both = {**earlier, **evaluation}
    for evaluator in _evaluators(both):
        now, before = evaluation.get(evaluator, {}), earlier.get(evaluator, {})
        both[evaluator] = {**now, **{name: result for name, result in before.items() if name not in now}}
    return both


def named_after(checkpoint: str, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Add the checkpoint to the name of each data set, so that the run's own results are not replaced."""
    named = {
        evaluator: {f"{name} ({checkpoint})": result for name, result in evaluation[evaluator].items()}
        for evaluator in _evaluators(evaluation)
    }
    return {**evaluation, **named}


def read_results(path: Path, way_out: str = WAY_OUT) -> dict[str, Any]:
    """The results of earlier evaluations; empty if the file does not exist yet.

    Raises:
        ValueError: the file cannot be read, or is not an evaluation.
    """
    if not os.path.lexists(path):
        return {}
    text = read_text(path, way_out)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    results: dict[str, Any] = document if isinstance(document, dict) else {}
    are_mappings = (isinstance(results[evaluator], dict) for evaluator in _evaluators(results))
    if results.get("format") != FORMAT or not all(are_mappings):
        raise UserError(f"{path} is not an evaluation of format {FORMAT}; {way_out}")
    return results


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write the results, completely or not at all.

    Raises:
        ValueError: the file cannot be written.
    """
    # A lone surrogate, as in a file name that is not UTF-8, becomes its JSON escape.
    document = (json.dumps(results, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "backslashreplace")
    with writing(path, "make room there, or name another file with --json"):
        commit_file(path, document)


def _evaluators(results: Mapping[str, Any]) -> list[str]:
    return [section for section in (*EVALUATORS, "robustness") if section in results]
