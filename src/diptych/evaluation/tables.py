"""Print an evaluation as tables 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diptych.evaluation import EVALUATORS, METHODS, few_shot_shown, linear_probe
from diptych.evaluation.comparison import compare
from diptych.evaluation.evaluator import numbers
from diptych.evaluation.left_out import in_words
from diptych.evaluation.retrieval import RECALL_AT
from diptych.terminal import counted, is_or_are, percent, percent_range, points, points_range, printable, table

METRICS = ("top1", "top5", "mean_per_class_recall")
INTERVAL = "  95 % interval"
USUAL_FORMATS = ("JPEG", "PNG", "WEBP")


def readable(evaluation: Mapping[str, Any]) -> str:
    """The metrics, with chance, as tables 80 columns wide."""
    parts = [
        *_accuracy_tables(evaluation),
        *(few_shot_shown.readable(name, result) for name, result in evaluation.get("few_shot", {}).items()),
        *_retrieval_tables(evaluation),
        *_other_tables(evaluation),
        *_robustness_tables(evaluation),
        *_seen(evaluation),
        *_overlap_table(evaluation),
        *_refused(evaluation),
    ]
    return "\n\n".join(parts)


def others(evaluation: Mapping[str, Any]) -> list[str]:
    """The evaluators with results but without a table of their own; those that classify or retrieve have one."""
    return [name for name in EVALUATORS if name in evaluation and name not in (*METHODS, "few_shot", "retrieval")]


def _accuracy_tables(evaluation: Mapping[str, Any]) -> Iterator[str]:
    if "zero_shot" not in evaluation:
        return
    first = next(iter(evaluation["zero_shot"].values()))
    rows = [["data", "method", "pictures", "top-1", "top-5", "per class"]]
    for name in evaluation["zero_shot"]:
        for method, title in METHODS.items():
            if result := evaluation.get(method, {}).get(name):
                rows.append(
                    [
                        name + _mark(evaluation["zero_shot"][name]),
                        title,
                        f"{result['pictures']:,}",
                        *_percentages(result["metrics"]),
                    ]
                )
                rows += _interval_row(result, METRICS, ["", INTERVAL, ""])
    rows.append(["", "chance", "", *_percentages(first["chance"])])
    templates = evaluation["templates"]
    title = f"zero-shot over {counted(len(first['classes']), 'class')}, {counted(len(templates), 'prompt template')}"
    yield f"{title}\n" + table(rows, align="<<>>>>")
    for method, title in METHODS.items():
        for name, result in evaluation.get(method, {}).items():
            if EVALUATORS[method].fits and (said := " ".join(linear_probe.remarks(result))):
                yield textwrap.fill(f"{printable(name, 30)}, {title}: {said}", 80)


def _retrieval_tables(evaluation: Mapping[str, Any]) -> Iterator[str]:
    for name, result in evaluation.get("retrieval", {}).items():
        rows = [["", *(f"R@{k}" for k in RECALL_AT)]]
        for title, shares in (("", result["metrics"]), ("chance, ", result["chance"])):
            for way, arrow in (("image_to_text", "image → text"), ("text_to_image", "text → image")):
                rows.append([title + arrow, *(percent(shares[f"{way}_r{k}"]) for k in RECALL_AT)])
                if shares is result["metrics"]:
                    rows += _interval_row(result, [f"{way}_r{k}" for k in RECALL_AT], [INTERVAL])
        about = f"{counted(result['pictures'], 'picture')}, {counted(result['captions'], 'caption')}"
        if result["distinct_captions"] != result["captions"]:
            about += f" ({result['distinct_captions']:,} distinct)"
        heading = "retrieval" if name == "retrieval" else f"retrieval, {printable(name, 24)}"
        heading += _mark(result)
        yield f"{heading}: {about}\n" + table(rows, align="<>>>")


def _other_tables(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """A table of each evaluator that has none of its own."""
    for name in others(evaluation):
        rows = [["data", "", "value", "95 % interval", "chance"]]
        for data, result in evaluation[name].items():
            for number in numbers(result):
                chance = result["chance"].get(number.name)
                rows.append(
                    [
                        data + _mark(result),
                        number.name,
                        f"{number.value:.4g}",
                        " to ".join(f"{bound:.4g}" for bound in number.interval or ()),
                        "" if chance is None else f"{chance:.4g}",
                    ]
                )
        yield f"{EVALUATORS[name].title}\n" + table(rows, align="<<>>>")


def _robustness_tables(evaluation: Mapping[str, Any]) -> Iterator[str]:
    for reference, result in evaluation.get("robustness", {}).items():
        rows = [["data", "top-1", "reference", "gap", "expected", "effective"]]
        for name, shifted in result["shifted"].items():
            kept = [shifted[key] for key in ("top1", "reference_top1")]
            changes = [shifted[key] for key in ("gap", "effective_robustness")]
            shares = [percent(each["value"]) if each else "-" for each in kept]
            gap, effective = (points(each["value"]) if each else "-" for each in changes)
            rows.append([name, *shares, gap, percent(shifted["expected_top1"]), effective])
            between = [percent_range(*each["interval"]) if each else "" for each in kept]
            signed = [points_range(*each["interval"]) if each else "" for each in changes]
            rows.append([INTERVAL, *between, signed[0], "", signed[1]])
        title = f"robustness: the others as shifted versions of {printable(reference, 30)}"
        if result["baseline"]:
            models = max(shifted["baseline_models"] for shifted in result["shifted"].values())
            title += f"\nexpected of {counted(models, 'model')} in {printable(result['baseline'], 50)}"
        yield f"{title}\n" + table(rows, align="<>>>>>")


def comparison_table(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """The numbers that two evaluations have of the same pictures, their differences, and how likely these are luck."""
    rows = [["data", "", "other", "this", "change", "95 % interval", "p"]]
    before = None
    for each in compare(first, second):
        if each.evaluator != before and EVALUATORS[each.evaluator].fits:  # its numbers have the names of zero-shot's
            rows.append(["", f"{EVALUATORS[each.evaluator].title}:", *[""] * 5])
        before = each.evaluator
        rows.append(
            [
                each.data,
                each.metric,
                *(f"{100 * value:.1f}" for value in (each.first, each.second)),
                points(each.difference.value),
                points_range(*each.difference.interval),
                f"{each.difference.p_value:.2g}",
            ]
        )
    other = printable(str(first.get("model", "")), 60)
    if len(rows) == 1:
        return f"{other}: no results on the same pictures and classes, under the same names, to compare with"
    return f"compared with {other}, in per cent\n" + table(rows, align="<<>>>>>")


def _seen(evaluation: Mapping[str, Any]) -> Iterator[str]:
    for evaluator in (name for name, each in EVALUATORS.items() if not each.fits):
        for name, result in evaluation.get(evaluator, {}).items():
            if share := result.get("share_seen_in_training"):
                yield f"{printable(name, 24)}{_mark(result)}: {percent(share)} of the pictures were seen in training"


def overlaps(evaluation: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the evaluator, the data set and what is known of its overlap with the training data."""
    for evaluator in EVALUATORS:
        for name, result in evaluation.get(evaluator, {}).items():
            if "overlap" in result:
                yield evaluator, name, result["overlap"]


def _overlap_table(evaluation: Mapping[str, Any]) -> Iterator[str]:
    rows = [["data", "overlap", "all", "clean", "overlap", "all - clean", "p"]]
    for _, name, found in overlaps(evaluation):
        if "metric" not in found:
            continue
        shares = [percent(found[key]) for key in ("share", "all", "clean", "overlap")]
        known = found["difference"] is not None
        rows.append(
            [
                name,
                *shares,
                points(found["difference"]) if known else "-",
                f"{found['p_value']:.2g}" if known else "-",
            ]
        )
        intervals = [found.get(f"{key}_interval") for key in ("all", "clean", "overlap")]
        if any(intervals):
            change = points_range(*found["interval"]) if known else ""
            rows.append([INTERVAL, "", *(percent_range(*each) if each else "" for each in intervals), change, ""])
    if len(rows) > 1:
        yield "overlap with the training data: right answers on all pictures, without copies, on copies\n" + table(
            rows, align="<>>>>>>"
        )


def _mark(result: Mapping[str, Any]) -> str:
    return " (*)" if result.get("seen_in_training") else ""


def _refused(evaluation: Mapping[str, Any]) -> Iterator[str]:
    for evaluator in (name for name, each in EVALUATORS.items() if not each.fits):
        for name, result in evaluation.get(evaluator, {}).items():
            if result["rejected"]:
                picture, reason = next(iter(result["rejected"].items()))
                number = len(result["rejected"])
                yield printable(
                    f"{name}: {counted(number, 'picture')} could not be decoded and {is_or_are(number)} not counted; "
                    f"the first: {picture}: {reason}"
                )
            if reasons := result.get("refused"):
                number = sum(each["pictures"] for each in reasons.values())
                have = "has" if number == 1 else "have"
                without = f"{counted(number, 'picture')} {have} no usable caption and {is_or_are(number)} not counted"
                yield printable(f"{name}: {without}: {in_words(reasons)}")
            others = {kind: n for kind, n in result.get("formats", {}).items() if kind not in USUAL_FORMATS}
            if others:
                numbers = ", ".join(f"{number:,} {kind}" for kind, number in others.items())
                yield f"{printable(name)}: other formats were read too, the first frame or page of each: {numbers}"
            if reasons := result.get("left_out"):
                yield printable(f"{name}: left out of the folder: {in_words(reasons)}")


def _percentages(metrics: Mapping[str, float | None]) -> list[str]:
    return [percent(metrics.get(key)) for key in METRICS]


def _interval_row(result: Mapping[str, Any], metrics: Sequence[str], first: Sequence[str]) -> list[list[str]]:
    """A row with the intervals of the metrics; none for a result that has no intervals, of an earlier version."""
    intervals = [result.get("intervals", {}).get(metric) for metric in metrics]
    return [[*first, *(percent_range(*each) if each else "" for each in intervals)]] if any(intervals) else []
