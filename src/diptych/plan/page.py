"""Write a page with the numbers of a plan, plots, and how each number is computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence

from diptych.model.flops import TrainingFlops
from diptych.pages.charts import LineChart, line_chart
from diptych.pages.template import template
from diptych.plan import accuracy, communication, failures, loading, speed, start
from diptych.plan.on_gpus import OnGpus
from diptych.plan.plan import Plan
from diptych.plan.speed import UTILISATIONS
from diptych.plan.stages import flops_text
from diptych.plan.summary import accuracies, days_text, legend, notes, rows, totals, uncounted, unit_of
from diptych.training import memory

Series = dict[str, Sequence[tuple[float, float]]]
"""Label of a line → its points."""

FORMULAS = {
    "operations": TrainingFlops,
    "memory": memory,
    "speed": speed.speed,
    "communication": communication.communication,
    "saves and failures": failures.saving,
    "loading": loading.loading,
    "start": start.start,
    "accuracy": accuracy.expected_accuracy,
}
"""Topic → what computes it; the page shows its docstring."""


def render_plan(plans: Sequence[Plan]) -> bytes:
    """Render the page; equal plans give equal pages."""
    unit = unit_of([each.days for each in plans[0].on_gpus])
    page = template("diptych", "plan/page.html.jinja", flops=flops_text).render(
        title=f"Plan for {', '.join(f'{each.num_gpus:,}' for each in plans[0].on_gpus)} {plans[0].gpu.name}",
        plans=[
            {
                "plan": plan,
                "table": list(rows(plan)),
                "charts": list(charts(plan)),
                "notes": [note for each in plan.on_gpus for note in notes(each)],
                "accuracies": list(accuracies(plan)),
                "uncounted": list(uncounted(plan)),
            }
            for plan in plans
        ],
        totals=list(totals(plans)) if len(plans) > 1 else [],
        times=[(each.num_gpus, days_text(each.days, unit)) for each in plans[0].on_gpus],
        unit=unit,
        legend=legend(),
        formulas={topic: inspect.getdoc(function) for topic, function in FORMULAS.items()},
    )
    return page.encode("utf-8", "backslashreplace")


def charts(plan: Plan) -> Iterator[LineChart]:
    """What changes with the number of GPUs, and memory by pairs at once."""
    fitting = [each for each in plan.on_gpus if each.speeds]

    def by_gpus(title: str, value: Callable[[OnGpus, str], float]) -> LineChart | None:
        series: Series = {case: [(each.num_gpus, value(each, case)) for each in fitting] for case in UTILISATIONS}
        return line_chart(title, series, x_label="GPUs", about="", logarithmic_x=True, logarithmic_y=True)

    first, most_gib = plan.on_gpus[0], 2 * plan.gpu.memory_gib
    plain = [(each.pairs, each.gib) for each in first.by_pairs]
    checkpointed = [(each.pairs, each.gib_checkpointed) for each in first.by_pairs]
    of_pairs: Series = {"plain": plain, "checkpointed": checkpointed}
    drawn = [
        by_gpus("Days", lambda each, case: each.days[case]),
        by_gpus("GPU-hours", lambda each, case: each.gpu_hours[case]),
        by_gpus("Samples a second", lambda each, case: each.speeds[case].samples_per_second),
        line_chart(
            f"GiB of one of {first.num_gpus:,} GPUs",
            {name: [point for point in points if point[1] < most_gib] for name, points in of_pairs.items()},
            x_label="pairs through the towers at once",
            about="",
            logarithmic_x=True,
            logarithmic_y=True,
            level=(plan.gpu.memory_gib, plan.gpu.name),
        ),
        _accuracy_chart(plan),
    ]
    yield from (chart for chart in drawn if chart is not None)


def _accuracy_chart(plan: Plan) -> LineChart | None:
    if not plan.accuracies:
        return None
    low, high = accuracy.FITTED_SAMPLES
    samples = [low * (high / low) ** (step / 40) for step in range(41)]
    series: Series = {
        data: [(seen, 100 * accuracy.IMAGENET[data].accuracy(plan.gmac, seen)) for seen in samples]
        for data in ("LAION-2B", "LAION-400M")
    }
    return line_chart("ImageNet top-1, %", series, x_label="samples seen", about="", logarithmic_x=True)
