"""Describe a plan in lines of at most 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence

from diptych.pages.axes import short_number, short_size
from diptych.plan.accuracy import Expected
from diptych.plan.failures import GPU_HOURS_OF_FAILURE
from diptych.plan.plan import ByCase, OnGpus, Plan, sum_of_cases
from diptych.plan.speed import UTILISATIONS
from diptych.plan.start import SHARDS
from diptych.terminal import counted, table
from diptych.training.memory import RESERVED_GIB

WIDTH = 80
_INDENT = 10
_COLUMNS = 3


def describe(plans: Sequence[Plan]) -> str:
    """All numbers as text: of each run, then of all together if there are several."""
    texts = [_describe(plan) for plan in plans]
    if len(plans) > 1:
        texts.append(f"all {len(plans)} runs, one after another\n{_grid(_totals(plans))}")
    return "\n\n".join([*texts, _legend()])


def _describe(plan: Plan) -> str:
    tokens = f"captions of {plan.num_tokens:g} tokens"
    lines = [
        *_entry("model", f"{plan.model}, {plan.num_parameters / 1e6:.2f} M parameters"),
        *_entry("sample", f"{short_number(plan.flops_of_sample / 1e9, 4)} GFLOPs, forward and backward, {tokens}"),
        *_entry("run", f"{short_number(plan.total_samples)} samples, batches of {plan.global_batch_size:,}"),
        *_entry(
            "GPU",
            f"{plan.gpu.name}: {plan.gpu.peak_flops / 1e12:,.0f} TFLOP/s in bf16, {plan.gpu.memory_gib:g} GiB, of "
            f"which {RESERVED_GIB:g} are for CUDA itself",
        ),
        "",
        _grid(_rows(plan)),
        "",
        *(line for each in plan.on_gpus for line in _notes(each)),
        *(line for line in _accuracies(plan)),
    ]
    return "\n".join(lines)


def _rows(plan: Plan) -> Iterator[list[str]]:
    """The table's rows: a label, and a value for each number of GPUs."""

    def row(label: str, value: Callable[[OnGpus], str]) -> list[str]:
        return [label, *(value(each) for each in plan.on_gpus)]

    yield row("GPUs", lambda each: f"{each.num_gpus:,}")
    yield row("pairs a GPU", lambda each: f"{each.pairs:,}")
    for stage in range(4):
        ours = " (config's)" if stage == plan.zero_stage else ""
        yield row(f"GiB, ZeRO {stage}{ours}", lambda each, stage=stage: f"{each.fittings[stage].memory_gib:,.1f}")  # type: ignore[misc]
    of_config = plan.zero_stage
    yield row("most pairs at once", lambda each: f"{each.fittings[of_config].most_pairs:,}")
    yield row("same, checkpoint_blocks", lambda each: f"{each.fittings[of_config].most_pairs_checkpointed:,}")
    yield row("sent a step", lambda each: short_size(each.communication.total))
    yield row("samples/s", lambda each: _range({n: s.samples_per_second for n, s in each.speeds.items()}))
    yield row("MFU, %", lambda each: _range({n: 100 * s.model_flops_utilisation for n, s in each.speeds.items()}))
    yield row("days", lambda each: _range(each.days))
    yield row("GPU-hours", lambda each: _range(each.gpu_hours))
    if any(each.cost for each in plan.on_gpus):
        yield row("cost", lambda each: _range(each.cost or {}))
    yield row("loader cores a machine", lambda each: _range({n: one.cores for n, one in each.loading.items()}))
    yield row("GB/s read, all machines", lambda each: _range({n: _gb_per_second(each, plan, n) for n in each.loading}))
    yield row("hours between failures", lambda each: _short(each.saving.hours_between_failures))
    yield row("save every, minutes", lambda each: _short(each.saving.interval_seconds / 60))
    yield row("lost to saves, failures", lambda each: f"{each.saving.lost_fraction:.1%}")
    yield row("start, seconds", lambda each: f"{each.start.total:.0f}")


def _gb_per_second(each: OnGpus, plan: Plan, case: str) -> float:
    machines = each.num_gpus / min(each.num_gpus, plan.gpu.per_machine)
    return each.loading[case].bytes_per_second * machines / 1e9


def _totals(plans: Sequence[Plan]) -> Iterator[list[str]]:
    columns = list(zip(*(plan.on_gpus for plan in plans), strict=True))
    yield ["GPUs", *(f"{column[0].num_gpus:,}" for column in columns)]
    yield ["days", *(_range(sum_of_cases([each.days for each in column])) for column in columns)]
    yield ["GPU-hours", *(_range(sum_of_cases([each.gpu_hours for each in column])) for column in columns)]
    if columns[0][0].cost is not None:
        yield ["cost", *(_range(sum_of_cases([each.cost or {} for each in column])) for column in columns)]


def _notes(each: OnGpus) -> Iterator[str]:
    """What must be set, and what slows the run down."""
    gpus = counted(each.num_gpus, "GPU")
    if each.settings is None:
        yield from _entry("note", f"{gpus}: the run does not fit; use more GPUs, or machine.offload_optimizer=true")
    elif each.settings:
        written = " ".join(f"machine.{key}={str(value).lower()}" for key, value in each.settings.items())
        yield from _entry("note", f"{gpus}: computed with {written}, without which a rank does not fit")
    slow = {name: speed.limit for name, speed in each.speeds.items() if speed.limit != "computing"}
    if slow:
        cases = " and ".join(f"{name} by {limit}" for name, limit in slow.items())
        yield from _entry("note", f"{gpus}: the speed is limited, {cases}; larger batches use the GPUs better")


def _accuracies(plan: Plan) -> Iterator[str]:
    for task in dict.fromkeys(expected.task for expected in plan.accuracies):
        values = [f"{each.data} {_percent(each)}" for each in plan.accuracies if each.task == task]
        yield from _entry("accuracy", f"{task} after training on data such as {', '.join(values)}")
    if not plan.accuracies:
        yield from _entry(
            "accuracy", "not known: the published fits are of runs of 3 to 35 G samples from random weights"
        )


def _percent(expected: Expected) -> str:
    error = "" if expected.uncertainty is None else f" ± {100 * expected.uncertainty:.1f}"
    return f"{100 * expected.accuracy:.1f}{error} %"


def _legend() -> str:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in UTILISATIONS.items())
    return textwrap.fill(
        f"Ranges are typical (low-high), for kernels that reach {shares} of the peak, as in published runs. "
        f"A GPU fails every {GPU_HOURS_OF_FAILURE:,.0f} hours; a start is of at most {SHARDS:,} shards.",
        WIDTH,
    )


def _range(values: ByCase) -> str:
    """`typical (low-high)`; `-` if there are none."""
    if not values:
        return "-"
    low, high = sorted((values["low"], values["high"]))
    return f"{_short(values['typical'])} ({_short(low)}-{_short(high)})"


def _short(value: float) -> str:
    """Two digits, or three before the point: 0.077, 8.2, 119, 13k."""
    has_three = value >= 99.5 and 10 ** (math.log10(value) % 3) >= 99.5
    return short_number(value, 3 if has_three else 2)


def _grid(rows: Iterator[list[str]]) -> str:
    """The rows as tables, each with as many numbers of GPUs as fit."""
    listed = list(rows)
    tables = []
    for first in range(1, len(listed[0]), _COLUMNS):
        part = [[label, *values[first - 1 : first - 1 + _COLUMNS]] for label, *values in listed]
        tables.append(table(part, align="<" + ">" * (len(part[0]) - 1), width=WIDTH))
    return "\n\n".join(tables)


def _entry(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{name:{_INDENT}}", subsequent_indent=" " * _INDENT)
