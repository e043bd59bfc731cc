"""Write a self-contained page about a run: its results, how it learned, and what it still gets wrong."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.documents import parse_json
from diptych.errors import UserError
from diptych.evaluation import EVALUATORS, METHODS, few_shot_shown, linear_probe
from diptych.evaluation.calibration_shown import independent_facts, reliability_chart, temperature_facts
from diptych.evaluation.confusion import (
    Matrix,
    Part,
    confusion_matrix,
    factorise,
    most_confused,
    whole,
)
from diptych.evaluation.evaluator import numbers
from diptych.evaluation.reliability import NUM_BINS
from diptych.evaluation.tables import others, overlaps
from diptych.files import commit_file
from diptych.learning_curves import by_samples, curves, epoch_samples, training_facts
from diptych.pages.axes import short_number
from diptych.pages.template import day, percent, template
from diptych.run_dir import read_metrics
from diptych.terminal import counted, percent_range, points, points_range, printable

PICTURE_URI = re.compile(r"data:image/(?:webp|png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
MOST_EXAMPLES = 12
MOST_RETRIEVALS = 8
MOST_VALUES = 12
STRIP = 6
REPORT_FILE = "report.html"


def write_report(
    run_dir: Path,
    evaluation: Mapping[str, Any],
    *,
    credits: Sequence[str] = (),
    funnel: Sequence[Mapping[str, Any]] = (),
    title: str | None = None,
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
    of_the_model = {name: result for name, result in zero_shot.items() if not _other_model(result, evaluation)}
    page = template("diptych", "report.html.jinja", number=_number, picture=_picture).render(
        title=title or run_dir.resolve().name,
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
        calibration=_calibration(evaluation.get("calibration", {}), evaluation),
        num_bins=NUM_BINS,
        few_shot=list(few_shots(evaluation)),
        zero_shot={name: _limited(result) for name, result in zero_shot.items()},
        retrieval={
            name: {**result, "examples": result.get("examples", [])[:MOST_RETRIEVALS]}
            for name, result in evaluation.get("retrieval", {}).items()
        },
        overlaps=overlap_parts(evaluation),
        baselines={
            f"{each.title[0].upper()}{each.title[1:]}": {
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


def summary(evaluation: Mapping[str, Any]) -> str:
    """One sentence about the first result: how many pictures were shown, how many answers were right, and chance."""
    if zero_shot := evaluation.get("zero_shot"):
        name, result = _shown_first(zero_shot)
        top1, chance = percent(result["metrics"]["top1"]), percent(result["chance"]["top1"])
        seen = ", which were in the training data" if result.get("seen_in_training") else ""
        shown = counted(result["pictures"], "picture")
        return (
            f"Shown {shown} of “{name}”{seen}, the model gave {top1} of them their right name "
            f"out of {len(result['classes']):,} (chance {chance})."
        )
    if retrieval := evaluation.get("retrieval"):
        name, result = _shown_first(retrieval)
        found, chance = (percent(result[key]["image_to_text_r1"]) for key in ("metrics", "chance"))
        seen = ", which were in the training data" if result.get("seen_in_training") else ""
        shown = counted(result["pictures"], "picture")
        return (
            f"Shown {shown} of “{name}”{seen}, the model found a caption of {found} of them "
            f"first among {result['captions']:,} (chance {chance})."
        )
    return ""


def strip(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Six of the pictures that `summary` is about, evenly spaced, each with the model's answer and the truth."""
    if zero_shot := evaluation.get("zero_shot"):
        _, result = _shown_first(zero_shot)
        classes = result["classes"]
        return [
            {
                "picture": each["picture"],
                "said": classes[each["guesses"][0][0]],
                "truth": classes[each["label"]],
                "is_right": each["guesses"][0][0] == each["label"],
            }
            for each in result.get("sample", result.get("right", []))[:STRIP]
        ]
    if retrieval := evaluation.get("retrieval"):
        _, result = _shown_first(retrieval)
        return [
            {
                "picture": each["picture"],
                "said": each["nearest"][0]["caption"],
                "truth": each["captions"][0],
                "is_right": each["nearest"][0]["is_right"],
            }
            for each in result.get("examples", [])[:STRIP]
        ]
    return []


def headlines(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The key numbers, zero-shot accuracy and recall at 1, each with the numbers to compare it with."""
    cards = []
    for name, result in evaluation.get("zero_shot", {}).items():
        beside = []
        for method, label in (
            ("linear_probe", "linear probe"),
            ("embedding_probe", "linear probe on embeddings"),
            ("pixel_baseline", "logistic regression on pixels"),
        ):
            other = evaluation.get(method, {}).get(name)
            if other and (method == "pixel_baseline" or other.get("model") == result.get("model")):
                known = other["share_of_known_classes"] > 0
                beside.append((label if known else f"{label} (knows no such class)", other["metrics"]["top1"]))
        beside.append(("chance", result["chance"]["top1"]))
        about = f"{counted(result['pictures'], 'picture')}, {counted(len(result['classes']), 'class')}"
        cards.append(
            {
                "over": f"zero-shot · {name}",
                "value": result["metrics"]["top1"],
                "interval": interval(result, "top1"),
                "about": about + _other_model(result, evaluation),
                "beside": beside,
                "seen_in_training": result.get("seen_in_training"),
            }
        )
    for name, result in evaluation.get("retrieval", {}).items():
        for way, label in (("image_to_text", "image → text"), ("text_to_image", "text → image")):
            key = f"{way}_r1"
            beside = [(f"within the first {k}", result["metrics"][f"{way}_r{k}"]) for k in (5, 10)]
            beside.append(("chance", result["chance"][key]))
            about = f"{counted(result['pictures'], 'picture')}, {counted(result['captions'], 'caption')}"
            about += _other_model(result, evaluation)
            over = f"{label} R@1" if len(evaluation["retrieval"]) == 1 else f"{label} R@1 · {name}"
            card = {"over": over, "value": result["metrics"][key], "about": about, "beside": beside}
            card["interval"] = interval(result, key)
            cards.append({**card, "seen_in_training": result.get("seen_in_training")})
    return cards


def interval(result: Mapping[str, Any], metric: str) -> str:
    """The 95 % interval of a metric in words; empty for a result of an earlier version, which has none."""
    known = result.get("intervals", {}).get(metric)
    return f"{percent_range(*known)} % (95 % interval)" if known else ""


def other_numbers(evaluation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The numbers of each evaluator that has no part of the page of its own, by data set."""
    for evaluator in others(evaluation):
        for name, result in evaluation[evaluator].items():
            facts = []
            for number in numbers(result):
                about = [f"95 % interval {_interval(number.interval)}"] if number.interval else []
                if (chance := result["chance"].get(number.name)) is not None:
                    about.append(f"chance {short_number(chance)}")
                facts.append((number.name, f"{number.value:.4g}", ", ".join(about)))
            title = f"{EVALUATORS[evaluator].title} · {name}{_other_model(result, evaluation)}"
            yield {"title": title, "facts": facts}


def robustness_numbers(evaluation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """How much accuracy is kept on shifted versions of a data set, and how much of that is robustness."""
    for reference, result in evaluation.get("robustness", {}).items():
        facts = []
        for name, shifted in result["shifted"].items():
            for key, title in (("gap", "gap"), ("effective_robustness", "effective robustness")):
                if measured := shifted[key]:
                    about = f"95 % interval {_interval(measured['interval'])}"
                    facts.append((f"{name}: {title}", f"{measured['value']:+.4g}", about))
        yield {"title": f"robustness · shifted from {reference}", "facts": facts}


def overlap_parts(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each data set that was searched for training pictures: the numbers, and some pairs of copies."""
    parts = []
    for evaluator, name, found in overlaps(evaluation):
        facts = []
        if "metric" in found:
            facts.append(("overlap", percent(found["share"]), counted(found["pictures"], "picture")))
            for key, title in (("all", "all"), ("clean", "clean"), ("overlap", "on the overlap")):
                bounds = found.get(f"{key}_interval")
                about = f"95 % interval {percent_range(*bounds)} %" if bounds else ""
                facts.append((title, percent(found[key]), about))
            if found["difference"] is not None:
                about = f"95 % interval {points_range(*found['interval'])}; p = {found['p_value']:.2g}"
                facts.append(("all minus clean", points(found["difference"]), about))
        title = f"{EVALUATORS[evaluator].title} · {name}"
        parts.append({"title": title, "facts": facts, "pairs": found["pairs"]})
    return parts


def few_shots(evaluation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The few-shot results by data set, each with its chart, table and remarks."""
    for name, result in evaluation.get("few_shot", {}).items():
        yield {
            "title": f"{name}{_other_model(result, evaluation)}",
            "draws": result["draws"],
            "chart": few_shot_shown.chart(result),
            "rows": few_shot_shown.rows(result),
            "remarks": few_shot_shown.remarks(result),
        }


def grid(zero_shot: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Accuracy by both parts of the class names, if each class combines two parts; None otherwise.

    The part with more values runs across, worst first.
    """
    parts = _parts(zero_shot)
    if parts is None:
        return None
    across, down = sorted(parts, key=lambda part: -len(part.names))
    sums: dict[tuple[int, int], list[int]] = {}
    sources: dict[tuple[int, int], set[int]] = {}
    for number, result in enumerate(zero_shot.values()):
        for each, pictures, right in result["per_class"]:
            cell = int(across.of_class[each]), int(down.of_class[each])
            known = sums.setdefault(cell, [0, 0])
            known[0], known[1] = known[0] + pictures, known[1] + right
            sources.setdefault(cell, set()).add(number)
    order = sorted(range(len(across.names)), key=lambda column: _share(sums, column))
    return {
        "across": [across.names[column] for column in order],
        "down": list(down.names),
        "cells": [
            {
                "x": order.index(column),
                "y": row,
                "share": right / pictures,
                "title": f"{across.names[column]} / {down.names[row]}: {right} of {pictures}",
                "is_marked": 0 not in sources[column, row],
            }
            for (column, row), (pictures, right) in sums.items()
        ],
        "marked": " and ".join(list(zero_shot)[1:]),
    }


def confusion(zero_shot: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Confusion matrices of the classes, or of each part of their names, and the pairs confused most often."""
    results = _same_classes(zero_shot)
    if not results:
        return None
    class_names = results[0]["classes"]
    parts = _parts(zero_shot)
    pairs = [(class_names[shown], class_names[said], number) for shown, said, number in most_confused(results)]
    if parts is None:
        matrices = [confusion_matrix(results, whole(class_names))]
        return {"matrices": _drawn(matrices), "pairs": pairs, "errors": None}
    matrices = [confusion_matrix(results, part, MOST_VALUES) for part in parts]
    return {"matrices": _drawn(matrices), "pairs": pairs, "errors": _errors_by_part(results, parts)}


def _calibration(parts: Mapping[str, Mapping[str, Any]], evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a calibration that there are, with their pictures, numbers and charts."""
    facts = {"temperature": temperature_facts, "independent": independent_facts}
    return [
        {
            **parts[part],
            "part": part,
            "facts": facts_of(parts[part]),
            "chart": reliability_chart(parts[part]) if part == "temperature" else None,
            "other_model": _other_model(parts[part], evaluation),
        }
        for part, facts_of in facts.items()
        if part in parts
    ]


def _other_model(result: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """`; of MODEL` for a result of another model than the newest results; else empty."""
    model = result.get("model", evaluation.get("model"))
    return "" if model == evaluation.get("model") else f"; of {printable(str(model))}"


def _interval(interval: tuple[float, float]) -> str:
    return " to ".join(f"{bound:.4g}" for bound in interval)


def _errors_by_part(results: Sequence[Mapping[str, Any]], parts: tuple[Part, Part]) -> dict[str, Any]:
    counts = {"first": 0, "second": 0, "both": 0}
    for result in results:
        for shown, said, number in result["confusions"]:
            first, second = (part.of_class[shown] != part.of_class[said] for part in parts)
            counts["both" if first and second else "first" if first else "second"] += number
    first, second = ("/".join(part.names[:3]) + "/…" for part in parts)
    return {**counts, "all": sum(counts.values()), "first_name": first, "second_name": second}


def _parts(zero_shot: Mapping[str, Mapping[str, Any]]) -> tuple[Part, Part] | None:
    results = _same_classes(zero_shot)
    return factorise(results[0]["classes"]) if results else None


def _same_classes(zero_shot: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    results = list(zero_shot.values())
    return [result for result in results if result["classes"] == results[0]["classes"]]


def _share(sums: Mapping[tuple[int, int], Sequence[int]], column: int) -> float:
    pictures, right = (sum(known[which] for cell, known in sums.items() if cell[0] == column) for which in (0, 1))
    return right / pictures if pictures else 2.0


def _drawn(matrices: Sequence[Matrix]) -> list[dict[str, Any]]:
    return [
        {"rows": matrix.rows, "columns": matrix.columns, "cells": list(_cells(matrix))}
        for matrix in matrices
        if matrix.rows
    ]


def _cells(matrix: Matrix) -> Iterator[dict[str, Any]]:
    rows = matrix.counts.sum(axis=1)
    for row, column in zip(*matrix.counts.nonzero(), strict=True):
        count = int(matrix.counts[row, column])
        yield {
            "x": int(column),
            "y": int(row),
            "count": count,
            "share": count / int(rows[row]),
            "is_right": row == column,
            "title": f"{matrix.rows[row]} taken for {matrix.columns[column]}: {count} of {rows[row]}",
        }


def _limited(result: Mapping[str, Any]) -> dict[str, Any]:
    examples = {key: result.get(key, [])[:MOST_EXAMPLES] for key in ("right", "wrong")}
    return {**result, **examples, "has_examples": any(examples.values())}


def _shown_first(results: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    """The data set at the top of the page: the last that the model was not trained on, else the last."""
    unseen = [item for item in results.items() if not item[1].get("seen_in_training")]
    return (unseen or list(results.items()))[-1]


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
