"""The in-process runtime and the replay of a recorded run."""

import gc
import weakref

import pytest
import torch
from torch import nn

from scaler.batch import BatchPlan
from scaler.device import Device
from scaler.engine.clock import StepClock
from scaler.errors import BadInput, ClusterFailed, WorkloadError
from scaler.probe.convergence import ConvergenceRequest, probe_convergence
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.probe.noise import NoiseRequest, probe_noise
from scaler.probe.throughput import ThroughputRequest, probe_throughput
from scaler.probe.workload import WorkloadRequest, probe_workload
from scaler.runtime.local import LocalRuntime
from scaler.runtime.protocol import Failure, Rank, Task
from scaler.runtime.replay import ReplayRuntime
from scaler.runtime.serve import perform, settle

PLAN = BatchPlan.equal(8, 1, 1)
SIZES = Task(probe_workload, WorkloadRequest())
PEAK = Task(probe_memory, MemoryRequest(PLAN))
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:7"


# What a rank replies


def raising(error):
    def probe(rank, subject, request):
        raise error

    return probe


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (WorkloadError("loss() raised", "look there"), "workload", "loss() raised"),
        (BadInput("too few examples", "use more"), "workload", "too few examples"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out_of_memory", "CUDA out of memory."),
        (torch.distributed.DistBackendError("NCCL error"), "peer", "DistBackendError: NCCL error"),
        (torch.distributed.DistNetworkError("reset"), "peer", "DistNetworkError: reset"),
        (RuntimeError(GLOO), "peer", f"RuntimeError: {GLOO}"),
        (RuntimeError("shape mismatch"), "fault", "RuntimeError: shape mismatch"),
        (ZeroDivisionError("division"), "fault", "ZeroDivisionError: division"),
    ],
)
def test_whatever_a_probe_raises_becomes_a_failure(rank, error, kind, message):
    failure = perform(rank, raising(error), None, None)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.message) == (kind, message)
    assert failure.hint == getattr(error, "hint", "")
    assert type(error).__name__ in failure.trace
    assert "raise error" in failure.trace


def test_a_keyboard_interrupt_is_not_caught(rank):
    with pytest.raises(KeyboardInterrupt):
        perform(rank, raising(KeyboardInterrupt()), None, None)


@pytest.mark.parametrize("error", [RuntimeError("x"), torch.OutOfMemoryError("x"), BadInput("x")])
def test_no_tensor_of_a_failed_probe_stays_alive(rank, error):
    alive = []

    def deeper(tensor):
        doubled = tensor * 2
        alive.append(weakref.ref(doubled))
        raise error.with_traceback(None)

    def probe(rank, subject, request):
        tensor = torch.ones(10)
        ring = [tensor]
        ring.append(ring)  # only a garbage collection frees it
        alive.append(weakref.ref(tensor))
        deeper(tensor)

    failure = perform(rank, probe, None, None)
    error.__traceback__ = None  # the test's own reference
    assert isinstance(failure, Failure)
    assert [ref() for ref in alive] == [None, None]


def test_no_tensor_stays_alive_through_the_cause_of_an_error(rank, tiny):
    alive = []

    def loss(net, batch):
        out = net(batch[0])
        alive.append(weakref.ref(out))
        raise LookupError("no column")

    failure = perform(rank, probe_throughput, tiny(loss=loss), ThroughputRequest(PLAN))
    assert failure.kind == "workload"
    assert alive[0]() is None


class SelfAware(nn.Module):
    """Holds itself in a circle, as networks with parent pointers do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.linear.owner = [self]

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("cpu", lambda: nn.Linear(4, 1)),
        ("cuda", SelfAware),  # where what stays would be in the next peak, a circle has to go too
    ],
)
@pytest.mark.parametrize(
    ("probe", "request_"),
    [
        (probe_workload, WorkloadRequest()),
        (probe_memory, MemoryRequest(PLAN)),
        (probe_throughput, ThroughputRequest(PLAN)),
        (probe_noise, NoiseRequest(BatchPlan.equal(4, 2, 1), 0.01, 2)),
        (probe_convergence, ConvergenceRequest(PLAN, 0.01, 0, 64, 0)),
    ],
)
def test_nothing_of_a_probe_that_answered_stays_in_memory(tiny, monkeypatch, probe, request_, kind, model):
    monkeypatch.setattr("scaler.probe.throughput.step_clock", lambda device: StepClock())
    alive = []
    rank = Rank(0, 1, Device(kind, None))  # on the CPU, whatever it is called

    def build():
        net = model()
        alive.extend(weakref.ref(parameter) for parameter in net.parameters())
        return net

    gc.disable()
    try:
        record = perform(rank, probe, tiny(model=build), request_)
    finally:
        gc.enable()
    assert not isinstance(record, Failure)
    assert [ref() for ref in alive] == [None, None]


# What several ranks come to

KINDS = ("workload", "out_of_memory", "fault", "peer")


@pytest.mark.parametrize(
    ("kinds", "settled"),
    [
        (("peer", "workload"), "workload"),
        (("peer", "peer", "out_of_memory"), "out_of_memory"),
        (("fault", "peer"), "fault"),
        (("fault", "out_of_memory"), "out_of_memory"),
        (("out_of_memory", "workload", "fault"), "workload"),
        (("peer", "peer"), "peer"),
    ],
)
def test_the_cause_is_preferred_to_the_peers_it_took_down(kinds, settled):
    failures = [Failure(kind, f"on rank {number}") for number, kind in enumerate(kinds)]
    for order in (failures, failures[::-1]):
        assert settle(list(order)).kind == settled


@pytest.mark.parametrize("kind", KINDS)
def test_one_failure_outweighs_every_record(tiny, ask, kind):
    record = ask(tiny(), probe_workload, WorkloadRequest())
    failure = Failure(kind, "x")
    assert settle([record, failure]) is failure
    assert settle([failure, record]) is failure


def test_the_record_of_rank_0_is_kept(tiny, ask):
    first = ask(tiny(), probe_workload, WorkloadRequest(seed=1))
    second = ask(tiny(), probe_workload, WorkloadRequest(seed=2))
    assert settle([first, second]) is first


# In this process


def test_tasks_are_answered_in_order_and_a_failure_does_not_stop_them(tiny, cluster):
    too_large = Task(probe_memory, MemoryRequest(BatchPlan.equal(1000, 1, 1)))
    with LocalRuntime(cluster(), tiny()) as runtime:
        assert runtime.workers == 1
        outcomes = list(runtime.run([SIZES, too_large, PEAK]))
    assert [outcome.task for outcome in outcomes] == [SIZES, too_large, PEAK]
    assert [outcome.record is None for outcome in outcomes] == [False, True, False]
    assert [outcome.failure is None for outcome in outcomes] == [True, False, True]
    assert outcomes[1].failure.kind == "workload"
    assert outcomes[0].record.task == SIZES.key


def test_tasks_are_taken_one_at_a_time(tiny, cluster):
    taken = []

    def tasks():
        for task in (SIZES, PEAK):
            taken.append(task)
            yield task

    outcomes = LocalRuntime(cluster(), tiny()).run(tasks())
    next(outcomes)
    assert taken == [SIZES]


def test_one_process_is_one_worker(tiny, cluster):
    with pytest.raises(BadInput, match="has at least 2 workers; in-process there is one"):
        LocalRuntime(cluster(workers=2), tiny())
    runtime = LocalRuntime(cluster(workers=(1, 4)), tiny())
    with pytest.raises(BadInput, match="needs 2 workers"):
        list(runtime.run([Task(probe_memory, MemoryRequest(BatchPlan.equal(8, 1, 2)), 2)]))


def test_the_device_is_the_clusters(tiny, ask, cluster, monkeypatch):
    record = ask(tiny(), probe_memory, MemoryRequest(PLAN), kind="mock", device_memory="3MiB")
    assert record.capacity_bytes == 3 * 2**20
    assert record.environment.device == "mock"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ClusterFailed):
        LocalRuntime(cluster(kind="cuda"), tiny())


def test_a_mock_device_is_measured_with_its_copies(tiny, rank):
    """Each batch takes device memory on a mock device, and none on a CPU."""
    plan = BatchPlan.equal(64, 1, 1)
    on_cpu = perform(rank, probe_memory, tiny(), MemoryRequest(plan))
    on_mock = perform(Rank(0, 1, Device("mock", 2**20)), probe_memory, tiny(), MemoryRequest(plan))
    assert on_mock.peak_bytes > on_cpu.peak_bytes


# From a recorded run


@pytest.fixture
def recorded(tiny, cluster):
    return [outcome.record for outcome in LocalRuntime(cluster(), tiny()).run([SIZES, PEAK])]


def test_a_replay_gives_the_recorded_answers(recorded):
    with ReplayRuntime(recorded, workers=4) as runtime:
        assert runtime.workers == 4
        outcomes = list(runtime.run([PEAK, SIZES, PEAK]))
    assert [outcome.task for outcome in outcomes] == [PEAK, SIZES, PEAK]
    assert [outcome.record for outcome in outcomes] == [recorded[1], recorded[0], recorded[1]]
    assert all(outcome.failure is None for outcome in outcomes)


def test_a_replay_refuses_what_was_not_asked(recorded):
    runtime = ReplayRuntime(recorded, workers=1)
    unasked = Task(probe_memory, MemoryRequest(BatchPlan.equal(9, 1, 1)))
    outcomes = runtime.run([SIZES, unasked])
    assert next(outcomes).record == recorded[0]
    with pytest.raises(BadInput, match="the recorded run has no answer to probe_memory") as caught:
        next(outcomes)
    assert unasked.key in caught.value.message
