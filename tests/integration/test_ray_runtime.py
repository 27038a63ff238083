"""The Ray runtime on a real Ray cluster on the loopback, with real worker processes."""

from collections.abc import Iterator

import pytest
import questions
from questions import Question, ask

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.errors import ClusterFailed
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.probe.noise import NoiseRequest, probe_noise
from scaler.probe.throughput import ThroughputRequest, probe_throughput
from scaler.records import MemoryRecord, NoiseRecord, ThroughputRecord
from scaler.runtime.protocol import Outcome, Task
from scaler.runtime.ray import RayRuntime

pytestmark = pytest.mark.integration

CLUSTER = Cluster(name="two", workers=(1, 2), kind="mock", device_memory_bytes=2**26)


@pytest.fixture(scope="module")
def runtime() -> Iterator[RayRuntime]:
    with RayRuntime(CLUSTER, questions.workload) as found:
        yield found


def times(outcome: Outcome) -> tuple[float, ...]:
    assert isinstance(outcome.record, ThroughputRecord), outcome.failure
    return outcome.record.step_times_s


def test_tasks_of_one_rank_run_side_by_side(runtime: RayRuntime) -> None:
    first, second = (times(o) for o in runtime.run([Task(ask, Question(1)), Task(ask, Question(2))]))
    assert first[3] != second[3], "both ran in one process"
    assert max(first[1], second[1]) < min(first[2], second[2]), "they did not overlap"


def test_a_task_of_two_ranks_has_a_group_of_its_own(runtime: RayRuntime) -> None:
    (outcome,) = runtime.run([Task(ask, Question(3), workers=2)])
    assert times(outcome)[0] == 2


def test_mixed_tasks_all_come_back(runtime: RayRuntime) -> None:
    tasks = [Task(ask, Question(10 + i), workers=1 + i % 2) for i in range(5)]
    outcomes = {o.task.key: times(o)[0] for o in runtime.run(tasks)}
    assert outcomes == {task.key: task.workers for task in tasks}


@pytest.mark.parametrize("on_rank", [0, 1])
def test_memory_that_runs_out_on_one_rank_frees_the_other(runtime: RayRuntime, on_rank: int) -> None:
    (outcome,) = runtime.run([Task(ask, Question(20, "memory", on_rank), workers=2)])
    assert outcome.failure is not None and outcome.failure.kind == "out_of_memory"
    (after,) = runtime.run([Task(ask, Question(21 + on_rank), workers=2)])
    assert times(after)[0] == 2


def test_a_failure_names_the_cause_and_not_the_lost_peer(runtime: RayRuntime) -> None:
    (outcome,) = runtime.run([Task(ask, Question(30, "no such column", on_rank=1), workers=2)])
    assert outcome.failure is not None
    assert outcome.failure.kind == "fault" and "no such column" in outcome.failure.message


def test_data_parallel_probes_give_their_records(runtime: RayRuntime) -> None:
    plan = BatchPlan(micro_batches=(17, 16))
    tasks = [
        Task(probe_memory, MemoryRequest(plan), 2),
        Task(probe_throughput, ThroughputRequest(plan, time_limit_s=0.1), 2),
        Task(probe_noise, NoiseRequest(BatchPlan.equal(16, 1, 2), 0.1, steps=10), 2),
    ]
    memory, throughput, noise = (o.record for o in runtime.run(tasks))
    assert isinstance(memory, MemoryRecord) and memory.peak_bytes
    assert isinstance(throughput, ThroughputRecord) and len(throughput.step_times_s) >= 6
    assert isinstance(noise, NoiseRecord) and noise.small_batch == 16
    # Half a batch is noisier than the whole: its squared norm is larger on average.
    assert sum(noise.small_squared_norms) > sum(noise.big_squared_norms)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_sharded_engine_gets_a_worker_group_of_its_size(runtime: RayRuntime, workers: int) -> None:
    plan = BatchPlan.equal(8, 2, workers, zero_stage=2)
    tasks = [
        Task(probe_memory, MemoryRequest(plan), workers, whole_group=True),
        Task(probe_throughput, ThroughputRequest(plan, time_limit_s=0.1), workers, whole_group=True),
    ]
    memory, throughput = (o.record for o in runtime.run(tasks))
    assert isinstance(memory, MemoryRecord) and memory.peak_bytes
    assert isinstance(throughput, ThroughputRecord)


def test_servers_listen_on_the_loopback_only(runtime: RayRuntime) -> None:
    import ray

    assert all(node["NodeManagerAddress"].startswith("127.") for node in ray.nodes())


def test_a_killed_worker_ends_the_run_with_one_message(runtime: RayRuntime) -> None:
    """The last test here: nothing is left of the runtime afterwards."""
    with pytest.raises(ClusterFailed, match="the worker group ended") as raised:
        list(runtime.run([Task(ask, Question(40, "kill"), workers=2)]))
    assert raised.value.exit_code == 5 and "--resume" in raised.value.hint
