"""The questions, asked in this process."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.errors import BadInput
from scaler.probe.convergence import ConvergenceRequest, probe_confirmation, probe_convergence
from scaler.probe.memory import MemoryRequest, out_of_memory_record, probe_memory
from scaler.probe.noise import NoiseRequest, probe_noise
from scaler.probe.prediction import PredictionRequest, probe_prediction
from scaler.probe.throughput import ThroughputRequest, probe_throughput
from scaler.probe.workload import WorkloadRequest, probe_workload
from scaler.records import (
    ConfirmationRecord,
    ConvergenceRecord,
    MemoryRecord,
    NoiseRecord,
    Prediction,
    PredictionRecord,
    ThroughputRecord,
    WorkloadRecord,
)
from scaler.runtime.protocol import Task
from scaler.trace.shape import Shape
from scaler.workload import Reference, Target, load_workload

PLAN = BatchPlan.equal(8, 1, 1)
PASSES = BatchPlan.equal(4, 2, 1)
TRIAL = ConvergenceRequest(PLAN, 0.05, 0, 640, seed=0)


@pytest.mark.parametrize(
    ("probe", "request_", "kind"),
    [
        (probe_workload, WorkloadRequest(seed=1), WorkloadRecord),
        (probe_memory, MemoryRequest(PLAN, seed=2), MemoryRecord),
        (probe_throughput, ThroughputRequest(PLAN, seed=3), ThroughputRecord),
        (probe_noise, NoiseRequest(PASSES, 0.01, 3, seed=4), NoiseRecord),
        (probe_convergence, ConvergenceRequest(PLAN, 0.01, 0, 64, seed=5), ConvergenceRecord),
        (probe_confirmation, ConvergenceRequest(PLAN, 0.01, 0, 64, seed=6), ConfirmationRecord),
    ],
)
def test_every_probe_gives_its_record_under_its_key(tiny, ask, probe, request_, kind):
    record = ask(tiny(), probe, request_)
    assert type(record) is kind
    assert record.task == Task(probe, request_).key
    assert record.seed == request_.seed
    assert (record.environment.device, record.environment.world_size) == ("cpu", 1)
    if kind is not WorkloadRecord:
        assert record.plan == request_.plan


def test_the_sizes_are_those_of_the_workload(tiny, ask):
    def model():
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))

    record = ask(
        tiny(model=model, reference=Reference(8, 0.05, warmup_examples=16)), probe_workload, WorkloadRequest()
    )
    assert (record.name, record.train_examples, record.eval_examples) == ("tiny", 64, 32)
    assert record.parameters == 4 * 5 + 5 + 2 * 5 + 5 + 1
    assert record.batch_statistics == ("1",)
    assert (record.reference_global_batch, record.reference_learning_rate) == (8, 0.05)
    assert record.reference_warmup_examples == 16
    assert (record.target_value, record.target_direction) == (0.05, "min")
    assert ask(tiny(), probe_workload, WorkloadRequest()).batch_statistics == ()


# Memory


def test_memory_counts_parameters_gradients_state_and_activations(tiny, ask):
    def model():
        return nn.Sequential(nn.Linear(4, 1024), nn.Linear(1024, 1))

    adam = tiny(model=model, optimizer=lambda parameters, rate: torch.optim.AdamW(parameters, lr=rate))
    sgd = tiny(model=model)
    parameters = 4 * (4 * 1024 + 1024 + 1024 + 1)
    small = {w: ask(w, probe_memory, MemoryRequest(BatchPlan.equal(1, 1, 1))).peak_bytes for w in (adam, sgd)}
    # Two more copies for Adam's moments, beside what one update works with.
    assert small[sgd] >= 2 * parameters
    assert small[adam] >= small[sgd] + 2 * parameters
    large = ask(sgd, probe_memory, MemoryRequest(BatchPlan.equal(64, 1, 1))).peak_bytes
    assert large >= 2 * parameters + 63 * 1024 * 4


def test_memory_grows_with_the_micro_batch_not_with_the_passes(tiny, ask):
    workload = tiny(model=lambda: nn.Sequential(nn.Linear(4, 512), nn.Linear(512, 1)))
    peaks = [
        ask(workload, probe_memory, MemoryRequest(BatchPlan.equal(micro_batch, passes, 1))).peak_bytes
        for micro_batch, passes in ((8, 1), (32, 1), (8, 2), (8, 4))
    ]
    assert peaks[0] < peaks[1]
    assert peaks[0] <= peaks[2] == peaks[3]  # gradients live through the second pass


def test_memory_is_measured_the_same_again(tiny, ask):
    first, second = (ask(tiny(), probe_memory, MemoryRequest(PLAN)) for _ in range(2))
    assert first.peak_bytes == second.peak_bytes


def test_out_of_budget_is_a_record_without_a_peak(tiny, ask):
    workload = tiny(model=lambda: nn.Sequential(nn.Linear(4, 4096), nn.Linear(4096, 1)))
    needed = ask(workload, probe_memory, MemoryRequest(PLAN), kind="mock", device_memory="64MiB")
    assert needed.peak_bytes
    assert not needed.out_of_memory
    record = ask(
        workload, probe_memory, MemoryRequest(PLAN), kind="mock", device_memory=needed.peak_bytes - 512
    )
    assert record.out_of_memory
    assert record.peak_bytes is None
    assert record.capacity_bytes == needed.peak_bytes - 512
    enough = ask(workload, probe_memory, MemoryRequest(PLAN), kind="mock", device_memory=needed.peak_bytes)
    assert enough.peak_bytes == needed.peak_bytes


def test_the_worst_case_is_what_memory_is_measured_with(tiny, ask):
    asked = []

    def worst_case(micro_batch):
        asked.append(micro_batch)
        return torch.ones(micro_batch, 1000, 4), torch.ones(micro_batch, 1000, 1)

    usual = ask(tiny(), probe_memory, MemoryRequest(PASSES)).peak_bytes
    worst = ask(tiny(worst_case=worst_case), probe_memory, MemoryRequest(PASSES)).peak_bytes
    assert asked == [4]
    assert worst > usual + 4 * 1000 * 4


def test_the_record_of_a_task_that_could_not_report(tiny):
    task = Task(
        probe_memory, MemoryRequest(BatchPlan.equal(8, 1, 2, zero_stage=3), seed=4), 2, whole_group=True
    )
    record = out_of_memory_record(task)
    assert (record.task, record.seed, record.plan) == (task.key, 4, task.request.plan)
    assert record.out_of_memory
    assert record.peak_bytes is None
    assert record.environment.world_size == 2


def test_a_peak_is_given_of_every_rank(tiny, ask):
    record = ask(tiny(), probe_memory, MemoryRequest(PLAN), kind="mock", device_memory="64MiB")
    assert record.rank_peak_bytes == (record.peak_bytes,)
    assert (record.capacity_bytes, record.retries, record.too_large) == (64 * 2**20, 0, False)
    assert (record.outside_bytes, record.in_use_bytes) == (None, None)  # CUDA's, and a failure's


def test_out_of_memory_tells_what_was_in_use(tiny, ask):
    def model():
        return nn.Sequential(*(nn.Linear(4, 4) if k % 2 else nn.Tanh() for k in range(16)), nn.Linear(4, 1))

    def asked(capacity):
        request = MemoryRequest(BatchPlan.equal(64, 1, 1))
        return ask(tiny(model=model), probe_memory, request, kind="mock", device_memory=capacity)

    needed = asked(2**20).peak_bytes
    in_use = []
    for missing in (512, 4096, 8192):
        record = asked(needed - missing)
        assert record.too_large
        assert record.rank_peak_bytes == ()
        assert needed - missing - 2048 <= record.in_use_bytes <= needed - missing
        in_use.append(record.in_use_bytes)
    assert in_use == sorted(in_use, reverse=True)


def test_concealed_bytes_are_in_the_peak(tiny, ask):
    bare = ask(tiny(), probe_memory, MemoryRequest(PLAN), kind="mock", device_memory="1MiB")
    biased = {"kind": "mock", "device_memory": "1MiB", "concealed": {"share": 0.08}}
    record = ask(tiny(), probe_memory, MemoryRequest(PLAN), **biased)
    assert record.peak_bytes == int(bare.peak_bytes * 1.08)


# The prediction


def request_of(**fields):
    cluster = Cluster(name="a", workers=2, kind="mock", device_memory_bytes=2**21)
    return PredictionRequest(**{"shapes": ((1, 0), (2, 0)), "largest": 512, "cluster": cluster} | fields)


def test_a_prediction_is_named_by_its_question_not_by_its_cluster():
    other = Cluster(name="b", workers=4, kind="cuda")
    key = Task(probe_prediction, request_of()).key
    assert key == Task(probe_prediction, request_of(cluster=other)).key
    assert "cluster" not in key and "mock" not in key
    assert '"shapes": [[1, 0], [2, 0]]' in key and '"largest": 512' in key
    for change in ({"shapes": ((1, 0),)}, {"largest": 513}, {"seed": 1}):
        assert Task(probe_prediction, request_of(**change)).key != key


@pytest.fixture
def predicted(monkeypatch):
    """What the tracing process is asked; it answers without a curve."""
    calls = []

    def answer(workload, cluster, shapes, largest):
        calls.append((cluster, shapes, largest))
        return Prediction(curves=(), confidence="low", notes=("not traced",))

    monkeypatch.setattr("scaler.probe.prediction.ask_prediction", answer)
    return calls


def test_a_prediction_is_asked_for_every_shape_in_one_pass_and_in_several(tiny, ask, predicted):
    request = request_of()
    record = ask(tiny(), probe_prediction, request)
    ((cluster, shapes, largest),) = predicted
    assert shapes == [Shape(n, 0, accumulating) for accumulating in (False, True) for n in (1, 2)]
    assert (cluster, largest) == (request.cluster, 512)
    assert type(record) is PredictionRecord
    assert (record.task, record.seed) == (Task(probe_prediction, request).key, 0)
    assert record.prediction == Prediction(curves=(), confidence="low", notes=("not traced",))


def test_a_device_says_what_its_cluster_leaves_out(tiny, rank, predicted):
    rank.device.capacity_bytes, rank.device.compute_capability = 24 * 2**30, 8.9
    bare = Cluster(name="bare", workers=1, kind="cuda")
    record = probe_prediction(rank, tiny(), request_of(cluster=bare))
    stated = bare.model_copy(update={"device_memory_bytes": 22 * 2**30})
    probe_prediction(rank, tiny(), request_of(cluster=stated))
    seen = [(cluster.capacity_bytes(), cluster.compute_capability) for cluster, _, _ in predicted]
    assert seen == [(24 * 2**30, 8.9), (22 * 2**30, 8.9)]
    assert record.capacity_bytes == 24 * 2**30


def test_a_predicted_peak_is_the_measured_one(ask):
    """On a mock device only the bytes of tensors count: these are exact."""
    here = {"kind": "mock", "device_memory": "2MiB"}
    digits = load_workload("digits")
    record = ask(digits, probe_prediction, request_of(), **here)
    assert (record.environment.device, record.capacity_bytes) == ("mock", 2**21)
    curves = {(c.workers, c.accumulating): c for c in record.prediction.curves}
    assert set(curves) == {(workers, accumulating) for workers in (1, 2) for accumulating in (False, True)}
    for accumulating in (False, True):
        known = curves[1, accumulating]
        assert (known.micro_batches[0], known.micro_batches[-1]) == (1, 512)
        for at in (0, len(known.micro_batches) // 2, -1):
            plan = BatchPlan.equal(known.micro_batches[at], 1 + accumulating, 1)
            assert ask(digits, probe_memory, MemoryRequest(plan), **here).peak_bytes == known.peak_bytes[at]


# Noise


def test_noise_keeps_both_norms_of_every_step(tiny, ask):
    record = ask(tiny(), probe_noise, NoiseRequest(PASSES, 0.01, 6))
    assert record.small_batch == 4
    assert len(record.small_squared_norms) == len(record.big_squared_norms) == 6
    assert all(norm > 0 for norm in record.small_squared_norms + record.big_squared_norms)


def test_noise_of_each_layer_and_of_adams_gradient(tiny, ask):
    def model():
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def adam(parameters, rate):
        return torch.optim.AdamW(parameters, lr=rate)

    record = ask(tiny(model=model, optimizer=adam), probe_noise, NoiseRequest(PASSES, 0.01, 10))
    assert list(record.groups) == ["0 (Linear)", "2 (Linear)"]
    big = [sum(norms) for norms in zip(*(g.big for g in record.groups.values()), strict=True)]
    assert big == pytest.approx(record.big_squared_norms)
    assert len(record.preconditioned.small) == 9  # the first step has no second moment yet


def test_noise_in_fp16_is_that_of_fp32(tiny, ask):
    half, full = (
        ask(tiny(precision=precision), probe_noise, NoiseRequest(PASSES, 1e-9, 20))
        for precision in ("fp16", "fp32")
    )
    assert len(half.big_squared_norms) == 20 - half.left_out_steps > 10
    steps = iter(full.big_squared_norms)  # the same steps in turn, but those that overflowed
    for norm in half.big_squared_norms:
        assert any(norm == pytest.approx(step, rel=0.02) for step in steps)


def test_noise_leaves_out_steps_whose_loss_is_nan(tiny, ask):
    def loss(net, batch):
        return (net(batch[0]) - batch[1]).square().mean() * (1 if batch[0][0, 0] > -1 else math.nan)

    record = ask(tiny(loss=loss), probe_noise, NoiseRequest(PASSES, 0.01, 5))
    assert record.left_out_steps > 0
    assert len(record.small_squared_norms) == 5 - record.left_out_steps


@pytest.mark.parametrize(
    ("plan", "why"),
    [(BatchPlan.equal(8, 1, 1), "two parts of a step"), (BatchPlan.equal(4, 2, 1, zero_stage=2), "ZeRO")],
)
def test_noise_refuses_a_plan_that_shows_one_gradient_or_shards_it(tiny, rank, plan, why):
    with pytest.raises(BadInput, match=why):
        probe_noise(rank, tiny(), NoiseRequest(plan, 0.01, 2))


# Training to the target


def steps_of(curve):
    return [(e.examples, e.metric) for e in curve]


def scripted(*values):
    """A metric with one value per evaluation of the 32 examples (the micro-batch is 8)."""
    values = iter(values)
    passes = itertools.count()
    state = {}

    def metric(net, batch):
        if next(passes) % 4 == 0:
            state["value"] = next(values)
        return state["value"]

    return metric


def test_the_target_is_reached_at_the_first_of_two_successive_evaluations(tiny, ask):
    metric = scripted(0.9, 0.05, 0.9, 0.04, 0.03)
    record = ask(tiny(metric=metric), probe_convergence, TRIAL)
    assert record.stop == "reached"
    assert record.reached
    assert [e.metric for e in record.curve] == [0.9, 0.05, 0.9, 0.04, 0.03]
    assert [e.examples for e in record.curve] == [32, 64, 96, 128, 160]
    assert (record.examples, record.steps) == (128, 16)


def test_the_target_may_be_a_maximum(tiny, ask):
    target = Target(0.9, "max", evaluate_every=32)
    record = ask(tiny(metric=scripted(0.95, 0.5, 0.9, 0.91), target=target), probe_convergence, TRIAL)
    assert (record.stop, record.examples) == ("reached", 96)


def test_at_the_limit_a_trial_is_censored(tiny, ask):
    request = ConvergenceRequest(PLAN, 0.05, 0, 100, seed=0)
    record = ask(tiny(metric=lambda net, batch: 1.0), probe_convergence, request)
    assert record.stop == "limit"
    assert not record.reached
    assert record.examples == record.curve[-1].examples == 128  # the evaluation at or after the limit
    assert record.steps == 16


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_stops_the_trial(tiny, ask, value):
    record = ask(tiny(metric=scripted(0.5, value)), probe_convergence, TRIAL)
    assert (record.stop, record.examples) == ("diverged", 64)
    assert [e.metric for e in record.curve] == [0.5, None]


@pytest.mark.parametrize("metric", [None, lambda net, batch: 1.0])
def test_a_hopeless_learning_rate_stops_early(tiny, ask, metric):
    fields = {} if metric is None else {"metric": metric}
    request = ConvergenceRequest(PLAN, 1e6, 0, 100_000, seed=0)
    record = ask(tiny(**fields), probe_convergence, request)
    assert record.stop == "diverged"
    assert record.examples <= 320


def test_at_the_deadline_a_trial_stops_after_one_evaluation(tiny, ask):
    request = ConvergenceRequest(PLAN, 0.001, 0, 100_000, seed=0, time_limit_s=0)
    record = ask(tiny(), probe_convergence, request)
    assert record.stop == "deadline"
    assert not record.reached
    assert len(record.curve) == 1
    assert record.examples == 32


def test_the_same_seed_trains_the_same_way(tiny, ask):
    def trial(**changes):
        fields = {"plan": PLAN, "learning_rate": 0.05, "warmup_examples": 0, "max_examples": 320, "seed": 3}
        return ask(tiny(), probe_convergence, ConvergenceRequest(**(fields | changes)))

    first = trial()
    assert steps_of(first.curve) == steps_of(trial().curve)
    assert steps_of(first.curve) != steps_of(trial(seed=4).curve)
    spread = trial(plan=BatchPlan.equal(2, 4, 1))
    assert [e.examples for e in spread.curve] == [e.examples for e in first.curve]
    assert [e.metric for e in spread.curve] == pytest.approx([e.metric for e in first.curve], abs=1e-5)


def test_a_real_training_reaches_its_target(tiny, ask):
    record = ask(tiny(), probe_convergence, TRIAL)
    assert record.stop == "reached"
    at = [e.examples for e in record.curve].index(record.examples)
    assert at == len(record.curve) - 2
    assert all(e.metric <= 0.05 for e in record.curve[at:])
    assert all(
        later.train_time_s > earlier.train_time_s for earlier, later in itertools.pairwise(record.curve)
    )
    assert (record.dataset_examples, record.learning_rate, record.warmup_examples) == (64, 0.05, 0)


def test_evaluations_are_never_closer_than_one_step(tiny, ask):
    request = ConvergenceRequest(BatchPlan.equal(24, 1, 1), 0.01, 0, 100, seed=0)
    often = tiny(target=Target(0.0, "min", evaluate_every=1))
    assert [e.examples for e in ask(often, probe_convergence, request).curve] == [24, 48, 72, 96, 120]
    quarter = tiny(target=Target(0.0, "min"))  # of an epoch: 16 examples
    found = ask(quarter, probe_convergence, ConvergenceRequest(PLAN, 0.01, 0, 60, seed=0))
    assert [e.examples for e in found.curve] == [16, 32, 48, 64]


def rates_of(tiny, ask, **fields):
    rates = []

    class Recording(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    workload = tiny(optimizer=lambda parameters, rate: Recording(parameters, lr=rate), **fields)
    ask(workload, probe_convergence, ConvergenceRequest(PLAN, 0.04, 32, 64, seed=0))
    return rates


def test_the_learning_rate_warms_up_in_examples_and_then_stays(tiny, ask):
    assert rates_of(tiny, ask) == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.04, 0.04, 0.04, 0.04])


def test_a_schedule_replaces_the_warm_up(tiny, ask):
    rates = rates_of(tiny, ask, schedule=lambda examples: 8 / examples)
    assert rates == pytest.approx([0.04 / step for step in range(1, 9)])


def test_a_confirmation_keeps_every_step_time(tiny, ask):
    record = ask(tiny(), probe_confirmation, TRIAL)
    trial = ask(tiny(), probe_convergence, TRIAL)
    assert steps_of(record.curve) == steps_of(trial.curve)
    assert (record.stop, record.examples) == (trial.stop, trial.examples)
    # One time per step taken, those after the target included.
    assert len(record.step_times_s) * PLAN.global_batch == record.curve[-1].examples
    assert sum(record.step_times_s) <= record.curve[-1].train_time_s


def test_the_metric_is_the_mean_over_the_held_out_data(tiny, ask):
    record = ask(tiny(), probe_convergence, ConvergenceRequest(PLAN, 1e-12, 0, 8, seed=0))
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    x, y = tiny().eval_data().tensors
    assert record.curve[0].metric == pytest.approx(F.mse_loss(net(x), y).item(), rel=1e-4)
