import pytest

from diptych.world import World, first_decides
from tests.ranks import run_ranks


def test_ranks_share_the_global_batch_in_contiguous_slices():
    assert [World(rank=rank, size=3).rows(12) for rank in range(3)] == [(0, 4), (4, 8), (8, 12)]


def test_a_batch_that_cannot_be_shared_names_the_nearest_that_can():
    with pytest.raises(ValueError, match="100 cannot be split over 3 ranks; the nearest that can is 99"):
        World(size=3).rows(100)


def decisions(rank):
    world = World(rank=rank, size=2)

    def refuse():
        raise ValueError("no such thing")

    answer = first_decides(world, lambda: f"said by {rank}")
    try:
        first_decides(world, refuse)
    except (ValueError, SystemExit) as error:
        return answer, type(error).__name__, str(error)


def test_the_first_rank_decides_and_a_mistake_there_stops_all():
    assert run_ranks(2, decisions) == [
        ("said by 0", "ValueError", "no such thing"),
        ("said by 0", "SystemExit", "2"),
    ]
