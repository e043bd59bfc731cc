"""Translate Slurm's variables to a launcher's, so that `srun diptych train CONFIG` needs no other launcher."""

from __future__ import annotations

import re
from collections.abc import Mapping

FIRST_PORT, NUM_PORTS = 15000, 15000
"""A range below the ports that systems assign to outgoing connections."""


def launcher_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a launcher would set for this task of a job step; empty outside of a step or under a launcher.

    The ranks meet at the node on which `srun` was called, which in a batch job is the first node. The port is computed
    from the numbers of job and step. A MASTER_ADDR or MASTER_PORT that the user set is kept.
    """
    if any(environment.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return {}
    rank, size, local_rank = (environment.get(f"SLURM_{name}", "") for name in ("PROCID", "NTASKS", "LOCALID"))
    is_batch_script = environment.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in environment
    if not (rank.isdigit() and size.isdigit() and local_rank.isdigit()) or int(size) < 2 or is_batch_script:
        return {}
    numbers = [environment.get(f"SLURM_{name}", "") for name in ("JOB_ID", "STEP_ID")]
    port = FIRST_PORT + sum(int(number) for number in numbers if number.isdigit()) % NUM_PORTS
    variables = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": local_rank,
        "LOCAL_WORLD_SIZE": str(_tasks_on_this_node(environment)),
        "MASTER_ADDR": environment.get("SLURM_LAUNCH_NODE_IPADDR") or first_host(_nodes(environment)),
        "MASTER_PORT": str(port),
    }
    return {name: environment.get(name) or value for name, value in variables.items()}


def first_host(nodes: str) -> str:
    """The first host of a list of Slurm's, where rank 0 runs: `gpu03` of `gpu[03-05,9],login1`."""
    name = re.match(r"[^,\[]*(?:\[[^\]]*\][^,\[]*)*", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", name[0]) if name else ""


def _nodes(environment: Mapping[str, str]) -> str:
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    return next((environment[name] for name in names if environment.get(name)), "127.0.0.1")


def _tasks_on_this_node(environment: Mapping[str, str]) -> int:
    """Tasks on this node, from a list such as `4(x2),3`: four tasks on each of two nodes, three on the next."""
    listed = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or "1"
    counts = [
        int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed) for _ in range(int(times or 1))
    ]
    node = environment.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else 1
