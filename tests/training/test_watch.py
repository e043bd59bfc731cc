"""How long a step may take."""

from pathlib import Path

from diptych.config.schema import MachineConfig
from diptych.data.loader_processes import LoaderProcesses
from diptych.run_dir import RunDir
from diptych.training.watch import Watch
from diptych.world import World


def test_the_first_two_steps_of_a_stage_have_the_time_of_the_first_two_of_a_run(tmp_path: Path):
    watch = Watch(RunDir(tmp_path), World(), MachineConfig(), LoaderProcesses(0))

    def limits_of_steps() -> list[float]:
        limits = []
        for _ in range(3):
            watch.enter("step", 0)
            limits.append(watch._limit())
            watch.enter("batch", 0)
        return limits

    assert limits_of_steps() == [600, 600, 90]
    watch._shortest_step = 1000.0  # a step may take three times as long as the shortest
    assert watch._limit() == 3000
    watch.expect_other_steps()
    assert limits_of_steps() == [600, 600, 90]
