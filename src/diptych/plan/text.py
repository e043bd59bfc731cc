"""Describe plans in lines of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from diptych.pages.axes import short_number
from diptych.plan.plan import Plan
from diptych.plan.stages import flops_text
from diptych.plan.summary import accuracies, legend, notes, rows, totals, uncounted
from diptych.terminal import table
from diptych.training.memory import RESERVED_GIB

WIDTH = 80
_INDENT = 10
_COLUMNS = 3
"""Numbers of GPUs in a table."""


def describe(plans: Sequence[Plan]) -> str:
    """All numbers as text: of each run, then of all together if there are several."""
    texts = [_describe(plan) for plan in plans]
    if len(plans) > 1:
        parts = "stages" if all(plan.stage for plan in plans) else "runs"
        texts.append(f"all {len(plans)} {parts}, one after another\n{_grid(totals(plans))}")
    return "\n\n".join([*texts, textwrap.fill(legend(), WIDTH)])


def _describe(plan: Plan) -> str:
    tokens = f"captions of {plan.num_tokens:g} tokens"
    lines = [
        *_entry("model", f"{plan.model}, {plan.num_parameters / 1e6:.2f} M parameters"),
        *(_entry("part", plan.stage) if plan.stage else ()),
        *_entry("sample", f"{plan.flops_of_sample / 1e9:,.4g} GFLOPs, forward and backward, {tokens}"),
        *(line for sentence in uncounted(plan) for line in _entry("optimizer", sentence)),
        *_entry(
            "run",
            f"{short_number(plan.total_samples)} samples, {flops_text(plan.flops)}, batches of "
            f"{plan.global_batch_size:,}",
        ),
        *_entry(
            "GPU",
            f"{plan.gpu.name}: {plan.gpu.peak_flops / 1e12:,.0f} TFLOP/s in bf16, {plan.gpu.memory_gib:g} GiB, of "
            f"which {RESERVED_GIB:g} are for CUDA itself",
        ),
        "",
        _grid(rows(plan)),
        "",
        *(line for each in plan.on_gpus for note in notes(each) for line in _entry("note", note)),
        *(line for sentence in accuracies(plan) for line in _entry("accuracy", sentence)),
    ]
    return "\n".join(lines)


def _grid(lines: Iterator[list[str]]) -> str:
    """The rows as tables, each with as many numbers of GPUs as fit."""
    listed = list(lines)
    tables = []
    for first in range(1, len(listed[0]), _COLUMNS):
        part = [[label, *values[first - 1 : first - 1 + _COLUMNS]] for label, *values in listed]
        tables.append(table(part, align="<" + ">" * (len(part[0]) - 1), width=WIDTH))
    return "\n\n".join(tables)


def _entry(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{name:{_INDENT}}", subsequent_indent=" " * _INDENT)
