"""Put a plan's numbers into words: the rows of its table, notes, accuracies to expect."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from diptych.pages.axes import short_number, short_size
from diptych.plan.accuracy import Expected
from diptych.plan.failures import GPU_HOURS_OF_FAILURE
from diptych.plan.on_gpus import ByCase, OnGpus, sum_of_cases
from diptych.plan.plan import Plan
from diptych.plan.speed import UTILISATIONS
from diptych.plan.stages import flops_text
from diptych.plan.start import SHARDS
from diptych.terminal import counted

_LIMITS = {"communication": "what a rank sends", "launches": "launching kernels from Python"}
"""What may limit the speed instead of computing → how it is described."""
_UNITS = {"days": 1.0, "hours": 24.0, "minutes": 24.0 * 60}


def rows(plan: Plan) -> Iterator[list[str]]:
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
    yield row("samples/s", lambda each: range_text({n: s.samples_per_second for n, s in each.speeds.items()}))
    yield row("MFU, %", lambda each: range_text({n: 100 * s.model_flops_utilisation for n, s in each.speeds.items()}))
    unit = unit_of([each.days for each in plan.on_gpus])
    yield row(unit, lambda each: days_text(each.days, unit))
    yield row("GPU-hours", lambda each: range_text(each.gpu_hours))
    if any(each.cost for each in plan.on_gpus):
        yield row("cost", lambda each: range_text(each.cost or {}))
    yield row("loader cores a machine", lambda each: range_text({n: one.cores for n, one in each.loading.items()}))
    yield row(
        "GB/s read, all machines", lambda each: range_text({n: _gb_per_second(each, plan, n) for n in each.loading})
    )
    yield row("hours between failures", lambda each: _short(each.saving.hours_between_failures))
    yield row("save every, minutes", lambda each: _short(each.saving.interval_seconds / 60))
    yield row("save every, samples", _every_samples)
    yield row("lost to saves, failures", lambda each: _lost(each.saving.lost_fraction))
    yield row("start, seconds", lambda each: f"{each.start.total:.0f}")


def _every_samples(each: OnGpus) -> str:
    """The best interval between checkpoints in samples, at the typical speed."""
    speed = each.speeds.get("typical")
    return "-" if speed is None else _short(each.saving.interval_seconds * speed.samples_per_second)


def _lost(fraction: float) -> str:
    return "<0.1%" if fraction < 0.0005 else f"{fraction:.1%}"


def _gb_per_second(each: OnGpus, plan: Plan, case: str) -> float:
    machines = each.num_gpus / min(each.num_gpus, plan.gpu.per_machine)
    return each.loading[case].bytes_per_second * machines / 1e9


def totals(plans: Sequence[Plan]) -> Iterator[list[str]]:
    """The rows of all runs together."""
    columns = list(zip(*(plan.on_gpus for plan in plans), strict=True))
    yield ["GPUs", *(f"{column[0].num_gpus:,}" for column in columns)]
    yield ["operations", *[flops_text(sum(plan.flops for plan in plans))] * len(columns)]
    days = [sum_of_cases([each.days for each in column]) for column in columns]
    unit = unit_of(days)
    yield [unit, *(days_text(each, unit) for each in days)]
    yield ["GPU-hours", *(range_text(sum_of_cases([each.gpu_hours for each in column])) for column in columns)]
    if columns[0][0].cost is not None:
        yield ["cost", *(range_text(sum_of_cases([each.cost or {} for each in column])) for column in columns)]


def notes(each: OnGpus) -> Iterator[str]:
    """What must be set, and what slows the run down."""
    gpus = counted(each.num_gpus, "GPU")
    if each.settings is None:
        yield f"{gpus}: the run does not fit; use more GPUs, or machine.offload_optimizer=true"
    elif each.settings:
        written = " ".join(f"machine.{key}={str(value).lower()}" for key, value in each.settings.items())
        yield f"{gpus}: computed with {written}, without which a rank does not fit"
    for limit, reason in _LIMITS.items():
        slow = [name for name, speed in each.speeds.items() if speed.limit == limit]
        cases = f" ({', '.join(slow)})" if len(slow) < len(each.speeds) else ""
        if slow:
            yield f"{gpus}: {reason} limits the speed{cases}; larger batches use the GPUs better"


def uncounted(plan: Plan) -> Iterator[str]:
    """What the optimizer computes besides the operations of samples."""
    if flops := plan.orthogonalisation_flops:
        yield (
            f"Muon's orthogonalisation is not counted: {flops / 1e9:,.4g} GFLOPs a step, as many as of "
            f"{short_number(flops / plan.flops_of_sample, 3)} samples, on each rank at ZeRO 0 and 3, and divided at 1 "
            f"and 2; the demo, with batches of 128, takes a third more time a sample"
        )


def accuracies(plan: Plan) -> Iterator[str]:
    """What accuracy to expect, a sentence for each task."""
    for task in dict.fromkeys(expected.task for expected in plan.accuracies):
        values = [f"{each.data} {_percent(each)}" for each in plan.accuracies if each.task == task]
        yield f"{task} after training on data such as {', '.join(values)}"
    if plan.stage:
        yield "not known: the published fits are of runs without stages"
    elif not plan.accuracies:
        yield "not known: the published fits are of runs of 3 to 35 G samples from random weights"


def _percent(expected: Expected) -> str:
    error = "" if expected.uncertainty is None else f" ± {100 * expected.uncertainty:.1f}"
    return f"{100 * expected.accuracy:.1f}{error} %"


def legend() -> str:
    """What the numbers stand for."""
    shares = ", ".join(f"{name} {share:.0%}" for name, share in UTILISATIONS.items())
    return (
        f"Ranges are typical (low-high), for kernels that reach {shares} of the peak, as in published runs. "
        f"A GPU fails every {GPU_HOURS_OF_FAILURE:,.0f} hours; a start is of at most {SHARDS:,} shards."
    )


def unit_of(days: Sequence[ByCase]) -> str:
    """The unit in which the longest of these times is at least 1, or else minutes."""
    longest = max((each["typical"] for each in days if each), default=1.0)
    return next((unit for unit, of_day in _UNITS.items() if longest * of_day >= 1), "minutes")


def days_text(days: ByCase, unit: str) -> str:
    return range_text({name: value * _UNITS[unit] for name, value in days.items()})


def range_text(values: ByCase) -> str:
    """`typical (low-high)`; one number if they are equal, `-` if there are none."""
    if not values:
        return "-"
    typical = _short(values["typical"])
    low, high = (_short(value) for value in sorted((values["low"], values["high"])))
    return typical if low == high else f"{typical} ({low}-{high})"


def _short(value: float) -> str:
    """Two digits, or three before the point: 0.077, 8.2, 119, 13k."""
    has_three = value >= 99.5 and 10 ** (math.log10(value) % 3) >= 99.5
    return short_number(value, 3 if has_three else 2)
