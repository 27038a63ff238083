import dataclasses
import math
import subprocess
import sys

import pytest

from scaler.batch import BatchPlan
from scaler.errors import BadInput, ClusterFailed, ScalerError, WorkloadError
from scaler.probe.convergence import ConvergenceRequest, probe_confirmation, probe_convergence
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.probe.noise import NoiseRequest, probe_noise
from scaler.probe.throughput import ThroughputRequest, probe_throughput
from scaler.probe.workload import WorkloadRequest, probe_workload
from scaler.runtime.protocol import Failure, Task

PLAN = BatchPlan.equal(8, 1, 2)
OTHERS = [
    BatchPlan.equal(4, 2, 2),
    BatchPlan.equal(8, 1, 2, zero_stage=1),
    BatchPlan.equal(16, 1, 1),
    BatchPlan(micro_batches=(9, 7)),
    BatchPlan(micro_batches=(7, 9)),
]
TRIAL = ConvergenceRequest(PLAN, 0.1, 0, 100, 0)
TASKS = [
    Task(probe_workload, WorkloadRequest()),
    Task(probe_memory, MemoryRequest(PLAN), 2),
    Task(probe_throughput, ThroughputRequest(PLAN), 2),
    Task(probe_noise, NoiseRequest(PLAN, 0.1, 10), 2),
    Task(probe_convergence, TRIAL, 2),
    Task(probe_confirmation, TRIAL, 2),
]


def name(task):
    return task.probe.__name__


def other(value):
    """Another value for a field of a request."""
    return OTHERS[0] if isinstance(value, BatchPlan) else value + 1


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_the_key_tells_every_compared_field_apart(task):
    fields = [f.name for f in dataclasses.fields(task.request) if f.compare]
    assert fields
    changed = [
        dataclasses.replace(task.request, **{field: other(getattr(task.request, field))}) for field in fields
    ]
    keys = {task.key} | {dataclasses.replace(task, request=request).key for request in changed}
    assert len(keys) == 1 + len(fields)
    assert dataclasses.replace(task, workers=task.workers + 1).key not in keys


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_the_key_is_the_same_for_an_equal_question(task):
    again = dataclasses.replace(task, request=dataclasses.replace(task.request))
    assert again.key == task.key
    assert "\n" not in task.key


def test_keys_differ_between_probes_and_plans():
    assert len({task.key for task in TASKS}) == len(TASKS)
    keys = {Task(probe_memory, MemoryRequest(plan), plan.workers).key for plan in [PLAN, *OTHERS]}
    assert len(keys) == 1 + len(OTHERS)


def test_the_time_limit_is_not_part_of_the_question():
    limited = dataclasses.replace(TRIAL, time_limit_s=3.0)
    assert TRIAL.time_limit_s == math.inf
    assert Task(probe_convergence, limited, 2).key == Task(probe_convergence, TRIAL, 2).key
    assert limited == TRIAL


def test_the_key_is_the_same_in_another_process():
    code = (
        "from scaler.batch import BatchPlan\n"
        "from scaler.probe.memory import MemoryRequest, probe_memory\n"
        "from scaler.runtime.protocol import Task\n"
        "print(Task(probe_memory, MemoryRequest(BatchPlan.equal(8, 1, 2)), 2).key)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == Task(probe_memory, MemoryRequest(PLAN), 2).key


@pytest.mark.parametrize(
    ("kind", "error", "exit_code"),
    [
        ("workload", WorkloadError, 2),
        ("peer", ClusterFailed, 5),
        ("out_of_memory", ScalerError, 1),
        ("fault", ScalerError, 1),
    ],
)
def test_a_failure_becomes_the_error_of_its_kind(kind, error, exit_code):
    found = Failure(kind, "what happened", "what to do", "Traceback: here").error(TASKS[1])
    assert type(found) is error
    assert found.exit_code == exit_code
    assert "what happened" in found.message
    assert found.hint
    if kind == "workload":
        assert (found.message, found.hint) == ("what happened", "what to do")
        assert isinstance(found, BadInput)
    else:
        assert TASKS[1].key in found.message
    if exit_code == 1:
        assert "Traceback: here" in "".join(found.__notes__)
