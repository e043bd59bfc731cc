import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from diptych.data.draws import Draws, hash_of, hashes

SPLITMIX64_OF_1234567 = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]


@given(value=st.integers(0, 2**63), key=st.lists(st.integers(-(2**40), 2**70), max_size=4))
def test_one_hash_is_that_of_the_array(value, key):
    assert hash_of(value, *key) == int(hashes(np.array([value], dtype=np.uint64), *key)[0])


def test_the_numbers_are_those_of_splitmix64():
    draws = Draws(1234567)
    assert [draws.below(2**64) for _ in SPLITMIX64_OF_1234567] == SPLITMIX64_OF_1234567
    assert Draws(1234567).uniform() == (SPLITMIX64_OF_1234567[0] >> 11) / 2**53


def test_draws_are_uniform_and_keys_draw_apart():
    draws = np.array([[Draws(key).uniform(), Draws(key).below(10)] for key in range(5000)])
    assert np.abs(np.histogram(draws[:, 0], 10, (0, 1))[0] - 500).max() < 100
    assert np.abs(np.bincount(draws[:, 1].astype(int), minlength=10) - 500).max() < 100
    draw = Draws(1)
    drawn = np.array([draw.uniform(2, 6) for _ in range(5000)])
    assert drawn.min() >= 2 and drawn.max() < 6
    assert np.abs(np.histogram(drawn, 10, (2, 6))[0] - 500).max() < 100
    assert {draw.below(1) for _ in range(20)} == {0}
