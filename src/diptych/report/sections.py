"""The parts of a run's page about results that have neither a matrix nor examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from diptych.evaluation import EVALUATORS, few_shot_shown
from diptych.evaluation.calibration_shown import independent_facts, reliability_chart, temperature_facts
from diptych.evaluation.evaluator import numbers
from diptych.evaluation.tables import others, overlaps
from diptych.pages.axes import short_number
from diptych.pages.template import percent
from diptych.report.headlines import other_model
from diptych.terminal import counted, percent_range, points, points_range


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
            title = f"{EVALUATORS[evaluator].title} · {name}{other_model(result, evaluation)}"
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
            "title": f"{name}{other_model(result, evaluation)}",
            "draws": result["draws"],
            "chart": few_shot_shown.chart(result),
            "rows": few_shot_shown.rows(result),
            "remarks": few_shot_shown.remarks(result),
        }


def calibrations(parts: Mapping[str, Mapping[str, Any]], evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a calibration that there are, with their pictures, numbers and charts."""
    facts = {"temperature": temperature_facts, "independent": independent_facts}
    return [
        {
            **parts[part],
            "part": part,
            "facts": facts_of(parts[part]),
            "chart": reliability_chart(parts[part]) if part == "temperature" else None,
            "other_model": other_model(parts[part], evaluation),
        }
        for part, facts_of in facts.items()
        if part in parts
    ]


def _interval(interval: tuple[float, float]) -> str:
    return " to ".join(f"{bound:.4g}" for bound in interval)
