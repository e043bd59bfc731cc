import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from diptych_shards.select.components import Components

PAIRS = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60)


def naive(total, pairs):
    group = list(range(total))
    for one, other in pairs:
        low, high = sorted((group[one], group[other]))
        group = [low if each == high else each for each in group]
    return group


@given(PAIRS, st.integers(1, 5))
def test_components_go_by_their_smallest_member_however_the_pairs_come(pairs, portions):
    components = Components(30)
    for start in range(portions):
        part = pairs[start::portions]
        components.join(np.array([a for a, _ in part], int), np.array([b for _, b in part], int))
    assert components.all_roots().tolist() == naive(30, pairs)


def test_a_long_chain_is_one_component():
    things = np.arange(200_000)
    components = Components(len(things))
    components.join(things[:-1], things[1:])
    assert (components.all_roots() == 0).all()
