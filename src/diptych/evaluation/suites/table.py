"""The table of a suite: data sets × models, with averages and published numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from diptych.evaluation.suites.data_folders import LABELS
from diptych.evaluation.suites.suite import ALL, Suite, SuiteDataSet
from diptych.terminal import counted, is_or_are

PUBLISHED = " (published)"

Values = Mapping[str, float]
"""Data set → share."""


@dataclass(frozen=True)
class SuiteTable:
    """What was measured of a suite, next to what others published."""

    suite: Suite
    models: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Data set → model → cell; without data sets that are not there."""

    @property
    def measured(self) -> list[SuiteDataSet]:
        """The data sets that at least one model was measured on."""
        return [each for each in self._rows if any(self.value(each.name, model) is not None for model in self.models)]

    @property
    def failed(self) -> list[tuple[SuiteDataSet, str, str]]:
        """(data set, models, reason) of each measurement that failed; models is empty if all failed alike."""
        found = []
        for each in self._rows:
            reasons: dict[str, list[str]] = {}
            for model, cell in self.cells[each.name].items():
                if "failed" in cell:
                    reasons.setdefault(cell["failed"], []).append(model)
            for reason, models in reasons.items():
                found.append((each, "" if len(models) == len(self.models) else ", ".join(models), reason))
        return found

    @property
    def missing(self) -> list[SuiteDataSet]:
        return [each for each in self.suite.data_sets if each.name not in self.cells]

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group → its data sets that every model was measured on, those of all groups first."""
        common = [each for each in self.measured if all(self.value(each.name, m) is not None for m in self.models)]
        groups = {ALL: [each.name for each in common]}
        for each in common:
            groups.setdefault(each.group, []).append(each.name)
        return groups if len(groups) > 2 else {ALL: groups[ALL]}

    def value(self, data_set: str, model: str) -> float | None:
        value: float | None = self.cells[data_set].get(model, {}).get("value")
        return value

    def chance(self, data_set: SuiteDataSet) -> float | None:
        """What guessing reaches: as the suite says, else as it was measured."""
        if data_set.chance is not None:
            return data_set.chance
        known = [cell.get("chance") for cell in self.cells.get(data_set.name, {}).values()]
        return next((each for each in known if each is not None), None)

    def average(self, values: Values, group: str) -> float | None:
        """The mean of a group's values; None if one is not known, since the mean would be of other data sets."""
        names = self.groups[group]
        if not names or any(name not in values for name in names):
            return None
        return sum(values[name] for name in names) / len(names)

    def columns(self) -> dict[str, Values]:
        """Model → its values; then those of the published models."""
        own = {
            model: {each.name: value for each in self.measured if (value := self.value(each.name, model)) is not None}
            for model in self.models
        }
        return own | {f"{model}{PUBLISHED}": self.suite.published(model) for model in self.suite.published_models}

    @property
    def _rows(self) -> list[SuiteDataSet]:
        return [each for each in self.suite.data_sets if each.name in self.cells]


def where_to_get(missing: SuiteDataSet) -> str:
    """How to get a data set that is not there, or where its folder is looked for if the suite does not say it."""
    return missing.where_to_get or f"give --data DIR with a folder {missing.name}"


def counts_that_differ(shown: SuiteTable) -> Iterator[str]:
    """Lines for each data set that differs from the published test set in size, classes or their names."""
    for each in shown.measured:
        cell = next(cell for cell in shown.cells[each.name].values() if "value" in cell)
        found = {"pictures": cell["pictures"] + cell["rejected"], "classes": cell["classes"]}
        expected = {"pictures": each.pictures, "classes": each.classes}
        differ = [unit for unit in found if expected[unit] and found[unit] not in (0, expected[unit])]
        if differ:
            has = " and ".join(f"{found[unit]:,} {unit} instead of {expected[unit]:,}" for unit in differ)
            yield f"{each.title}: {has}"
        if cell.get("prompts_from") == LABELS:
            yield f"{each.title}: the labels of the pictures are used as class names"
        if cell["rejected"]:
            rejected = f"{counted(cell['rejected'], 'picture')} could not be decoded"
            yield f"{each.title}: {rejected} and {is_or_are(cell['rejected'])} not counted"


def as_percent(share: float | None) -> str:
    """Per cent without the sign; `-` if it is not known."""
    return "-" if share is None else f"{100 * share:.1f}"
