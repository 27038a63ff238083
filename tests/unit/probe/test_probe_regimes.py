"""Batch size 1, mini-batches and the full batch: what the probe trains, and what it says where it cannot."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from scaler.errors import BadInput, ScalerError
from scaler.probe.regimes import RegimesRequest, probe_regimes, regime_sizes
from scaler.runtime.local import LocalRuntime
from scaler.runtime.protocol import Task

AMPLE = RegimesRequest(budget_s=600.0)  # no regime ends by its time, however slow the machine


def data(examples: int) -> TensorDataset:
    """A line with noise, so that gradients stay noisy wherever the weights are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, 4, generator=generator)
    return TensorDataset(x, x.sum(dim=1, keepdim=True) + torch.randn(examples, 1, generator=generator))


@functools.cache
def once(tiny, ask):
    return ask(tiny(train_data=lambda: data(100)), probe_regimes, AMPLE)


@pytest.fixture
def record(tiny, ask):
    return once(tiny, ask)


def failure(cluster, workload, request=AMPLE, **fields) -> ScalerError:
    with LocalRuntime(cluster(**fields), workload) as runtime:
        task = Task(probe_regimes, request)
        (outcome,) = runtime.run([task])
    assert outcome.failure is not None
    return outcome.failure.error(task)


def test_sizes_are_1_the_mini_batches_and_all():
    assert sorted(regime_sizes(1437)) == [1, 64, 128, 256, 512, 1437]
    assert sorted(regime_sizes(65)) == [1, 64, 65]
    assert sorted(regime_sizes(64)) == [1, 64]
    assert sorted(regime_sizes(2)) == [1, 2]


def test_every_regime_starts_from_the_same_weights(record):
    starts = {(r.path[0].x, r.path[0].y, r.path[0].cost) for r in record.regimes}
    assert len(starts) == 1
    assert [(r.plan.global_batch, r.rate_factor) for r in record.regimes] == [
        (1, 1.0),
        (1, 0.1),
        (64, 1.0),
        (100, 1.0),
    ]
    assert record.train_examples == record.data_examples == record.sample_examples == 100


def test_the_rate_is_the_references_by_the_square_root_of_the_batch(record):
    for regime in record.regimes:
        expected = 0.05 * math.sqrt(regime.plan.global_batch / 8) * regime.rate_factor
        assert regime.learning_rate == pytest.approx(expected, rel=1e-3)


def test_a_regime_does_20_epochs_and_200_steps_at_least(record):
    assert [r.planned_iterations for r in record.regimes] == [2000, 2000, 200, 200]
    for regime in record.regimes:
        assert regime.stop == "limit"
        assert regime.iterations == regime.curve.iterations[-1] == regime.planned_iterations
        assert len(regime.path) <= 50 and regime.path[-1].iteration == regime.iterations


def test_the_full_batch_is_calm_and_size_1_is_not(record):
    single, full = record.regimes[0].curve, record.regimes[-1].curve
    assert sum(full.rises[:20]) == 0
    assert sum(single.rises) > 0.3 * single.iterations[-1]
    assert single.squared_change[-1] > 100 * full.squared_change[-1]


def test_the_full_batchs_cost_is_that_of_its_snapshots(record):
    full = record.regimes[-1]
    for snapshot in full.path:
        if snapshot.iteration < full.iterations:  # a step's cost is taken before its update
            assert snapshot.cost == pytest.approx(full.curve.mean[snapshot.iteration], rel=1e-4)


def test_the_plane_and_its_contour_hold_the_paths(record):
    first, second = record.explained
    assert 0.5 < first + second <= 1 + 1e-9 and first >= second >= 0
    x, y = record.contour.x, record.contour.y
    assert all(x[0] < s.x < x[-1] and y[0] < s.y < y[-1] for r in record.regimes for s in r.path)
    assert all(len(row) == len(x) for row in record.contour.cost) and len(record.contour.cost) == len(y)
    lowest = min(cost for row in record.contour.cost for cost in row)
    assert lowest < record.regimes[0].path[0].cost


def test_items_that_are_not_tensors_of_one_data_set_go_through_a_loader(tiny, ask):
    class Items(Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            x, y = data(10).tensors
            return x[index], y[index]

    found = ask(tiny(train_data=Items), probe_regimes, AMPLE)
    assert [r.plan.global_batch for r in found.regimes] == [1, 1, 10]


def test_batchnorm_at_size_1_is_named(tiny, ask):
    net = lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))  # noqa: E731
    found = ask(tiny(model=net, train_data=lambda: data(20)), probe_regimes, AMPLE)
    single, full = found.regimes
    assert single.stop == "undefined" and single.iterations == 0 and single.curve is None
    assert single.reason == "batch statistics of one example are undefined"
    assert full.stop == "limit" and full.path[-1].cost < full.path[0].cost
    assert found.batch_statistics == ("1",)


def test_a_loss_that_needs_two_examples_is_named(tiny, ask):
    def pairs(net, batch):
        if len(batch[0]) == 1:
            raise ValueError("no pair")
        return nn.functional.mse_loss(net(batch[0]), batch[1])

    found = ask(tiny(loss=pairs, train_data=lambda: data(20)), probe_regimes, AMPLE)
    assert found.regimes[0].stop == "undefined" and "ValueError: no pair" in found.regimes[0].reason
    assert found.regimes[1].stop == "limit"


def test_what_diverges_is_kept_and_tried_at_a_tenth(tiny, ask):
    from scaler.workload import Reference

    fast = tiny(train_data=lambda: data(100), reference=Reference(100, 3.0))
    found = ask(fast, probe_regimes, AMPLE)
    tried = {(r.plan.global_batch, r.rate_factor): r for r in found.regimes}
    assert tried[100, 1.0].stop == "diverged" and not tried[100, 1.0].spans_plane
    assert tried[100, 0.1].stop == "limit" and tried[100, 0.1].spans_plane
    assert tried[100, 1.0].curve is not None
    assert found.contour is not None


def test_where_all_diverge_there_is_no_contour(tiny, ask):
    from scaler.workload import Reference

    found = ask(tiny(train_data=lambda: data(10), reference=Reference(8, 1e12)), probe_regimes, AMPLE)
    assert {r.stop for r in found.regimes} == {"diverged"}
    assert found.contour is None


def test_a_loss_that_is_never_finite_is_a_fault_of_the_workload(tiny, cluster):
    nan = tiny(loss=lambda net, batch: net(batch[0]).mean() * math.nan)
    error = failure(cluster, nan)
    assert isinstance(error, BadInput) and "not finite at the initial weights" in error.message


def test_one_example_is_refused(tiny, cluster):
    error = failure(cluster, tiny(train_data=lambda: data(1)))
    assert isinstance(error, BadInput) and "one example" in error.message


def test_a_budget_too_short_says_how_much_it_takes(tiny, cluster):
    error = failure(cluster, tiny(), RegimesRequest(budget_s=1e-4))
    assert isinstance(error, BadInput) and "too short" in error.message and "--budget" in error.hint


def test_a_short_budget_cuts_the_data_and_says_so(tiny, ask, monkeypatch):
    monkeypatch.setattr("scaler.probe.regimes._fastest_s", lambda rank, work, limit_s: 0.01)
    # 10 ms for each of the passes of 16, 32, ... 1,000 examples: 10 us an example of the largest.
    found = ask(tiny(train_data=lambda: data(1000)), probe_regimes, RegimesRequest(budget_s=2.0))
    # Each of 7 regimes has 171 ms, in which 50 full batches of 342 examples fit.
    assert found.train_examples == 1000
    assert found.data_examples == 256
    assert found.regimes[-1].plan.global_batch == 256


def test_a_full_batch_larger_than_a_pass_is_accumulated(tiny, ask, monkeypatch):
    monkeypatch.setattr("scaler.probe.regimes._LARGEST_PASS", 32)
    found = ask(tiny(train_data=lambda: data(101)), probe_regimes, AMPLE)
    assert found.data_examples == 100  # 4 passes of 25, the 101st left out
    full = found.regimes[-1].plan
    assert (full.micro_batch, full.accumulation) == (25, 4)
    assert found.regimes[-1].path[3].cost == pytest.approx(
        found.regimes[-1].curve.mean[found.regimes[-1].path[3].iteration], rel=1e-4
    )


def test_a_pass_is_no_larger_than_the_mock_device(tiny, ask):
    found = ask(tiny(train_data=lambda: data(200)), probe_regimes, AMPLE, kind="mock", device_memory="4KiB")
    full = found.regimes[-1].plan  # 200 examples of 20 bytes alone are 4,000
    assert full.global_batch >= 190 and full.accumulation > 1 and full.micro_batch < 200


def test_the_precision_is_fp32_without_cuda(tiny, ask):
    seen = set()

    def loss(net, batch):
        out = net(batch[0])
        seen.add(out.dtype)
        return nn.functional.mse_loss(out.float(), batch[1])

    ask(tiny(loss=loss, precision="bf16", train_data=lambda: data(10)), probe_regimes, AMPLE)
    assert seen == {torch.float32}
