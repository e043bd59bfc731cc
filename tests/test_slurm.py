import pytest
import torch

from diptych.process_group import first_to_claim
from diptych.slurm import first_host, launcher_variables
from diptych.world import read_world

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_TASKS_PER_NODE": "4(x2)",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
    "SLURM_JOB_NODELIST": "gpu[03-04]",
}


def test_a_task_of_a_step_is_a_rank():
    assert launcher_variables(STEP) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "10.0.0.7",
        "MASTER_PORT": "19711",
    }


def test_two_steps_of_a_job_and_two_jobs_meet_at_ports_of_their_own():
    steps = [{**STEP, "SLURM_JOB_ID": job, "SLURM_STEP_ID": step} for job in ("7", "29") for step in ("0", "1")]
    ports = {int(launcher_variables(step)["MASTER_PORT"]) for step in steps}
    assert len(ports) == 4 and all(1024 < port < 32768 for port in ports)


def test_without_the_launching_node_ranks_meet_at_the_first_of_the_list():
    step = {name: value for name, value in STEP.items() if name != "SLURM_LAUNCH_NODE_IPADDR"}
    assert launcher_variables(step)["MASTER_ADDR"] == "gpu03"
    assert launcher_variables({**step, "MASTER_ADDR": "head", "MASTER_PORT": "7"}).items() >= {
        ("MASTER_ADDR", "head"),
        ("MASTER_PORT", "7"),
    }


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node7", "node7"), ("a,b", "a"), ("gpu[03-05,9],login1", "gpu03"), ("r[1-2]n[07,09]-ib,x", "r1n07-ib")],
)
def test_the_first_host_of_slurms_list(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    "change",
    [
        {"RANK": "0", "WORLD_SIZE": "2"},  # torchrun, started by srun
        {"SLURM_NTASKS": "1"},
        {"SLURM_PROCID": ""},  # a shell started by salloc
        {"SLURM_STEP_ID": None, "ENVIRONMENT": "BATCH"},  # the batch script itself
    ],
)
def test_under_a_launcher_or_outside_of_a_step_slurms_variables_are_ignored(change):
    environment = {name: value for name, value in {**STEP, **change}.items() if value is not None}
    assert launcher_variables(environment) == {}


@pytest.mark.parametrize(("num_gpus", "device"), [(1, "cuda:0"), (4, "cuda:1"), (0, "cpu")])
def test_a_rank_of_slurm_takes_its_own_gpu_or_the_only_one_it_sees(monkeypatch, num_gpus, device):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    world = read_world()
    assert (world.rank, world.size, world.local_rank, world.device) == (5, 8, 1, torch.device(device))
    assert world.num_sharing_cpus == 4
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "16")
    assert read_world().num_sharing_cpus == 1, "its CPUs are its own"


def test_of_two_ranks_that_claim_one_gpu_the_first_is_known():
    store = torch.distributed.HashStore()
    assert first_to_claim(store, "host GPU-1", 0) == 0
    assert first_to_claim(store, "host GPU-2", 1) == 1
    assert first_to_claim(store, "host GPU-1", 2) == 0
