"""Describe statistics in lines of at most 80 columns."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping

from diptych.inspection.feeding import Feeding
from diptych.inspection.statistics import Statistics, quantiles, width_to_height
from diptych.pages.axes import short_number, short_size
from diptych.pages.template import percent
from diptych.terminal import counted, fit, printable

WIDTH = 80
_INDENT = 12


def describe(statistics: Statistics, feeding: Feeding) -> str:
    """All numbers as text."""
    each = short_size(statistics.num_bytes / statistics.num_samples)
    lines = [
        f"{counted(statistics.num_samples, 'sample')} in {counted(statistics.num_shards, 'shard')}, "
        f"{short_size(statistics.num_bytes)} ({each} a sample)",
        f"below: {counted(statistics.num_drawn, 'sample')} drawn evenly from "
        f"{counted(statistics.num_shards_drawn, 'shard')}",
        "",
        *_table(statistics),
        "",
        *(line for name, text in _facts(statistics) for line in _entry(name, text)),
        "",
        *(line for name, text in _speed(statistics, feeding) for line in _entry(name, text)),
    ]
    for taken in feeding.gpus:
        if taken.cores is not None:
            wanted = f"{taken.samples_per_second:>9,.0f} samples/s   {taken.cores:6.1f} cores"
            lines.append(f"{'':{_INDENT}}{fit(taken.gpu, 30):<12} {wanted}")
    return "\n".join(lines)


def rejections(statistics: Statistics) -> str:
    """How many samples were rejected, and why."""
    number = sum(statistics.rejected.values())
    reasons = ", ".join(f"{reason} {times:,}" for reason, times in statistics.rejected.most_common())
    share = f"{number:,} of {counted(statistics.num_drawn, 'sample')} ({percent(number, statistics.num_drawn)})"
    return f"{share}: {reasons}" if number else f"none of {counted(statistics.num_drawn, 'sample')}"


def _table(statistics: Statistics) -> Iterator[str]:
    rows: dict[str, Mapping[str, float]] = {
        "shorter side, px": quantiles(statistics.shorter_side),
        "longer side, px": quantiles(statistics.longer_side),
        "width / height": {name: width_to_height(step) for name, step in quantiles(statistics.ratio).items()},
        "picture file, kB": quantiles(statistics.picture_kb),
        "caption, tokens": quantiles(statistics.tokens),
    }
    yield f"{'':20}{'5 %':>9}{'median':>9}{'95 %':>9}"
    for name, values in rows.items():
        yield f"{name:20}" + ("".join(f"{value:>9,}" for value in values.values()) or f"{'-':>9}" * 3)


def _facts(statistics: Statistics) -> Iterator[tuple[str, str]]:
    pictures, captions = statistics.shorter_side.total, statistics.tokens.total
    yield (
        "formats",
        ", ".join(f"{name} {percent(times, pictures)}" for name, times in statistics.formats.most_common()) or "none",
    )
    yield (
        "enlarged",
        f"{statistics.num_enlarged:,} of {counted(pictures, 'picture')} "
        f"({percent(statistics.num_enlarged, pictures)}) are smaller than the model's {statistics.image_size} px",
    )
    yield (
        "with text",
        ", ".join(
            f"{fit(printable(name), 40)} {percent(times, statistics.num_drawn)}"
            for name, times in statistics.fields.most_common()
        )
        or "no field",
    )
    yield (
        "cut off",
        f"{statistics.num_cut:,} of {counted(captions, 'caption')} ({percent(statistics.num_cut, captions)}) are "
        f"longer than the model's {statistics.context_length} tokens",
    )
    repeated = statistics.num_repeated
    examples = "; ".join(f"“{fit(printable(text), 40)}” {times:,} times" for text, times in statistics.most_repeated)
    yield (
        "repeated",
        f"{repeated:,} of {counted(statistics.num_compared, 'caption')} "
        f"({percent(repeated, statistics.num_compared)}) occur more than once"
        + (f"; among the drawn ones {examples}" if examples else ""),
    )
    yield "rejected", rejections(statistics)


def _speed(statistics: Statistics, feeding: Feeding) -> Iterator[tuple[str, str]]:
    speed, number = statistics.samples_per_core_second, statistics.num_timed
    if speed is None:
        yield "speed", "not measured: every sample was rejected"
        return
    stages = ", ".join(f"{stage} {1e6 * seconds / number:,.0f}" for stage, seconds in statistics.seconds.items())
    yield "speed", f"{speed:,.0f} samples a core-second here (µs a sample: {stages})"
    yield (
        "feeding",
        f"one GPU at {feeding.model_flops_utilisation:.0%} of its bf16 peak that trains {feeding.model} on captions "
        f"of {feeding.mean_tokens:.0f} tokens, {short_number(feeding.flops_of_pair / 1e9)} GFLOPs a pair, takes",
    )


def _entry(name: str, text: str) -> list[str]:
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    return textwrap.wrap(text, max(width, 40), initial_indent=f"{name:{_INDENT}}", subsequent_indent=" " * _INDENT)
