from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.proportions import MAX_PERIOD, shares
from diptych.errors import UserError

simple = st.lists(st.integers(1, 20), min_size=1, max_size=5)


@given(weights=simple, batch=st.integers(1, 60), start=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_each_batch_is_as_near_to_the_proportions_as_rounding_allows_and_a_period_is_exact(weights, batch, start):
    weights = [weight / 10 for weight in weights]
    try:
        parts = shares(weights, batch)
    except UserError:
        return
    exact = [Fraction(str(weight)) / sum(Fraction(str(w)) for w in weights) * batch for weight in weights]
    period = np.lcm.reduce([share.denominator for share in exact])
    rows = np.array([[part.rows_in(start + number) for part in parts] for number in range(period)])
    assert (rows.sum(1) == batch).all()
    assert all((np.abs(rows[:, n] - float(share)) < 1).all() for n, share in enumerate(exact))
    assert rows.sum(0).tolist() == [share * period for share in exact]


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5), batch=st.integers(200_000, 300_000))
@settings(max_examples=30, deadline=None)
def test_proportions_of_any_weights_are_within_a_few_rows_of_exact(weights, batch):
    for weight, share in zip(weights, shares(weights, batch), strict=True):
        exact = weight / sum(weights) * batch * MAX_PERIOD
        assert abs(share.before(MAX_PERIOD) - exact) <= 3


@given(weights=simple, batch=st.integers(20, 60), row=st.integers(0, 10**9))
@settings(max_examples=30, deadline=None)
def test_the_batch_of_a_row_contains_it(weights, batch, row):
    for share in shares(weights, batch):
        found = share.batches_of(row)
        assert share.before(found) <= row < share.before(found + 1)


def test_additional_rows_are_spread_over_the_batches():
    few, _ = shares([0.1, 99.9], 100)  # a row in every tenth batch
    assert few.fewest == 0
    batches = [few.batches_of(row) for row in range(100)]
    assert {after - before for before, after in zip(batches, batches[1:], strict=False)} == {10}


def test_a_source_that_would_never_be_drawn_is_refused():
    with pytest.raises(UserError, match="weight 1e-09 would have no sample in 4,096 batches of 10"):
        shares([1, 1e-9], 10)
