import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from diptych.agreement import decide_on_first_rank, on_any_rank
from diptych.errors import OneRankError, TransientError, UserError
from diptych.process_group import process_group, refuse_shared_gpu
from diptych.world import MEETING, World, choose_device, explain_full_memory, read_world
from tests.commands import free_port
from tests.ranks import run_ranks

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def launched(monkeypatch):
    """Sets the given variables of a launcher, and removes all others."""

    def launched(**variables):
        for name in (*MEETING, "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return launched


def test_ranks_share_the_global_batch_in_contiguous_slices():
    assert [World(rank=rank, size=3).rows(12) for rank in range(3)] == [(0, 4), (4, 8), (8, 12)]


def test_ranks_take_equally_many_rows_or_one_more_if_their_number_does_not_divide_the_batch():
    assert [World(rank=rank, size=3).rows(10) for rank in range(3)] == [(0, 4), (4, 7), (7, 10)]
    assert World(rank=2, size=3).rows(3) == (2, 3)


def test_a_batch_of_fewer_pairs_than_ranks_is_refused():
    with pytest.raises(ValueError, match=r"^training.global_batch_size 2 cannot be split over 3 ranks.*set it to 3 or"):
        World(size=3).rows(2)


def places_of_two() -> list[dict[str, str]]:
    """The variables that a launcher sets for each of two ranks."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    return [{**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def meet(place):
    """Leave the group of `run_ranks`, so that the rank can open its own."""
    dist.barrier()
    dist.destroy_process_group()
    os.environ.update(place)


def decisions(rank, faults):
    world = World(rank=rank, size=2)

    def fail(fault):
        raise fault

    ends = []
    for fault in faults:
        try:
            decide_on_first_rank(world, lambda fault=fault: fail(fault))
        except (Exception, SystemExit) as error:
            ends.append((type(error).__name__, str(error)))
    return decide_on_first_rank(world, lambda: f"said by {rank}"), ends


def test_the_first_rank_decides_and_any_error_there_stops_all_with_its_status():
    faults = [UserError("no such thing"), KeyError("a bug"), MemoryError(), TransientError("was killed")]
    first, other = run_ranks(2, decisions, faults)
    said = [("UserError", "no such thing"), ("KeyError", "'a bug'"), ("MemoryError", "")]
    assert first == ("said by 0", [*said, ("TransientError", "was killed")])
    assert other == ("said by 0", [("SystemExit", status) for status in "2111"])


def agreement_while_tensors_are_stuck(rank, places):
    """Rank 1 agrees with rank 0 while rank 0 waits for it in an operation on tensors."""
    meet(places[rank])
    with process_group(read_world(), timeout_seconds=30) as world:
        held = dist.all_reduce(torch.ones(1), async_op=True) if rank == 0 else None
        agreed = decide_on_first_rank(world, lambda: "yes"), on_any_rank(world, rank == 1)
        if rank == 1:
            dist.all_reduce(torch.ones(1))
        elif held is not None:
            held.wait()
    return agreed


def test_ranks_agree_on_a_group_of_their_own():
    assert run_ranks(2, agreement_while_tensors_are_stuck, places_of_two()) == [("yes", True)] * 2


def end_after_errors(rank, places, errors):
    """The type of the error with which a rank ends that has one of its own, or loses another."""
    meet(places[rank])
    try:
        with process_group(read_world(), timeout_seconds=30) as world:
            if errors[rank]:
                raise errors[rank]
            on_any_rank(world, True)
    except Exception as error:
        return type(error).__name__, str(error).partition(" (")[0]


@pytest.mark.parametrize(
    ("errors", "ends"),
    [
        (
            [None, UserError("no such file")],
            [("LostRankError", "lost the other ranks"), ("OneRankError", "no such file")],
        ),
        ([UserError("too high")] * 2, [("UserError", "too high")] * 2),
        ([None, KeyError("a bug")], [("LostRankError", "lost the other ranks"), ("KeyError", "'a bug'")]),
    ],
    ids=["a mistake of one", "a mistake of all", "a bug"],
)
def test_an_error_is_for_the_rank_to_print_that_has_it_alone(errors, ends):
    assert run_ranks(2, end_after_errors, places_of_two(), errors) == ends


def end_after_rank_0(rank, places, error):
    """The type of the error with which rank 1 ends that makes it when rank 0, which holds the store, has ended."""
    meet(places[rank])
    try:
        with process_group(read_world(), timeout_seconds=30) as world:
            if rank == 1:
                with pytest.raises(dist.DistError):
                    while True:
                        world.store.check(["any"])
            raise error
    except Exception as ended:
        return type(ended).__name__, str(ended)


def test_a_mistake_of_all_is_that_also_for_a_rank_that_comes_too_late_for_the_note(capfd):
    mistake = UserError("too high")
    assert run_ranks(2, end_after_rank_0, places_of_two(), mistake) == [("UserError", "too high")] * 2
    assert "Traceback" not in capfd.readouterr().err


def test_the_launchers_environment_is_the_world(launched):
    launched(**WHOLE)
    assert (read_world().rank, read_world().size) == (1, 2)


@pytest.mark.parametrize(("num_here", "spans"), [("1", True), ("2", False)])
def test_a_world_that_is_larger_than_its_part_here_spans_machines(launched, monkeypatch, num_here, spans):
    launched(**WHOLE)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", num_here)
    assert read_world().spans_machines == spans


@pytest.mark.parametrize(
    "left", [{}, {"WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}, {"MASTER_ADDR": "head"}, {"WORLD_SIZE": ""}]
)
def test_a_process_is_alone_if_the_environment_names_no_other(launched, left):
    launched(**left)
    assert (read_world().rank, read_world().size) == (0, 1)


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ({"WORLD_SIZE": "2"}, "has WORLD_SIZE=2 without RANK, MASTER_ADDR, MASTER_PORT; start .* `unset WORLD_SIZE`"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "has RANK=0 and WORLD_SIZE=2 without MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "1"}, "has RANK=1 without WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({**WHOLE, "MASTER_PORT": ""}, "without MASTER_PORT"),
        ({**WHOLE, "RANK": "2"}, "RANK=2; it must be below WORLD_SIZE=2"),
        ({**WHOLE, "WORLD_SIZE": "two"}, "WORLD_SIZE='two'; expected a whole number"),
        ({**WHOLE, "WORLD_SIZE": "0"}, "WORLD_SIZE='0'; expected a whole number"),
        ({**WHOLE, "RANK": "-1"}, "RANK='-1'; expected a whole number"),
    ],
)
def test_an_environment_with_ranks_that_cannot_be_met_is_refused(launched, left, told):
    launched(**left)
    with pytest.raises(UserError, match=told), process_group(read_world(), timeout_seconds=1):
        pass


def test_a_rank_that_nobody_joins_says_where_it_waited(launched):
    launched(**{**WHOLE, "RANK": "0", "MASTER_PORT": str(free_port())})
    with (
        pytest.raises(ValueError, match=r"rank 0 of 2 does not meet the others at 127\.0\.0\.1:\d+ .*torchrun"),
        process_group(read_world(), timeout_seconds=1),
    ):
        pass


@pytest.mark.parametrize("name", ["gpu", "foo", "0", "cuda:77", "meta", "cpu:x", ""])
def test_a_missing_device_is_named_with_those_that_exist(name):
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used .*; this machine has cpu"):
        choose_device(name)


def test_without_a_name_there_is_always_a_device():
    assert choose_device().type in ("cpu", "cuda") and choose_device("cpu").type == "cpu"


def test_full_memory_is_one_line_with_the_way_out():
    with pytest.raises(OneRankError, match="^out of memory on cpu: take less$"):
        with explain_full_memory(torch.device("cpu"), "take less"):
            torch.empty(2**46)


def test_other_errors_of_torch_remain_bugs():
    with pytest.raises(RuntimeError, match="shape"), explain_full_memory(torch.device("cpu"), "take less"):
        torch.ones(2).reshape(3)


@pytest.mark.parametrize(
    ("cpus", "sharing", "device", "workers"),
    [(16, 1, "cuda:0", 12), (16, 8, "cuda:0", 1), (64, 8, "cuda:0", 7), (1, 1, "cuda:0", 1), (64, 1, "cpu", 1)],
)
def test_loader_workers_share_the_cpus_of_the_machine_with_the_ranks(monkeypatch, cpus, sharing, device, workers):
    monkeypatch.setattr("diptych.world.usable_cpus", lambda: cpus)
    world = World(device=torch.device(device), num_sharing_cpus=sharing)
    assert world.loader_workers("auto") == workers
    assert world.loader_workers(0) == 0


def test_ranks_of_one_start_that_have_one_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="a GPU"))
    launchers = dist.HashStore()
    first, again = (dist.PrefixStore(start, launchers) for start in ("first start", "second start"))
    on_gpu = [World(rank=rank, size=2, device=torch.device("cuda", 0), store=first) for rank in range(2)]
    refuse_shared_gpu(on_gpu[0])
    with pytest.raises(OneRankError, match="ranks 0 and 1 have the same GPU"):
        refuse_shared_gpu(on_gpu[1])
    refuse_shared_gpu(replace(on_gpu[1], store=again))  # ranks may have other numbers after a restart
