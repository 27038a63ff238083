import pytest
import torch
from torch import nn

from scaler.cluster import Cluster, ConcealedBias
from scaler.device import Device, open_device
from scaler.errors import ClusterFailed

MIB = 2**20


def one(kind, memory=None, **fields):
    return Cluster(workers=1, kind=kind, device_memory_bytes=memory, **fields)


def nested():
    return {"x": torch.ones(3), "pair": (torch.zeros(2), [torch.arange(4), "text", 7, None])}


def tensors(batch):
    return [batch["x"], batch["pair"][0], batch["pair"][1][0]]


@pytest.mark.parametrize(("kind", "copies"), [("mock", True), ("cpu", False)])
def test_only_a_mock_device_copies_a_batch(kind, copies):
    batch = nested()
    placed = open_device(one(kind, MIB)).put(batch)
    assert placed["pair"][1][1:] == ["text", 7, None]
    for before, after in zip(tensors(batch), tensors(placed), strict=True):
        assert torch.equal(before, after)
        assert (before.data_ptr() != after.data_ptr()) is copies


def test_a_batch_on_a_mock_device_takes_its_memory():
    host = torch.ones(MIB // 4)
    for kind, expected in (("mock", MIB), ("cpu", 0)):
        device = open_device(one(kind, 4 * MIB))
        with device.memory() as meter:
            device.put(host)
        assert meter.peak_bytes == expected


@pytest.mark.parametrize("kind", ["mock", "cpu"])
def test_a_device_says_what_it_is(kind):
    device = open_device(one(kind, 5 * MIB))
    assert (device.kind, device.name, device.capacity_bytes) == (kind, kind, 5 * MIB)
    assert device.torch_device == torch.device("cpu")
    device.synchronize()


def test_memory_gives_the_peak_of_the_block():
    device = Device("mock", 64 * MIB)
    with device.memory() as meter:
        first = torch.empty(MIB)  # 4 MiB
        del first
        second = torch.empty(2 * MIB)
        del second
        third = torch.empty(MIB)
    assert meter.peak_bytes == 8 * MIB
    with device.memory() as again:
        pass
    assert again.peak_bytes == 0  # what lives already is not this block's
    del third


@pytest.mark.parametrize("kind", ["mock", "cpu"])
def test_memory_over_the_capacity_raises_and_the_next_block_starts_afresh(kind):
    device = Device(kind, MIB)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"), device.memory():
        nn.Linear(1000, 1000)
    with device.memory() as meter:
        nn.Linear(100, 100)
    assert 0 < meter.peak_bytes < MIB


def test_without_a_capacity_nothing_runs_out():
    with Device("cpu", None).memory() as meter:
        torch.empty(16 * MIB)
    assert meter.peak_bytes == 64 * MIB


def test_cuda_without_a_cuda_device_is_the_clusters_failure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ClusterFailed, match="torch sees no CUDA device") as caught:
        open_device(one("cuda"))
    assert caught.value.exit_code == 5
    assert "kind: cpu or mock" in caught.value.hint


def test_a_rank_has_the_memory_of_its_own_device():
    groups = [
        {"device": "old", "workers": 1, "device_memory": "1MiB"},
        {"device": "new", "workers": 2, "device_memory": "3MiB"},
    ]
    cluster = Cluster.model_validate({"workers": 3, "kind": "mock", "devices": groups})
    assert [open_device(cluster, rank).capacity_bytes for rank in range(3)] == [MIB, 3 * MIB, 3 * MIB]
    assert open_device(cluster).capacity_bytes == MIB  # whichever it is, it has as much


def test_a_device_that_conceals_bytes_counts_and_runs_out_with_them():
    concealed = ConcealedBias(share=0.1)
    for memory, runs_out in ((int(4.4 * MIB), False), (int(4.4 * MIB) - 1, True)):
        device = open_device(one("mock", memory, concealed=concealed))
        with device.memory() as meter:
            if runs_out:
                with pytest.raises(torch.OutOfMemoryError):
                    torch.empty(MIB)
            else:
                torch.empty(MIB)
        assert meter.peak_bytes == (0 if runs_out else int(4.4 * MIB))
