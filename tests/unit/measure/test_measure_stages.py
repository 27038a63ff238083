"""Which questions are asked, with the answers of real training in this process."""

import pytest
import torch
from asking import Asked
from torch import nn
from torch.utils.data import TensorDataset

from scaler.batch import BatchPlan
from scaler.decide.plans import split_batch
from scaler.errors import BadInput, NothingFeasible
from scaler.launch import LaunchConfig
from scaler.measure.evidence import Evidence
from scaler.measure.stages import (
    ask_sizes,
    global_batches,
    measure,
    measure_memory,
    measure_noise,
    measure_throughput,
    trial_plan,
)
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.records import MemoryRecord, NoiseRecord, ThroughputRecord
from scaler.runs import RunFolder
from scaler.runtime.local import LocalRuntime
from scaler.runtime.protocol import Task
from scaler.workload import Reference, Target

KIB = 1024


class Study:
    """A workload that is measured into one run folder, on one mock device."""

    def __init__(self, workload, launch, folder):
        folder.mkdir(exist_ok=True)
        self.workload, self.launch, self.run = workload, launch, RunFolder(folder)
        self.runtime = Asked(LocalRuntime(launch.cluster, workload))
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

    def fits_device(self, plan):
        """Whether a plan really fits, asked behind the study's back."""
        with LocalRuntime(self.launch.cluster, self.workload) as runtime:
            (outcome,) = runtime.run([Task(probe_memory, MemoryRequest(plan))])
        return not outcome.record.out_of_memory


@pytest.fixture
def study(tiny, cluster, tmp_path):
    """A function (device_memory, launch fields, **workload fields) that starts a study."""

    def start(device_memory="64MiB", margin=0.0, launch=None, folder="run", **fields):
        device = cluster(kind="mock", device_memory=device_memory, margin=margin)
        config = LaunchConfig(
            workload="tiny", cluster=device, runtime="local", **({"seeds": 1} | (launch or {}))
        )
        return Study(tiny(**fields), config, tmp_path / folder)

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


DEEP = {"model": deep, "train_data": lambda: regression(1024), "reference": Reference(16, 0.05)}


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
    low, high = 0, 1025
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if here.fits_device(BatchPlan.equal(middle, 1, 1)) else (low, middle)
    found = max(m for m, _, out in here.peaks() if not out)
    assert 0.9 * low - 1 <= found <= low
    predicted = min(1024, fits[0, 1].max_micro_batch(here.launch.cluster))
    assert 0.9 * low - 1 <= predicted <= 1.05 * low  # the margin, 0 here, covers an error of 5%
    assert fits[0, 1].capacity_bytes == kib * KIB


def test_a_plan_keeps_the_margin(study):
    full, half = (
        study(device_memory=400 * KIB, margin=margin, folder=str(margin), **DEEP) for margin in (0.0, 1.0)
    )
    fit = half.memory()[0, 1]
    chosen = fit.max_micro_batch(half.launch.cluster)
    assert fit.peak_bytes(chosen).value * 2 <= 400 * KIB < fit.peak_bytes(chosen + 2).value * 2
    assert chosen < full.memory()[0, 1].max_micro_batch(full.launch.cluster)


def test_from_a_first_failure_the_climb_goes_down(study):
    here = study(device_memory=160 * KIB, model=heavy)
    here.memory()
    assert here.peaks()[:2] == [(8, 1, True), (4, 1, False)]
    largest = max(m for m, accumulation, out in here.peaks() if accumulation == 1 and not out)
    assert here.fits_device(BatchPlan.equal(largest, 1, 1))
    assert not here.fits_device(BatchPlan.equal(largest + 1, 1, 1))


@pytest.mark.parametrize("kib", [4, 12])
def test_micro_batch_1_not_fitting_is_nothing_feasible(study, kib):
    here = study(device_memory=kib * KIB, **DEEP)
    with pytest.raises(NothingFeasible, match="runs out of memory at micro-batch 1") as caught:
        here.memory()
    assert [m for m, _, _ in here.peaks()] == [8, 4, 2, 1]
    assert all(out for _, _, out in here.peaks())
    assert f"{sum(p.numel() for p in deep().parameters()):,} parameters" in caught.value.message
    assert "more memory" in caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("kib", [140, 160, 180, 220, 300, 460])
def test_what_memory_allows_really_fits(study, kib):
    """Plans are made from the fits, accumulating ones too: none may run out on the device."""
    here = study(device_memory=kib * KIB, model=heavy)
    try:
        fits = here.memory()
        plan = split_batch(64, 1, fits, here.launch.cluster, 0)
    except NothingFeasible:
        return
    assert here.fits_device(plan), (plan, here.peaks(), fits)


def test_memory_asked_again_is_answered_from_the_run(study):
    here = study(device_memory=200 * KIB, **DEEP)
    fits = here.memory()
    asked = len(here.runtime.tasks)
    assert here.memory() == fits
    assert len(here.runtime.tasks) == asked


# Step times and noise


def test_fresh_launches_of_spaced_plans_are_timed(study):
    here = study(**DEEP)
    fits = here.memory()
    batches = [32, 64, 128, 256, 512, 1024]
    measure_throughput(here.evidence, here.launch, fits, [1], batches)
    records = here.of(ThroughputRecord)
    plans = sorted({r.plan.global_batch for r in records})
    assert len(plans) == 4
    assert (plans[0], plans[-1]) == (32, 1024)
    for batch in plans:
        seeds = [r.seed for r in records if r.plan.global_batch == batch]
        assert len(seeds) == len(set(seeds)) == 2


def test_a_pinned_plan_is_the_one_that_is_timed(study):
    plan = BatchPlan.equal(4, 3, 1)
    here = study(launch={"plan": plan})
    measure_throughput(here.evidence, here.launch, here.memory(), [1], [12])
    assert {r.plan for r in here.of(ThroughputRecord)} == {plan}


def test_noise_is_measured_at_the_reference_in_two_passes(study):
    here = study()
    measure_noise(here.evidence, here.workload, here.memory(), 1)
    (record,) = here.of(NoiseRecord)
    assert record.plan == BatchPlan.equal(4, 2, 1)
    assert record.learning_rate == 0.05
    assert len(record.small_squared_norms) == 100


def test_noise_is_not_measured_where_a_loss_scale_would_be_in_it(study):
    fits = study().memory()
    here = study(precision="fp16", folder="half")
    measure_noise(here.evidence, here.workload, fits, 1)
    assert here.runtime.tasks == []


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
    assert kinds == {"workload", "memory", "throughput", "noise", "convergence"}
    here.runtime.tasks.clear()
    measure(Evidence(here.runtime, here.run, None), here.workload, here.launch, 1)
    assert here.runtime.tasks == []
    measure(Evidence(here.runtime, here.run, 0.0), here.workload, here.launch, 1)
    assert here.runtime.tasks == []
