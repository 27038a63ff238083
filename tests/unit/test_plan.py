"""What fits, for every worker count and ZeRO stage: digits is traced once for most of these."""

from typing import get_args

import numpy as np
import pytest
import torch
from plan_cases import MIB, cluster_of, peak_of, plans_of
from torch import nn

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.device import Device
from scaler.errors import BadInput, WorkloadError
from scaler.plan import nothing_fits, plan, worker_counts
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.records import HostItem, MemoryItem
from scaler.runtime.protocol import Rank
from scaler.workload import Reference, Target, Workload, load_workload

TWO = Cluster(name="two", workers=(1, 2), kind="mock", device_memory_bytes=2 * MIB)
SHAPES = {(workers, stage) for workers in (1, 2) for stage in range(4)}


class Leaves(nn.Module):
    """Leaves torch, where a trace cannot follow."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 1)

    def forward(self, x):
        return self.gate(torch.from_numpy(np.sort(x.detach().numpy())))


def linear() -> nn.Module:
    return nn.Linear(4, 1)


def leaving() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), Leaves())


def four() -> torch.utils.data.TensorDataset:
    return torch.utils.data.TensorDataset(torch.ones(64, 4), torch.ones(64, 1))


def many() -> torch.utils.data.TensorDataset:
    return torch.utils.data.TensorDataset(torch.ones(5 * MIB, 4), torch.ones(5 * MIB, 1))


def mean_error(net, batch):
    return (net(batch[0]) - batch[1]).square().mean()


def sgd(parameters, rate):
    return torch.optim.SGD(parameters, lr=rate)


def raises():
    raise ValueError("no such column")


def workload(**fields) -> Workload:
    data = {
        "name": "small",
        "model": linear,
        "train_data": four,
        "eval_data": four,
        "loss": mean_error,
        "optimizer": sgd,
        "metric": mean_error,
        "target": Target(0.1, "min"),
        "reference": Reference(8, 0.1),
    }
    return Workload(**data | fields)


@pytest.fixture(scope="module")
def told():
    """What the progress of `plans` was told."""
    return []


@pytest.fixture(scope="module")
def plans(told):
    return plan(load_workload("digits"), TWO, progress=lambda done, total: told.append((done, total)))


@pytest.fixture(scope="module")
def asked():
    return plan(load_workload("digits"), TWO, micro_batches=(8, 2000))


def test_the_plans_as_json(plans):
    found = plans.to_dict()
    assert set(found) == {"workload", "cluster", "plans", "at", "notes"}
    assert (found["workload"], found["cluster"]["name"], found["at"]) == ("digits", "two", [])
    assert {(entry["workers"], entry["zero_stage"]) for entry in found["plans"]} == SHAPES
    assert len(found["plans"]) == len(SHAPES)
    for entry in found["plans"]:
        assert set(entry) == {
            "workers",
            "zero_stage",
            "max_micro_batch",
            "peak_bytes",
            "items",
            "host_bytes",
            "host_items",
            "regime",
            "confidence",
        }
        sizes = ("workers", "zero_stage", "max_micro_batch", "peak_bytes", "host_bytes")
        assert {type(entry[key]) for key in sizes} == {int}
        assert set(entry["items"]) == set(get_args(MemoryItem))
        assert set(entry["host_items"]) == set(get_args(HostItem))
        assert sum(entry["items"].values()) == entry["peak_bytes"]
        assert sum(entry["host_items"].values()) == entry["host_bytes"]
        assert entry["regime"] in ("forward", "backward", "optimizer")
        # DeepSpeed's buffers are derived, not traced.
        assert entry["confidence"] == ("medium" if entry["zero_stage"] else "high")


def test_the_peaks_that_were_asked_for_as_json(asked):
    found = asked.to_dict()
    assert found["plans"] == []
    assert [(e["workers"], e["zero_stage"], e["micro_batch"]) for e in found["at"]] == [
        (workers, stage, micro_batch) for stage in range(4) for workers in (1, 2) for micro_batch in (8, 2000)
    ]
    for entry in found["at"]:
        assert set(entry) == {
            "workers",
            "zero_stage",
            "micro_batch",
            "allocated_bytes",
            "reserved_bytes",
            "peak_bytes",
            "fits",
            "items",
            "host_bytes",
            "host_items",
            "regime",
            "confidence",
        }
        assert sum(entry["items"].values()) == entry["peak_bytes"]
        assert entry["allocated_bytes"] <= entry["reserved_bytes"] <= entry["peak_bytes"]
        assert entry["fits"] is (entry["micro_batch"] == 8)  # 2,000 is predicted although it does not


def test_progress_goes_from_none_to_all_of_the_plans(plans, told):
    assert told == [(done, len(plans.plans)) for done in range(len(plans.plans) + 1)]


def test_plain_data_reads_back(plans, asked):
    for found in (plans, asked):
        assert type(found).model_validate(found.to_dict()) == found


def test_what_is_planned_is_what_a_device_takes(plans, asked):
    """Only bytes of tensors count on a mock device: the prediction is exact there."""

    def measured(micro_batch, capacity_bytes=None):
        request = MemoryRequest(BatchPlan.equal(micro_batch, 1, 1))
        return probe_memory(Rank(0, 1, Device("mock", capacity_bytes)), load_workload("digits"), request)

    best = next(p for p in plans.plans if (p.workers, p.zero_stage) == (1, 0))
    assert measured(best.max_micro_batch).peak_bytes == best.peak_bytes
    assert TWO.fits(best.peak_bytes, 2 * MIB)
    assert not TWO.fits(measured(best.max_micro_batch + 1).peak_bytes, 2 * MIB)
    assert measured(8).peak_bytes == asked.at[0].peak_bytes


def test_zero_spreads_the_models_states_over_workers(asked):
    at = {(b.workers, b.zero_stage): b.items for b in asked.at if b.micro_batch == 8}
    for item, least in (("optimizer_state", 1), ("parameters", 3)):
        for stage in range(4):
            share = at[2, stage][item] / at[1, stage][item]
            assert share == pytest.approx(0.5 if stage >= least else 1.0, rel=0.1), (item, stage)


def test_several_passes_are_asked_of_the_prediction(monkeypatch):
    asked_for = []

    def asked_of(shape, *_):
        asked_for.append(shape)
        return peak_of(shape, *_)

    monkeypatch.setattr("plan_cases.peak_of", asked_of)
    for accumulating in (False, True):
        asked_for.clear()
        plans_of(monkeypatch, accumulating=accumulating)
        assert {shape.accumulating for shape in asked_for} == {accumulating}


def test_offloading_takes_the_optimizers_state_off_the_device(monkeypatch):
    kept, offloaded = (plans_of(monkeypatch, offload_optimizer=offload) for offload in (False, True))
    for before, after in zip(kept.plans, offloaded.plans, strict=True):
        assert after.items["optimizer_state"] == 0 < before.items["optimizer_state"]
        assert after.max_micro_batch > before.max_micro_batch


def test_the_host_holds_the_data_set():
    found = plan(workload(train_data=many), TWO, micro_batches=(8,)).at[0].host_items
    assert found["data_set"] == pytest.approx(100 * MIB, rel=0.2)
    assert found["data_loading"] == 8 * 5 * 4


# Worker counts


@pytest.mark.parametrize(
    ("workers", "counts"),
    [
        ((1, 1), [1]),
        ((3, 6), [3, 4, 5, 6]),
        ((1, 16), list(range(1, 17))),
        ((1, 17), [1, 2, 4, 8, 16, 17]),
        ((3, 40), [3, 4, 8, 16, 32, 40]),
        ((64, 64), [64]),
    ],
)
def test_beyond_16_worker_counts_the_ends_and_powers_of_two_are_planned(workers, counts):
    assert worker_counts(cluster_of(workers=workers)) == counts


def test_worker_counts_that_are_left_out_are_noted(monkeypatch):
    some = plans_of(monkeypatch, cluster_of(workers=(1, 40)))
    assert {p.workers for p in some.plans} == {1, 2, 4, 8, 16, 32, 40}
    assert some.notes == ("of 40 worker counts, powers of two are shown",)
    assert plans_of(monkeypatch).notes == ()


# Nothing fits


def test_with_a_plan_that_fits_there_is_no_error(plans, asked):
    assert nothing_fits(plans) is None
    assert nothing_fits(asked) is None  # who asks for a size gets its peak


def test_nothing_that_fits_gives_the_least_bill_and_what_would_help(monkeypatch):
    error = nothing_fits(plans_of(monkeypatch, cluster_of(3)))
    lines = error.message.splitlines()
    assert lines[0].startswith("digits does not fit 3.0 MiB of device memory at micro-batch 1, with any ZeRO")
    assert lines[0].endswith("the least is 4.5 MiB, at stage 3 on 2 workers:")
    assert [line.split(maxsplit=2)[2] for line in lines[1:]] == [
        "parameters",
        "gradients",
        "optimizer state",
        "context",
        "rounding",
        "activations",
    ]  # largest first, nothing for the communicator
    assert "a device with more memory" in error.hint
    assert "smaller model" in error.hint
    assert error.exit_code == 3


@pytest.mark.parametrize(
    ("workers", "helps", "not_named"),
    [
        ((1, 2), [], ["more workers", "checkpointing", "--offload-optimizer"]),
        (1, ["more workers, over which ZeRO"], ["--offload-optimizer"]),
    ],
)
def test_what_would_help_depends_on_what_takes_the_memory(monkeypatch, workers, helps, not_named):
    hint = nothing_fits(plans_of(monkeypatch, cluster_of(3, workers=workers))).hint
    assert all(help in hint for help in helps)
    assert not any(help in hint for help in not_named)


def test_one_worker_is_no_workers(monkeypatch):
    message = nothing_fits(plans_of(monkeypatch, cluster_of(3, workers=1))).message
    assert message.splitlines()[0].endswith("at stage 0 on 1 worker:")


def test_large_states_are_offloaded_and_large_activations_checkpointed(monkeypatch):
    monkeypatch.setattr("plan_cases.STATE", 60 * MIB)
    assert "--offload-optimizer" in nothing_fits(plans_of(monkeypatch, cluster_of(3))).hint
    offloaded = plans_of(monkeypatch, cluster_of(3), offload_optimizer=True)
    assert "--offload-optimizer" not in nothing_fits(offloaded).hint
    monkeypatch.setattr("plan_cases.EXAMPLE", 90 * MIB)
    assert "torch.utils.checkpoint" in nothing_fits(plans_of(monkeypatch, cluster_of(3))).hint


# Bad input


def test_a_workload_that_cannot_be_traced_is_bad_input_that_names_the_module():
    with pytest.raises(BadInput, match=r"workload 'small' cannot be traced: 1 \(Leaves\): ") as caught:
        plan(workload(model=leaving), TWO)
    assert "`scaler tune` measures its memory" in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_function_of_the_workload_that_raises_is_named():
    with pytest.raises(WorkloadError, match=r"train_data\(\) raised ValueError: no such column"):
        plan(workload(train_data=raises), TWO)


def test_a_cluster_has_to_say_its_device_memory():
    with pytest.raises(BadInput, match="lab does not say how much memory a device has") as caught:
        plan(load_workload("digits"), Cluster(name="lab", workers=1, kind="cuda"))
    assert "--device-memory" in caught.value.hint
