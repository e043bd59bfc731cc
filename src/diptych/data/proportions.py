"""Divide the rows of every batch among sources, in proportion to their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from diptych.errors import UserError

MAX_PERIOD = 4096
"""Proportions are exact over this many batches, or fewer if the weights are simple numbers."""


class Share:
    """The rows that one source has in each batch: `fewest`, or one more.

    Its rows are numbered from 0 through all batches, so that everything is a function of the batch's number.
    All methods take and give arrays.
    """

    def __init__(self, rows: np.ndarray):
        """rows: i64[period], the numbers of its rows in the batches of a period, which is repeated."""
        self.fewest = int(rows.min())
        self._before = np.concatenate([[0], np.cumsum(rows)])

    def before(self, batch_numbers: np.ndarray) -> np.ndarray:
        """i64: the number of its rows in all batches before each of these."""
        periods, batches = np.divmod(batch_numbers, len(self._before) - 1)
        before: np.ndarray = periods * self._before[-1] + self._before[batches]
        return before

    def rows_in(self, batch_numbers: np.ndarray) -> np.ndarray:
        rows: np.ndarray = self.before(batch_numbers + 1) - self.before(batch_numbers)
        return rows

    def batches_of(self, rows: np.ndarray) -> np.ndarray:
        """i64: the batch that contains its row of each of these numbers."""
        periods, rows = np.divmod(rows, self._before[-1])
        batches: np.ndarray = periods * (len(self._before) - 1) + np.searchsorted(self._before, rows, side="right") - 1
        return batches


def shares(weights: Sequence[float], batch_size: int) -> list[Share]:
    """Divide each batch among sources of these weights, all above 0.

    A source has its exact proportion of a batch, rounded down or up; over a period of batches the proportions are
    exact. If that would take more than MAX_PERIOD batches, they are exact to one row in MAX_PERIOD batches.
    """
    exact = [Fraction(str(weight)) for weight in weights]  # 0.7 as it is written, not the binary number next to it
    ends = [Fraction(0)]
    for part in exact:
        ends.append(ends[-1] + part / sum(exact))
    period = min(MAX_PERIOD, math.lcm(*((end * batch_size).denominator for end in ends)))
    edges = np.array([round(end * batch_size * period) for end in ends])
    for weight, rows in zip(weights, np.diff(edges), strict=True):
        if rows == 0:
            raise UserError(f"a source of weight {weight:g} would have no sample in {MAX_PERIOD:,} batches of "
                            f"{batch_size}; raise its weight, or leave the source out")  # fmt: skip
    fewest, remainders = np.divmod(np.diff(edges), period)

    # Systematic sampling: batch t gives one row more to each source between whose marks, shifted by the batch's offset,
    # a multiple of the period lies. The offsets of a period are all of 0, 1, …, period - 1, each once, which makes the
    # proportions exact; steps of the golden ratio spread a source's additional rows evenly.
    step = next(step for step in range(round(period * 0.618), 2 * period) if math.gcd(step, period) == 1)
    offsets = np.arange(period) * step % period
    marks = np.concatenate([[0], np.cumsum(remainders)])
    more = np.diff((marks + offsets[:, None]) // period, axis=1)
    return [Share(rows) for rows in (fewest + more).T]
