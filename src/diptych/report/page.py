"""Write a self-contained page about a run: its results, how it learned, and what it still gets wrong."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.documents import parse_json
from diptych.errors import UserError
from diptych.evaluation import EVALUATORS, METHODS, linear_probe
from diptych.evaluation.confusion_shown import confusion, grid
from diptych.evaluation.reliability import NUM_BINS
from diptych.files import commit_file
from diptych.learning_curves import by_samples, curves, epoch_samples, training_facts
from diptych.pages.axes import short_number
from diptych.pages.template import day, template
from diptych.report.headlines import headlines, other_model, strip, summary
from diptych.report.sections import calibrations, few_shots, other_numbers, overlap_parts, robustness_numbers
from diptych.run_dir import read_metrics

PICTURE_URI = re.compile(r"data:image/(?:webp|png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
MOST_EXAMPLES = 12
MOST_RETRIEVALS = 8
REPORT_FILE = "report.html"


def write_report(
    run_dir: Path,
    evaluation: Mapping[str, Any],
    *,
    credits: Sequence[str] = (),
    funnel: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write RUN/report.html, which needs neither network nor scripts, and return its path.

    evaluation: what `diptych evaluate` writes as JSON.
    funnel: how many samples each stage before training kept: {`stage`, `kept`, `dropped`: reason → number}.

    Parts that are missing in the evaluation or in the run directory (metrics.jsonl, config.yaml, samples.png) are left
    out of the page.
    """
    records = read_metrics(run_dir / "metrics.jsonl") if (run_dir / "metrics.jsonl").is_file() else []
    metrics = by_samples(records)
    zero_shot = evaluation.get("zero_shot", {})
    # The errors of several data sets are added up, so they must come from the same model.
    of_the_model = {name: result for name, result in zero_shot.items() if not other_model(result, evaluation)}
    page = template("diptych", "report/page.html.jinja", number=_number, picture=_picture).render(
        title=run_dir.resolve().name,
        created=day(time.time()),
        summary=summary(evaluation),
        strip=strip(evaluation),
        headlines=headlines(evaluation),
        templates=evaluation.get("templates", []),
        curves=curves(metrics, records),
        epoch_samples=epoch_samples(metrics),
        training=training_facts(metrics, records),
        grid=grid(of_the_model),
        confusion=confusion(of_the_model),
        calibration=calibrations(evaluation.get("calibration", {}), evaluation),
        num_bins=NUM_BINS,
        few_shot=list(few_shots(evaluation)),
        zero_shot={name: _limited(result) for name, result in zero_shot.items()},
        retrieval={
            name: {**result, "examples": result.get("examples", [])[:MOST_RETRIEVALS]}
            for name, result in evaluation.get("retrieval", {}).items()
        },
        overlaps=overlap_parts(evaluation),
        baselines={
            each.heading: {
                data: {**result, "remarks": linear_probe.remarks(result)} for data, result in evaluation[name].items()
            }
            for name, each in EVALUATORS.items()
            if each.fits and name in METHODS and name in evaluation
        },
        others=[*other_numbers(evaluation), *robustness_numbers(evaluation)],
        tiles=_tiles(run_dir / "samples.json"),
        samples=_inlined_png(run_dir / "samples.png"),
        config=_read_text(run_dir / "config.yaml"),
        versions=evaluation.get("versions", {}),
        model=evaluation.get("model", ""),
        credits=list(credits),
        funnel=list(funnel),
    )
    path = run_dir / REPORT_FILE
    commit_file(path, page.encode())
    return path


def parse_funnel(text: str) -> list[dict[str, Any]]:
    """Read the stages of a funnel from JSON, as `write_report` takes them.

    Raises:
        ValueError: the text is something else.
    """
    try:
        stages = [
            {
                "stage": str(stage["stage"]),
                "kept": int(stage["kept"]),
                "dropped": {str(reason): int(number) for reason, number in stage.get("dropped", {}).items()},
            }
            for stage in parse_json(text)
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"not a funnel ({error}); expected a JSON list of stages such as "
            f'{{"stage": "extracted", "kept": 10, "dropped": {{"icon": 2}}}}'
        ) from None
    if not stages:
        raise UserError("a funnel without stages; leave --funnel out")
    return stages


def _limited(result: Mapping[str, Any]) -> dict[str, Any]:
    examples = {key: result.get(key, [])[:MOST_EXAMPLES] for key in ("right", "wrong")}
    return {**result, **examples, "has_examples": any(examples.values())}


def _tiles(path: Path) -> list[dict[str, str]]:
    """Pictures and captions of the first batch; empty if the run did not write them."""
    try:
        tiles = json.loads(_read_text(path) or "[]")
        return [{"picture": str(tile["picture"]), "caption": str(tile["caption"])} for tile in tiles]
    except (ValueError, TypeError, KeyError):
        return []


def _read_text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _inlined_png(path: Path) -> str | None:
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else short_number(value)


def _picture(value: Any) -> str:
    """Check that a value from the evaluation file, which is not trusted, is the data URI of a picture."""
    if not PICTURE_URI.fullmatch(str(value)):
        raise UserError(f"the evaluation holds {str(value)[:40]!r} where a picture as a data URI is expected")
    return str(value)
