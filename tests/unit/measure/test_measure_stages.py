"""Which questions are asked, with the answers of real training in this process."""

import bisect
import functools

import numpy as np
import pytest
import torch
from asking import Asked, curve, untraced
from devices import Devices, SimulatedRuntime
from torch import nn
from torch.utils.data import TensorDataset

from scaler.batch import BatchPlan
from scaler.cluster import Cluster, ConcealedBias
from scaler.decide.plans import split_batch
from scaler.device import Device
from scaler.errors import BadInput, NothingFeasible
from scaler.fit.hinge import HingeFit
from scaler.fit.traced import TracedFit
from scaler.launch import LaunchConfig
from scaler.measure.evidence import Evidence
from scaler.measure.memory import measure_memory
from scaler.measure.stages import (
    ask_sizes,
    global_batches,
    measure,
    measure_noise,
    trial_plan,
)
from scaler.measure.throughput import measure_throughput
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.records import MemoryRecord, NoiseRecord, Prediction, PredictionRecord, ThroughputRecord
from scaler.runs import RunFolder
from scaler.runtime.local import LocalRuntime
from scaler.runtime.protocol import Rank, Task
from scaler.workload import Reference, Target

KIB = 1024


_HELD: dict[tuple, int] = {}


def true_held(workload, micro_batch, accumulation=1):
    """What a step truly takes on a device without an end; remembered by the model."""
    key = (workload.model, micro_batch, accumulation)
    if key not in _HELD:
        request = MemoryRequest(BatchPlan.equal(micro_batch, accumulation, 1))
        _HELD[key] = probe_memory(Rank(0, 1, Device("mock", None)), workload, request).peak_bytes
    return _HELD[key]


def true_curves(workload, request):
    """A right prediction: on the lines between a few sizes, what they truly take."""

    def curves():
        for passes in (1, 2):
            # The data bounds what two passes can take.
            sizes = sorted({round(size) for size in np.geomspace(1, request.largest // passes, 12)})
            held = functools.partial(true_held, workload, accumulation=passes)
            yield curve(held, sizes, accumulating=passes > 1)

    return Prediction(curves=tuple(curves()), confidence="high")


class Study:
    """A workload that is measured into one run folder, on one mock device, with or without a prediction."""

    def __init__(self, workload, launch, folder, predicted=False):
        folder.mkdir(exist_ok=True)
        self.workload, self.launch, self.run = workload, launch, RunFolder(folder)
        predict = functools.partial(true_curves, workload) if predicted else untraced
        self.runtime = Asked(LocalRuntime(launch.cluster, workload), predict)
        self.evidence = Evidence(self.runtime, self.run, None)

    def memory(self):
        sizes = ask_sizes(self.evidence)
        batches = global_batches(self.workload, self.launch, sizes)
        return measure_memory(self.evidence, self.launch, sizes, [1], batches)

    def peaks(self):
        """(micro-batch, accumulation, ran out), in the order asked."""
        records = [r for r in self.run.records() if isinstance(r, MemoryRecord)]
        return [(r.plan.micro_batch, r.plan.accumulation, r.out_of_memory) for r in records]

    def of(self, kind):
        return [r for r in self.run.records() if isinstance(r, kind)]

    def largest(self, most):
        """The largest micro-batch up to `most` that really fits in one pass."""
        sizes, capacity = range(1, most + 1), self.launch.cluster.capacity_bytes()
        return bisect.bisect_right(sizes, capacity, key=functools.partial(true_held, self.workload))

    def fits_device(self, plan):
        """Whether a plan really fits, asked behind the study's back."""
        with LocalRuntime(self.launch.cluster, self.workload) as runtime:
            (outcome,) = runtime.run([Task(probe_memory, MemoryRequest(plan))])
        return not outcome.record.out_of_memory


@pytest.fixture
def study(tiny, cluster, tmp_path):
    """A function (device_memory, launch fields, **workload fields) that starts a study."""

    def start(device_memory="64MiB", margin=0.0, launch=None, folder="run", predicted=False, **fields):
        device = cluster(kind="mock", device_memory=device_memory, margin=margin)
        config = LaunchConfig(
            workload="tiny", cluster=device, runtime="local", **({"seeds": 1} | (launch or {}))
        )
        return Study(tiny(**fields), config, tmp_path / folder, predicted)

    return start


def regression(examples):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, 4, generator=generator)
    return TensorDataset(x, x.sum(dim=1, keepdim=True))


def deep(width=16, layers=8):
    """Much memory per example, little for the parameters."""
    hidden = [layer for _ in range(layers) for layer in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(nn.Linear(4, width), *hidden, nn.Linear(width, 1))


def heavy():
    """Gradients are a third of what one example takes: accumulating needs room of its own."""
    return nn.Sequential(nn.Linear(4, 2048), nn.Tanh(), nn.Linear(2048, 1))


def thick():
    """Every example takes whole blocks of 512 bytes: peaks lie on a line, not on stairs."""
    return deep(width=128, layers=2)


DEEP = {"model": deep, "train_data": lambda: regression(1024), "reference": Reference(16, 0.05)}
THICK = DEEP | {"model": thick}


# Sizes and global batches


def test_the_first_question_is_the_workloads_sizes(study):
    here = study()
    assert ask_sizes(here.evidence).train_examples == 64
    assert ask_sizes(here.evidence).parameters == 5
    assert len(here.runtime.tasks) == 1


def test_a_pinned_plan_is_the_only_batch_and_has_to_find_enough_examples(study):
    pinned = study(launch={"plan": BatchPlan.equal(12, 2, 1)})
    assert global_batches(pinned.workload, pinned.launch, ask_sizes(pinned.evidence)) == [24]
    large = study(launch={"plan": BatchPlan.equal(33, 2, 1)}, folder="large")
    with pytest.raises(BadInput, match=r"33 \(micro-batch\) .* = 66 examples a step, and the .* has 64"):
        global_batches(large.workload, large.launch, ask_sizes(large.evidence))


# Memory


@pytest.mark.parametrize(("predicted", "kind"), [(True, TracedFit), (False, HingeFit)])
def test_memory_is_predicted_before_it_is_measured(study, predicted, kind):
    here = study(predicted=predicted, **THICK)
    fits = here.memory()
    assert [record.kind for record in here.run.records()[:3]] == ["workload", "prediction", "memory"]
    (record,) = here.of(PredictionRecord)
    assert bool(record.prediction.curves) is predicted
    (task,) = [task for task in here.runtime.tasks if task.key == record.task]
    assert (task.request.shapes, task.request.largest) == (((1, 0),), 1024)
    assert {type(fit) for fit in fits.values()} == {kind}


def test_with_memory_to_spare_one_predicted_probe_is_enough(study):
    here = study(predicted=True, **THICK)
    fits = here.memory()
    assert here.peaks() == [(1024, 1, False), (512, 2, False)]
    assert fits[0, 1].max_micro_batch(here.launch.cluster) == 1024


def test_with_memory_to_spare_the_climb_ends_at_the_largest_batch(study):
    here = study(**DEEP)
    here.memory()
    single = [m for m, accumulation, _ in here.peaks() if accumulation == 1]
    assert single == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert not any(out for _, _, out in here.peaks())
    passes = [m for m, accumulation, _ in here.peaks() if accumulation == 2]
    assert passes  # what accumulating adds, beside the same micro-batch in one pass
    assert set(passes) <= set(single)


@pytest.mark.parametrize("kib", [96, 200, 333, 1000])
def test_the_climb_finds_the_largest_micro_batch_that_fits(study, kib):
    here = study(device_memory=kib * KIB, **DEEP)
    fits = here.memory()
    truth = here.largest(1024)
    found = max(m for m, _, out in here.peaks() if not out)
    assert 0.9 * truth - 1 <= found <= truth
    predicted = min(1024, fits[0, 1].max_micro_batch(here.launch.cluster))
    assert 0.9 * truth - 1 <= predicted <= 1.05 * truth  # the margin, 0 here, covers an error of 5%
    assert fits[0, 1].capacity_bytes == kib * KIB


@pytest.mark.parametrize("kib", [600, 1000, 2500, 3333])
def test_few_probes_find_the_largest_micro_batch_that_was_predicted_to_fit(study, kib):
    here = study(device_memory=kib * KIB, predicted=True, **THICK)
    fits = here.memory()
    single = [(m, out) for m, accumulation, out in here.peaks() if accumulation == 1]
    assert len(single) <= 3
    assert sum(out for _, out in single) <= 1
    truth, chosen = here.largest(1024), fits[0, 1].max_micro_batch(here.launch.cluster)
    assert 0.99 * truth - 1 <= chosen <= truth
    assert fits[0, 1].capacity_bytes == kib * KIB


@pytest.mark.parametrize("predicted", [True, False])
def test_a_plan_keeps_the_margin(study, predicted):
    full, half = (
        study(
            device_memory=400 * KIB, margin=margin, predicted=predicted, folder=f"{predicted}{margin}", **DEEP
        )
        for margin in (0.0, 1.0)
    )
    fit = half.memory()[0, 1]
    chosen = fit.max_micro_batch(half.launch.cluster)
    # Between two probes the worse of them counts: a few examples less than the line in between says.
    assert fit.peak_bytes(chosen).value * 2 <= 400 * KIB < fit.peak_bytes(chosen + 8).value * 2
    assert chosen < full.memory()[0, 1].max_micro_batch(full.launch.cluster)


def test_from_a_first_failure_the_climb_goes_down(study):
    here = study(device_memory=160 * KIB, model=heavy)
    here.memory()
    assert here.peaks()[:2] == [(8, 1, True), (4, 1, False)]
    largest = max(m for m, accumulation, out in here.peaks() if accumulation == 1 and not out)
    assert here.fits_device(BatchPlan.equal(largest, 1, 1))
    assert not here.fits_device(BatchPlan.equal(largest + 1, 1, 1))


@pytest.mark.parametrize("kib", [4, 12])
@pytest.mark.parametrize(("predicted", "tried"), [(True, [1]), (False, [8, 4, 2, 1])])
def test_micro_batch_1_not_fitting_is_nothing_feasible(study, kib, predicted, tried):
    here = study(device_memory=kib * KIB, predicted=predicted, **DEEP)
    with pytest.raises(NothingFeasible, match="runs out of memory at micro-batch 1") as caught:
        here.memory()
    assert [m for m, _, _ in here.peaks()] == tried
    assert all(out for _, _, out in here.peaks())
    message = caught.value.message
    assert f"{sum(p.numel() for p in deep().parameters()):,} parameters" in message
    assert f"with {kib}.0 KiB" in message
    assert ("; predicted " in message) is ("\n" in message) is predicted
    if predicted:
        assert message.splitlines()[1].endswith("  activations")  # the bill, largest first
        assert message.splitlines()[2].endswith("  parameters")
    assert "more memory" in caught.value.hint
    assert "`scaler plan`" in caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("predicted", [True, False])
@pytest.mark.parametrize("kib", [140, 160, 180, 220, 300, 460])
def test_what_memory_allows_really_fits(study, kib, predicted):
    """Plans are made from the fits, accumulating ones too: none may run out on the device."""
    here = study(device_memory=kib * KIB, predicted=predicted, model=heavy)
    try:
        fits = here.memory()
        plan = split_batch(64, 1, fits, here.launch.cluster, 0)
    except NothingFeasible:
        return
    assert here.fits_device(plan), (plan, here.peaks(), fits)


@pytest.mark.parametrize("predicted", [True, False])
def test_memory_asked_again_is_answered_from_the_run(study, predicted):
    here = study(device_memory=200 * KIB, predicted=predicted, **DEEP)
    fits = here.memory()
    asked = len(here.runtime.tasks)
    assert here.memory() == fits
    assert len(here.runtime.tasks) == asked


@pytest.mark.parametrize("predicted", [True, False])
def test_without_a_budget_no_memory_is_known(study, predicted):
    here = study(predicted=predicted, **DEEP)
    sizes = ask_sizes(here.evidence)
    spent = Evidence(here.runtime, here.run, 0.0)
    assert measure_memory(spent, here.launch, sizes, [1], [64]) == {}
    assert here.peaks() == []


# Memory of several workers, on devices that follow a formula


def simulated(tmp_path, counts, zero_stage=0, batches=(32, 8192), **fields):
    """(the fits, the probes) of devices with margin 0."""
    devices = Devices(**{"fixed_bytes": 2_000, "example_bytes": 100} | fields)
    runtime = Asked(SimulatedRuntime(devices), devices.predict)
    evidence = Evidence(runtime, RunFolder(tmp_path), None)
    launch = LaunchConfig(workload="tiny", cluster=devices.cluster, zero_stage=zero_stage)
    fits = measure_memory(evidence, launch, ask_sizes(evidence), counts, batches)
    return fits, [record for record in evidence.records if isinstance(record, MemoryRecord)]


def mock(workers, memory=100_000, **fields):
    return Cluster.model_validate(
        {"kind": "mock", "workers": workers, "device_memory": memory, "margin": 0.0} | fields
    )


def unequal(*memories):
    groups = [{"device": f"of {m}", "workers": 1, "device_memory": m} for m in memories]
    return mock(len(memories), None, devices=groups)


def test_unsharded_one_worker_and_the_next_count_are_measured(tmp_path):
    fits, probes = simulated(tmp_path, [1, 2, 3, 4], cluster=mock((1, 4)))
    assert set(fits) == {(0, 1), (0, 2)}
    assert {record.plan.workers for record in probes} == {1, 2}


def test_every_worker_count_of_a_sharded_engine_is_measured_and_one_unsharded(tmp_path):
    fits, probes = simulated(tmp_path, [2, 3], zero_stage=2, cluster=mock((2, 3)))
    assert set(fits) == {(0, 1), (2, 2), (2, 3)} == {(r.plan.zero_stage, r.plan.workers) for r in probes}


def test_accumulating_is_measured_where_it_is_predicted_to_fit(tmp_path):
    """Gradients beside the activations: what fits in one pass does not in two."""
    fits, probes = simulated(tmp_path, [1], cluster=mock(1), gradient_bytes=30_000)
    assert not any(record.too_large for record in probes)
    assert [(r.plan.micro_batch, r.plan.accumulation) for r in probes] == [(889, 1), (980, 1), (680, 2)]
    assert fits[0, 1].max_micro_batch(mock(1), accumulation=2) == 680


def test_unequal_devices_are_measured_with_entries_in_proportion(tmp_path):
    cluster = unequal(50_000, 100_000)
    fits, probes = simulated(tmp_path, [2], cluster=cluster)
    assert not any(record.too_large for record in probes)
    together = [r.plan.micro_batches for r in probes if r.plan.workers == 2 and r.plan.accumulation == 1]
    assert together[-1] == (480, 980)
    assert all(large == pytest.approx(small * 980 / 480, rel=0.01) for small, large in together)
    passes = [r.plan.micro_batches for r in probes if r.plan.workers == 2 and r.plan.accumulation == 2]
    assert passes == [(480, 980)]
    assert [fits[0, 2].max_micro_batch(cluster, 1, cluster.capacity_bytes(rank)) for rank in range(2)] == [
        480,
        980,
    ]


def test_on_unequal_devices_no_pass_takes_more_examples_than_there_are(tmp_path):
    """The device beside a small one holds nearly all of the data by itself."""
    _, probes = simulated(tmp_path, [2], cluster=unequal(300_000, 10_000_000))
    assert max(record.plan.global_batch for record in probes) > 4_000  # and the simulation refuses too many


def test_after_a_failure_on_unequal_devices_the_smallest_keeps_what_it_held(tmp_path):
    """The step lies above the first probe on both devices, and below the second."""
    step = ConcealedBias(step_at_bytes=48_500, step_share=0.09)
    cluster = unequal(50_000, 52_000)
    fits, probes = simulated(tmp_path, [2], cluster=cluster, concealed=step)
    together = [r for r in probes if r.plan.workers == 2 and r.plan.accumulation == 1]
    assert [record.too_large for record in together] in ([False, True], [False, True, False])
    held = together[0].plan.micro_batches
    assert held[0] < held[1] < 465  # where the step begins
    limits = [fits[0, 2].max_micro_batch(cluster, 1, cluster.capacity_bytes(rank)) for rank in range(2)]
    assert all(entry <= limit + 1 < 466 for entry, limit in zip(held, limits, strict=True))


# Step times and noise


def test_fresh_launches_of_the_smallest_and_the_largest_plan_are_timed(study):
    here = study()
    measure_throughput(here.evidence, here.launch, here.memory(), [1], [8, 16, 32])
    records = here.of(ThroughputRecord)
    for batch in (8, 32):
        assert [r.seed for r in records if r.plan.global_batch == batch][:2] == [0, 1]
    assert len({r.task for r in records}) == len(records) <= 24


def test_noise_is_measured_at_the_reference_in_two_passes(study):
    here = study()
    measure_noise(here.evidence, here.workload, here.memory(), 1)
    (record,) = here.of(NoiseRecord)
    assert record.plan == BatchPlan.equal(4, 2, 1)
    assert record.learning_rate == 0.05
    assert len(record.small_squared_norms) == 100


def test_noise_is_measured_in_fp16_too(study):
    fits = study().memory()
    here = study(precision="fp16", folder="half")
    measure_noise(here.evidence, here.workload, fits, 1)
    (record,) = here.of(NoiseRecord)
    assert record.left_out_steps < 20  # the loss scale starts too high
    assert len(record.big_squared_norms) + record.left_out_steps == 100


# Trials


@pytest.mark.parametrize(
    ("fields", "spread"),
    [
        ({}, False),
        ({"spread_matters": True}, True),
        ({"model": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))}, True),
    ],
)
def test_a_trial_runs_on_one_worker_unless_the_spread_matters(study, cluster, fields, spread):
    here = study(**fields)
    fits = here.memory()
    launch = here.launch.model_copy(update={"cluster": cluster(workers=(1, 4))})
    plan = trial_plan(here.workload, launch, ask_sizes(here.evidence), fits, batch=32, workers=4)
    assert plan.global_batch == 32
    assert plan.workers == (4 if spread else 1)


def test_a_pinned_plan_is_tried_as_it_is_where_the_spread_matters(study):
    pinned = BatchPlan.equal(4, 4, 1)
    for matters, expected in ((True, pinned), (False, BatchPlan.equal(16, 1, 1))):
        here = study(launch={"plan": pinned}, spread_matters=matters, folder=str(matters))
        sizes = ask_sizes(here.evidence)
        assert trial_plan(here.workload, here.launch, sizes, here.memory(), batch=16, workers=1) == expected


def test_the_whole_measurement_is_resumed_without_a_question(study):
    here = study(target=Target(0.05, "min", max_examples=640, evaluate_every=32))
    measure(here.evidence, here.workload, here.launch, 1)
    kinds = {record.kind for record in here.run.records()}
    assert kinds == {"workload", "prediction", "memory", "powers", "throughput", "noise", "convergence"}
    here.runtime.tasks.clear()
    measure(Evidence(here.runtime, here.run, None), here.workload, here.launch, 1)
    assert here.runtime.tasks == []
    measure(Evidence(here.runtime, here.run, 0.0), here.workload, here.launch, 1)
    assert here.runtime.tasks == []
