"""Describe a plan in lines of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from diptych.pages.axes import short_number
from diptych.plan.plan import Plan
from diptych.terminal import counted, table

_INDENT = 12


def describe(plan: Plan) -> str:
    """All numbers as text."""
    lines = [
        *_entry("model", f"{plan.name}, {plan.num_parameters / 1e6:.2f} M parameters"),
        *_entry("sample", f"{short_number(plan.flops_of_sample / 1e9, 4)} GFLOPs, forward and backward"),
        *_entry(
            "run",
            f"{short_number(plan.total_samples)} samples in batches of {plan.global_batch_size:,} on {plan.gpu.name}",
        ),
        "",
        table(list(_rows(plan)), align="<" + ">" * (len(plan.by_gpus))),
    ]
    notes = [f"{counted(each.num_gpus, 'GPU')}: {each.too_large}" for each in plan.by_gpus if each.too_large]
    lines += ["", *(line for note in notes for line in _entry("note", note))] if notes else []
    return "\n".join(lines)


def _rows(plan: Plan) -> Iterator[list[str]]:
    def row(name: str, of: str, values: list[str]) -> list[str]:
        return [f"{name}, {of}" if of else name, *values]

    each = plan.by_gpus
    yield row("GPUs", "", [f"{one.num_gpus:,}" for one in each])
    yield row("pairs a GPU", "", [f"{one.pairs:,}" for one in each])
    yield row("memory a GPU", "GiB", [f"{one.memory_gib:.1f}" for one in each])
    yield row("speed", "samples/s", [_range({n: s.samples_per_second for n, s in one.speeds.items()}) for one in each])
    yield row("days", "", [_range(one.days) for one in each])


def _range(values: Mapping[str, float]) -> str:
    """`low typical high` in three digits each."""
    return " ".join(short_number(value) for value in values.values())


def _entry(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, 80, initial_indent=f"{name:{_INDENT}}", subsequent_indent=" " * _INDENT)
