import dataclasses
import math
import re

import pytest
from asking import Asked
from torch import nn

from scaler.batch import BatchPlan
from scaler.errors import ClusterFailed, ScalerError, WorkloadError
from scaler.measure.evidence import Evidence
from scaler.probe.convergence import ConvergenceRequest, probe_convergence
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.probe.throughput import ThroughputRequest, probe_throughput
from scaler.probe.workload import WorkloadRequest, probe_workload
from scaler.runs import RunFolder
from scaler.runtime.local import LocalRuntime
from scaler.runtime.protocol import Failure, Outcome, Task

PLAN = BatchPlan.equal(8, 1, 1)
SIZES = Task(probe_workload, WorkloadRequest())
PEAKS = [Task(probe_memory, MemoryRequest(BatchPlan.equal(2**k, 1, 1))) for k in range(4)]
TRIAL = Task(probe_convergence, ConvergenceRequest(PLAN, 0.01, 0, 64, 0))
TOO_LARGE = Task(probe_memory, MemoryRequest(BatchPlan.equal(1000, 1, 1)))


class Failing:
    """A runtime in which every task fails the same way."""

    workers = 2

    def __init__(self, kind):
        self._failure = Failure(kind, "as it must", trace="trace of it")

    def run(self, tasks):
        for task in tasks:
            yield Outcome(task, failure=self._failure)


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "run")


@pytest.fixture
def runtime(tiny, cluster):
    return Asked(LocalRuntime(cluster(), tiny()))


def keys(items):
    return [item.task if hasattr(item, "seed") else item.key for item in items]


def test_every_question_is_asked_once(run, runtime):
    evidence = Evidence(runtime, run, None)
    assert keys(evidence.ask("memory", PEAKS[:2])) == keys(PEAKS[:2])
    again = evidence.ask("memory", [PEAKS[1], PEAKS[2], PEAKS[1], PEAKS[0]])
    assert keys(again) == keys([PEAKS[1], PEAKS[2], PEAKS[1], PEAKS[0]])
    assert keys(runtime.tasks) == keys(PEAKS[:3])
    assert keys(run.records()) == keys(evidence.records) == keys(PEAKS[:3])


def test_an_answer_is_on_disk_when_the_next_is_taken(run, runtime):
    evidence = Evidence(runtime, run, None)
    seen = []
    original = run.append
    run.append = lambda record: (seen.append(len(runtime.tasks)), original(record))
    evidence.ask("memory", PEAKS)
    assert seen == [1, 2, 3, 4]


def test_a_run_is_resumed_without_asking_again(run, runtime):
    first = Evidence(runtime, run, None).ask("memory", PEAKS)
    runtime.tasks.clear()
    resumed = Evidence(runtime, RunFolder(run.path), None)
    assert resumed.ask("memory", PEAKS) == first
    assert runtime.tasks == []
    resumed.ask("memory", [*PEAKS, SIZES])
    assert runtime.tasks == [SIZES]
    assert len(run.records()) == 5


@pytest.mark.parametrize("budget_s", [0.0, -1.0])
def test_without_a_budget_left_nothing_is_asked(run, runtime, budget_s):
    evidence = Evidence(runtime, run, budget_s)
    assert evidence.out_of_budget()
    assert evidence.ask("memory", PEAKS) == []
    assert runtime.tasks == []
    assert run.records() == []


def test_what_is_answered_costs_no_budget(run, runtime):
    answers = Evidence(runtime, run, None).ask("memory", PEAKS[:2])
    assert Evidence(runtime, run, 0.0).ask("memory", PEAKS) == answers


def test_the_budget_bounds_the_trials_and_only_them(run, runtime):
    evidence = Evidence(runtime, run, 1000.0)
    assert not evidence.out_of_budget()
    evidence.ask("convergence", [TRIAL, PEAKS[0]])
    trial, peak = runtime.tasks
    assert 0 < trial.request.time_limit_s <= 1000.0
    assert trial.key == TRIAL.key
    assert peak == PEAKS[0]
    runtime.tasks.clear()
    unbounded = dataclasses.replace(TRIAL, request=dataclasses.replace(TRIAL.request, seed=1))
    Evidence(runtime, run, None).ask("convergence", [unbounded])
    assert runtime.tasks[0].request.time_limit_s == math.inf


def test_a_trial_that_the_deadline_cut_short_is_no_answer(run, tiny, cluster):
    class Late(Asked):
        def run(self, tasks):
            for task in tasks:
                request = dataclasses.replace(task.request, time_limit_s=0.0)
                yield from super().run([dataclasses.replace(task, request=request)])

    local = LocalRuntime(cluster(), tiny())
    late = Late(local)
    evidence = Evidence(late, run, 1000.0)
    assert evidence.ask("convergence", [TRIAL]) == []
    assert [record.stop for record in run.records()] == ["deadline"]  # kept as seen, not as an answer

    resumed = Asked(local)
    found = Evidence(resumed, RunFolder(run.path), None).ask("convergence", [TRIAL])
    assert keys(resumed.tasks) == [TRIAL.key]
    assert [record.stop for record in found] == ["limit"]
    resumed.tasks.clear()
    assert Evidence(resumed, RunFolder(run.path), None).ask("convergence", [TRIAL]) == found
    assert resumed.tasks == []


def test_what_was_answered_before_a_failure_is_kept(run, runtime):
    evidence = Evidence(runtime, run, None)
    with pytest.raises(WorkloadError, match="a global batch of 1000"):
        evidence.ask("memory", [PEAKS[0], PEAKS[1], TOO_LARGE, PEAKS[2]])
    assert keys(run.records()) == keys(PEAKS[:2])
    assert keys(runtime.tasks) == keys([*PEAKS[:2], TOO_LARGE])


def test_a_sharded_engine_that_ran_out_is_an_answer_about_memory(run):
    task = Task(probe_memory, MemoryRequest(BatchPlan.equal(8, 1, 2, zero_stage=3)), 2, whole_group=True)
    (record,) = Evidence(Failing("out_of_memory"), run, None).ask("memory", [task])
    assert record.out_of_memory
    assert record.task == task.key
    assert run.records() == [record]


@pytest.mark.parametrize(
    ("kind", "task", "error"),
    [
        ("out_of_memory", Task(probe_throughput, ThroughputRequest(PLAN)), ScalerError),
        ("workload", PEAKS[0], WorkloadError),
        ("peer", PEAKS[0], ClusterFailed),
        ("fault", PEAKS[0], ScalerError),
    ],
)
def test_any_other_failure_ends_the_run(run, kind, task, error):
    with pytest.raises(error) as caught:
        Evidence(Failing(kind), run, None).ask("memory", [task])
    assert type(caught.value) is error
    assert run.records() == []


def test_progress_counts_each_phase(run, runtime):
    seen = []
    evidence = Evidence(runtime, run, None, lambda *progress: seen.append(progress))
    evidence.ask("memory", PEAKS[:2], expected=3)
    evidence.ask("workload", [SIZES])
    evidence.ask("memory", PEAKS, expected=3)
    assert seen[0] == ("memory", 0, 3)
    done = [progress for progress in seen if progress[0] == "memory"]
    assert [d for _, d, _ in done] == sorted(d for _, d, _ in done)
    assert all(d <= total for _, d, total in seen)
    assert done[-1][1] == done[-1][2]
    assert ("workload", 1, 1) in seen


def test_what_is_spent_and_left_is_said_at_each_phase(run, runtime):
    said = []
    evidence = Evidence(runtime, run, 7200.0, notice=said.append)
    evidence.ask("workload", [SIZES])
    assert said == []
    evidence.ask("memory", PEAKS[:1])
    evidence.ask("memory", PEAKS[:2])
    (line,) = said
    assert re.fullmatch(
        r".+ spent, .+ device-hours; (2h00m|1h59m\d*s?) of the budget left; next: memory", line
    )


def test_a_budget_may_be_set_later_and_only_shrinks(run, runtime):
    evidence = Evidence(runtime, run, None)
    assert math.isinf(evidence.left_s())
    evidence.limit_to(100.0)
    evidence.limit_to(1000.0)
    assert 90 < evidence.left_s() <= 100


def test_a_model_with_a_lambda_is_no_hindrance_in_process(run, tiny, cluster):
    workload = tiny(model=lambda: nn.Linear(4, 1))
    (record,) = Evidence(LocalRuntime(cluster(), workload), run, None).ask("workload", [SIZES])
    assert record.parameters == 5
