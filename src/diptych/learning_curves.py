"""Charts and facts about how a run learned, made from its metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from statistics import median
from typing import Any

from diptych.evaluation import EVALUATORS
from diptych.pages.axes import short_number, short_size
from diptych.pages.charts import LineChart, line_chart
from diptych.pages.template import percent

DOUBLE_WIDTH = 514
"""Width of a chart that takes half of the page; others take a third."""
NUMBERS = {"top1": "top-1", "image_to_text_r1": "image → text R@1", "text_to_image_r1": "text → image R@1"}
"""Number of an evaluator → its name in the title of a chart."""
PHASES = ("forward", "backward", "update")
MOST_EPOCHS = 12
"""Epochs are marked in the charts only up to this number: more lines would fill the chart."""


def by_samples(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The logged steps in order of samples seen; if a resumed run logged a step again, the later record counts."""
    steps: dict[int, Mapping[str, Any]] = {}
    for record in records:
        if isinstance(record, dict) and "event" not in record and isinstance(record.get("samples_seen"), int):
            steps[record["samples_seen"]] = record
    return [steps[samples] for samples in sorted(steps)]


def curves(metrics: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]] = ()) -> list[LineChart]:
    """Line charts over samples seen, one for each quantity that the metrics contain.

    records: the whole record of the run, for its events: restarts and checkpoints are marked in the charts.
    """

    def series(key: str) -> list[tuple[float, float]]:
        return [(record["samples_seen"], record[key]) for record in metrics if is_number(record.get(key))]

    size = epoch_samples(metrics)
    last = metrics[-1]["samples_seen"] if metrics else 0
    epochs = range(size, last, size) if size and last <= MOST_EPOCHS * size else ()

    def chart(title: str, lines: dict[str, str], **keywords: Any) -> LineChart | None:
        return line_chart(
            title,
            {label: series(key) for label, key in lines.items()},
            x_label="samples seen",
            restarts=[samples for samples in _events(records, "start") if samples],
            checkpoints=_events(records, "save"),
            epochs=epochs,
            **keywords,
        )

    def loss_chart(**keywords: Any) -> LineChart | None:
        return chart("Loss", {"loss": "loss"}, width=DOUBLE_WIDTH, **keywords)

    def measured_chart(title: str, number: str) -> LineChart | None:
        """The chart of one number of an evaluator during the run, with a line for each data set."""
        points = measured(records, number)
        return line_chart(title, {**points}, x_label="samples seen", percent=number != "loss") if points else None

    loss = loss_chart(y_from_zero=True)
    charts = [
        loss and replace(loss, logarithmic=loss_chart(logarithmic_y=True)),
        chart("Loss of the token head", {"loss": "token_loss"}, y_from_zero=True, width=DOUBLE_WIDTH),
        chart(
            "Accuracy in the batch",
            {"image → text": "i2t_accuracy", "text → image": "t2i_accuracy"},
            percent=True,
            width=DOUBLE_WIDTH,
        ),
        chart(
            "Cosine in the batch",
            {"own pair": "positive_similarity", "nearest other": "hardest_negative_similarity"},
            width=DOUBLE_WIDTH,
        ),
        chart(
            "Gradient norm",
            {"image tower": "image_gradient_norm", "text tower": "text_gradient_norm"}
            if series("image_gradient_norm")
            else {"gradient norm": "gradient_norm"},
            y_from_zero=True,
            width=DOUBLE_WIDTH,
        ),
        chart(
            "Update / weights",
            {"image tower": "image_update_ratio", "text tower": "text_update_ratio"},
            y_from_zero=True,
        ),
        chart("Logit scale", {"logit scale": "logit_scale"}),
        chart("Learning rate", {"learning rate": "learning_rate"}, y_from_zero=True),
        chart("Samples per second", {"samples per second": "samples_per_second"}, y_from_zero=True),
        chart("Seconds of a step", {"median": "step_seconds_p50", "95 of 100": "step_seconds_p95"}, y_from_zero=True),
        *(measured_chart(title, number) for title, number in measured_numbers()),
    ]
    return [chart for chart in charts if chart is not None]


def measured_numbers() -> Iterator[tuple[str, str]]:
    """Yield the title of a chart and the number, for each number that stands for an evaluator in curves."""
    for each in EVALUATORS.values():
        for number in each.headline:
            yield f"{each.heading}, {NUMBERS.get(number, number)}", number


def measured(records: Sequence[Mapping[str, Any]], number: str) -> dict[str, list[tuple[float, float]]]:
    """Data set → (samples seen, value) of one number of an evaluator, each time it was measured during the run."""
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if _is_event(record, "evaluation") and isinstance(record.get("values"), dict):
            for name, value in record["values"].items():
                data, _, of_data = name.rpartition("/")
                if of_data == number and is_number(value):
                    points.setdefault(data, []).append((record["samples_seen"], value))
    return points


def seconds_at(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """(samples seen, seconds of training since the first record), without the pauses between a stop and its resume."""
    timed = [record for record in metrics if is_number(record.get("time"))]
    steps = [later["time"] - earlier["time"] for earlier, later in zip(timed, timed[1:], strict=False)]
    forward = sorted(step for step in steps if step > 0)
    longest = 20 * forward[len(forward) // 2] if forward else 0.0
    counted_steps = [step if 0 < step <= longest else 0.0 for step in steps]
    seconds = accumulate(counted_steps, initial=0.0)
    return [(record["samples_seen"], float(second)) for record, second in zip(timed, seconds, strict=False)]


def training_facts(
    metrics: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]] = ()
) -> list[tuple[str, str]]:
    """(name, value) of each fact about the whole training, in the order in which the page shows them."""
    if not metrics:
        return []
    facts = [("samples seen", f"{metrics[-1]['samples_seen']:,}")]
    ends = [record["seconds"] for record in records if _is_event(record, "end") and is_number(record.get("seconds"))]
    seconds = ends[-1] if ends else max((second for _, second in seconds_at(metrics)), default=0.0)
    if seconds > 0:
        facts.append(("training time", _duration(seconds)))
    rates = sorted(_numbers(metrics, "samples_per_second"))
    if rates:
        facts.append(("samples per second, median", short_number(rates[len(rates) // 2])))
    waits = _numbers(metrics, "data_wait_fraction")
    if waits:
        facts.append(("waiting for data", percent(sum(waits) / len(waits))))
    slowest = [rank for r in metrics if isinstance(rank := r.get("data_wait_slowest_rank"), int)]
    if waits and slowest and len(set(slowest)) > 1:
        facts.append(("rank that waited longest", f"{max(set(slowest), key=slowest.count)}"))
    if utilisation := _numbers(metrics, "mfu"):
        facts.append(("model FLOPs utilisation", percent(median(utilisation))))
    elif teraflops := _numbers(metrics, "teraflops_per_rank"):
        facts.append(("teraFLOPs a second and rank", short_number(median(teraflops))))
    split = {phase: _numbers(metrics, f"{phase}_seconds") for phase in PHASES}
    if all(split.values()):
        whole = sum(sum(seconds) for seconds in split.values())
        facts.append(("of a step", ", ".join(f"{phase} {percent(sum(s), whole)}" for phase, s in split.items())))
    facts += _saves(records)
    if skipped := metrics[-1].get("skipped_steps"):
        facts.append(("steps without finite numbers, skipped", f"{skipped:,}"))
    if spikes := metrics[-1].get("loss_spikes"):
        facts.append(("spikes of the loss", f"{spikes:,}"))
    if rolled_back := len(_events(records, "rolled_back")):
        facts.append(("rolled back", f"{rolled_back} times" if rolled_back > 1 else "once"))
    if any(shares := _numbers(metrics, "logit_scale_at_limit")):
        facts.append(("steps with the logit scale at its limit", percent(sum(shares) / len(shares))))
    if rates := _numbers(metrics, "bytes_read_per_second"):
        facts.append(("read from shards, median", f"{short_size(median(rates))}/s"))
    if mixed := _mix(metrics):
        facts.append(("mix of sources", mixed))
    if epochs := _epochs(metrics[-1]):
        facts.append(("epochs of each source", epochs))
    if hits := _numbers(metrics, "cache_hit_fraction"):
        facts.append(("shards found in the cache", percent(sum(hits) / len(hits))))
    if is_number(metrics[-1].get("rejected_samples")):
        facts.append(("samples rejected", f"{metrics[-1]['rejected_samples']:,}{_by_reason(metrics[-1])}"))
    if is_number(metrics[-1].get("loss")):
        facts.append(("final loss", f"{metrics[-1]['loss']:.3f}"))
    if restarts := sum(bool(samples) for samples in _events(records, "start")):
        facts.append(("resumed", f"{restarts} times" if restarts > 1 else "once"))
    return facts


def _saves(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """How large a checkpoint is, and how long saves took and stopped training; empty if the record does not say."""
    # Earlier versions wrote in line, and recorded one time for both.
    saves = [record for record in records if _is_event(record, "save") and is_number(record.get("stall_seconds"))]
    if not saves:
        return []
    stalls, seconds, sizes = (_numbers(saves, name) for name in ("stall_seconds", "seconds", "bytes"))
    return [
        ("a checkpoint", f"{short_size(sizes[-1])}, complete after {short_number(median(seconds))} s (median)"),
        ("training stopped for a save, median", f"{short_number(median(stalls))} s"),
    ]


def _mix(metrics: Sequence[Mapping[str, Any]]) -> str:
    """`a 75 %, b 25 %`: the share of each source over all logged steps; empty for a single source."""
    prefix = "share_of_"
    names = dict.fromkeys(name for record in metrics for name in record if name.startswith(prefix))
    totals = dict.fromkeys(names, 0.0)
    before = 0
    for record in metrics:
        # A record's shares are of all rows since the record before it.
        for name in names:
            share = record.get(name, 0.0)
            totals[name] += share * (record["samples_seen"] - before) if is_number(share) else 0.0
        before = record["samples_seen"]
    whole = sum(totals.values())
    return ", ".join(f"{name.removeprefix(prefix)} {percent(total, whole)}" for name, total in totals.items())


def _epochs(last: Mapping[str, Any]) -> str:
    """`a 0.5, b 12.0`; empty if sources have no weights."""
    prefix = "epochs_of_"
    each = {name.removeprefix(prefix): number for name, number in last.items() if name.startswith(prefix)}
    return ", ".join(f"{name} {number:,.1f}" for name, number in each.items() if is_number(number))


def _by_reason(last: Mapping[str, Any]) -> str:
    """` (truncated 3, no_caption 2)`, most frequent first; empty if the record has no reasons."""
    prefix = "rejected_"
    counts = {
        name.removeprefix(prefix): number
        for name, number in last.items()
        if name.startswith(prefix) and name != "rejected_samples" and is_number(number)
    }
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f" ({', '.join(f'{reason} {number:,}' for reason, number in ordered)})" if ordered else ""


def _numbers(metrics: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [record[key] for record in metrics if is_number(record.get(key))]


def epoch_samples(metrics: Sequence[Mapping[str, Any]]) -> int | None:
    """Samples in an epoch; None if the run saw at most one epoch, or if sources have weights."""
    epochs = metrics[-1].get("epoch", 0) if metrics else 0
    return round(metrics[-1]["samples_seen"] / epochs) if is_number(epochs) and epochs > 1 else None


def _events(records: Sequence[Mapping[str, Any]], name: str) -> list[int]:
    """Samples seen at each event with this name."""
    return [
        record["samples_seen"]
        for record in records
        if _is_event(record, name) and isinstance(record.get("samples_seen"), int)
    ]


def _is_event(record: Any, name: str) -> bool:
    return isinstance(record, dict) and record.get("event") == name


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
