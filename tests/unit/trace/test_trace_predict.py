"""Predictions: what fits, the curve, the bill, and what ends without one."""

import itertools

import pytest
import torch
from torch import nn
from trace_cases import (
    CLASSES,
    FEATURES,
    InPlace,
    cluster,
    mlp,
    program,
    real_peak,
    sgd,
    traced,
    workload,
)

from scaler.batch import BatchPlan
from scaler.device import Device
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.records import PredictedPeak
from scaler.runtime.protocol import Rank
from scaler.trace.predict import Predictor, predict
from scaler.trace.shape import LARGEST, Shape
from scaler.workload import load_workload

KIB, MIB = 2**10, 2**20
ALONE = Shape(1)
PASSES = Shape(1, accumulating=True)

digits = load_workload("digits")


def fits_for_real(case, micro_batch, accumulation, capacity_bytes):
    request = MemoryRequest(BatchPlan.equal(micro_batch, accumulation, 1))
    device = Device("mock", capacity_bytes)
    return not probe_memory(Rank(0, 1, device), case, request).out_of_memory


def mock(memory, case=digits, **fields):
    return Predictor(case, cluster(memory=memory, **({"margin": 0.0} | fields)))


def cuda(memory, case, **fields):
    return Predictor(case, cluster("cuda", memory, **({"margin": 0.0} | fields)))


# Mock devices, against the real engine on one


@pytest.mark.parametrize("memory", [200 * KIB, 700_000])
@pytest.mark.parametrize("shape", [ALONE, PASSES], ids=["one pass", "passes"])
def test_the_largest_micro_batch_fits_and_one_more_does_not(memory, shape):
    predictor, passes = mock(memory), 2 if shape.accumulating else 1
    found = predictor.max_micro_batch(shape)
    assert fits_for_real(digits, found, passes, memory)
    assert not fits_for_real(digits, found + 1, passes, memory)
    assert predictor.fits(shape, found)
    assert not predictor.fits(shape, found + 1)
    assert predictor.peak(shape, found).peak_bytes == real_peak(digits, found, passes) <= memory
    assert predictor.notes == set()


def test_nothing_fits_where_the_model_does_not():
    predictor = mock(100 * KIB)
    assert predictor.max_micro_batch(ALONE) == 0
    assert predictor.peak(ALONE, 1).peak_bytes == real_peak(digits, 1) > 100 * KIB
    assert predictor.curve(ALONE, None, 100).max_micro_batch == 0


def test_nothing_larger_than_the_largest_is_looked_at():
    assert mock(MIB).max_micro_batch(ALONE, 50) == 50
    assert mock("64GiB").max_micro_batch(ALONE) == LARGEST


@pytest.mark.parametrize(("margin", "reserve"), [(0.0, 100_000), (0.25, 0), (0.05, 300_000)])
def test_the_margin_and_the_reserve_are_left(margin, reserve):
    predictor = mock(MIB, margin=margin, reserve=reserve)
    found = predictor.max_micro_batch(ALONE)
    room = (MIB - reserve) / (1 + margin)
    assert real_peak(digits, found) <= room < real_peak(digits, found + 1)


def test_a_step_that_changes_with_the_size_is_traced_again_where_it_matters():
    class Branching(nn.Module):
        """Takes a second layer for more than 20 examples."""

        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(FEATURES, 200), nn.Linear(200, CLASSES)

        def forward(self, x):
            hidden = self.inner(x).tanh()
            if len(x) > 20:
                hidden = hidden.exp().sin().tanh()
            return self.outer(hidden)

    case = workload(model=Branching, optimizer=sgd)
    memory = real_peak(case, 90)
    assert mock(memory, case).max_micro_batch(ALONE) == 90


# Curves


def test_a_curve_gives_peaks_at_every_scale_and_close_ones_where_memory_ends():
    predictor = mock(MIB)
    curve = predictor.curve(ALONE, None, 2000)
    sizes = curve.micro_batches
    assert (sizes[0], sizes[-1]) == (1, 2000)
    assert list(sizes) == sorted(set(sizes))
    assert {curve.max_micro_batch, curve.max_micro_batch + 1} <= set(sizes)
    assert max(after / before for before, after in itertools.pairwise(sizes)) <= 2
    assert list(curve.peak_bytes) == sorted(curve.peak_bytes)
    line = program(digits)
    assert list(curve.peak_bytes) == [line.count(size).allocated_bytes for size in sizes]
    (bill,) = curve.bills
    assert bill.micro_batch == curve.max_micro_batch
    assert bill.peak_bytes <= MIB


def test_a_curve_itemises_the_sizes_asked_for():
    curve = mock(MIB).curve(Shape(2, 1), [3, 7, 4000], 5000)
    assert (curve.workers, curve.zero_stage, curve.accumulating) == (2, 1, False)
    assert curve.micro_batches == curve.peak_bytes == ()
    assert [bill.micro_batch for bill in curve.bills] == [3, 7, 4000]
    assert curve.bills[2].peak_bytes > MIB > curve.bills[1].peak_bytes


# CUDA, without a device


def adds_up(bill: PredictedPeak):
    """Whether a bill's parts are its total."""
    outside = bill.items["context"] + bill.items["communicator"]
    return (
        sum(bill.items.values()) == bill.peak_bytes == bill.reserved_bytes + outside
        and bill.allocated_bytes <= bill.reserved_bytes
    )


@pytest.mark.parametrize("expandable", [False, True])
def test_the_items_of_a_bill_add_up(expandable):
    predictor = cuda("8GiB", workload(), expandable_segments=expandable)
    for shape in (ALONE, Shape(4), Shape(4, 2), Shape(4, 3)):
        for size in (1, 1000, 10**7):  # the last does not fit
            bill = predictor.peak(shape, size)
            assert adds_up(bill)
            assert bill.items["workspaces"] > 0
            assert (bill.items["communicator"] > 0) == (shape.workers > 1)
            assert bill.host_items["pinned_buffers"] == size * (FEATURES * 4 + 8)
        assert adds_up(predictor.curve(shape, None, 100).bills[0])


def test_the_context_and_the_communicator_are_the_clusters_where_it_says():
    predictor = cuda("8GiB", workload(), context="1GiB", communicator="2GiB")
    items = predictor.peak(Shape(2), 8).items
    assert (items["context"], items["communicator"]) == (2**30, 2**31)
    assert predictor.peak(ALONE, 8).items["communicator"] == 0
    assert predictor.curve(Shape(2), [8], 8).fixed_bytes == 3 * 2**30


def test_more_memory_never_gives_a_smaller_micro_batch():
    case = workload(model=lambda: mlp(512, 3))
    sizes = ["64MiB", "100MiB", "110MiB", "300MiB"]
    found = [cuda(size, case, context="1MiB").max_micro_batch(ALONE) for size in sizes]
    assert found == sorted(found)
    assert found[0] > 0 and len(set(found)) == len(found)


def test_growing_segments_waste_no_more_than_fixed_ones():
    case = workload(model=lambda: mlp(512, 3))
    fixed, growing = (
        cuda("512MiB", case, context="1MiB", expandable_segments=on).max_micro_batch(ALONE)
        for on in (False, True)
    )
    assert 0 < fixed <= growing


def test_half_precision_needs_less_for_activations():
    full, half = (
        cuda("80GiB", workload(model=lambda: mlp(1024, 6), precision=name)).peak(ALONE, 20_000)
        for name in ("fp32", "bf16")
    )
    assert half.items["activations"] < 0.6 * full.items["activations"]
    assert half.peak_bytes < 0.8 * full.peak_bytes
    assert half.items["parameters"] == full.items["parameters"]


def test_offloaded_state_is_the_hosts():
    case = workload(model=lambda: mlp(512, 3))
    predictor = Predictor(case, cluster("cuda", "8GiB"), offload_optimizer=True)
    plain = cuda("8GiB", case)
    for stage in (1, 2, 3):
        away, kept = (p.peak(Shape(4, stage), 64) for p in (predictor, plain))
        assert away.items["optimizer_state"] == kept.host_items["optimizer_offload"] == 0
        expected = kept.items["optimizer_state"]
        assert away.host_items["optimizer_offload"] == pytest.approx(expected, rel=0.01)


# What ends without a prediction, or with less confidence


def test_an_untraceable_model_has_no_curves_and_a_note():
    case = workload(model=lambda: nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.LPPool1d(2, 0)))
    found = predict(case, cluster(), [ALONE], None, 100)
    assert (found.curves, found.confidence) == ((), "low")
    assert len(found.notes) == 1


def test_confidence_is_high_for_tensors_medium_for_a_gpu_and_low_for_guesses():
    def guessing(net, batch):
        x, y = batch
        chosen = (y >= 0).nonzero()[:, 0]
        return torch.nn.functional.cross_entropy(net(x[chosen]), y[chosen])

    assert predict(workload(model=InPlace), cluster(), [ALONE], [8], 8).confidence == "high"
    assert predict(workload(model=InPlace), cluster("cuda", "8GiB"), [ALONE], [8], 8).confidence == "medium"
    guessed = predict(workload(loss=guessing), cluster(), [ALONE], [8], 8)
    assert guessed.confidence == "low"
    assert guessed.curves and len(guessed.notes) == len(traced(workload(loss=guessing), 2).notes) == 1


def test_uneven_examples_are_noted():
    case = workload(
        model=lambda: nn.Linear(4, 8),
        train_data=lambda: [torch.ones(n, 4) for n in (9, 3) * 20],
        collate=lambda examples: nn.utils.rnn.pad_sequence(examples, batch_first=True),
        loss=lambda net, batch: net(batch).square().mean(),
    )
    found = predict(case, cluster(), [ALONE], [5], 8)
    assert found.confidence == "low"
    assert "examples differ in size" in found.notes[0] and "worst_case" in found.notes[0]
