"""What a tool has no place for is refused by the name of the field, before anything is written."""

import re

import pytest
from export_cases import UNEQUAL, cluster_of, job_of

from scaler.batch import BatchPlan
from scaler.cluster import DeviceGroup
from scaler.errors import BadInput
from scaler.export.targets import TARGETS

ONE_NUMBER = {
    "deepspeed": "train_micro_batch_size_per_gpu",
    "accelerate": "DataLoader",
    "lightning": "DataLoader",
    "hugging-face": "per_device_train_batch_size",
}
EVEN_NODES = ("accelerate", "lightning", "torchrun", "slurm", "kuberay", "kuberay-cluster", "ray-launcher")
KEEP_UNEQUAL = sorted(TARGETS.keys() - ONE_NUMBER)


@pytest.mark.parametrize(("name", "place"), ONE_NUMBER.items())
def test_unequal_micro_batches(name: str, place: str) -> None:
    with pytest.raises(BadInput, match=rf"micro_batches: 719, 718 on 2 workers, and .*{place}") as caught:
        TARGETS[name].text(job_of(UNEQUAL))
    assert "--to ray" in caught.value.hint


@pytest.mark.parametrize("name", KEEP_UNEQUAL)
def test_the_others_keep_both_numbers(name: str) -> None:
    text = TARGETS[name].text(job_of(UNEQUAL))
    assert re.search(r"719\D{1,5}718", text)


@pytest.mark.parametrize("name", EVEN_NODES)
def test_more_workers_on_one_node_than_on_another(name: str) -> None:
    job = job_of(BatchPlan.equal(8, 1, 6), cluster_of(8, nodes=2))
    with pytest.raises(BadInput, match=r"workers: 6 on nodes that take 4 are 4 \+ 2"):
        TARGETS[name].text(job)


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - EVEN_NODES))
def test_what_leaves_nodes_to_others_takes_any_number(name: str) -> None:
    assert TARGETS[name].text(job_of(BatchPlan.equal(8, 1, 6), cluster_of(8, nodes=2)))


@pytest.mark.parametrize("name", KEEP_UNEQUAL)
def test_unequal_devices_with_a_micro_batch_each(name: str) -> None:
    groups = [
        DeviceGroup(device=device, workers=1, device_memory_bytes=2**memory)
        for device, memory in (("H100", 36), ("L4", 34))
    ]
    cluster = cluster_of(2, kind="cuda").model_copy(update={"devices": tuple(groups), "workers": (2, 2)})
    with pytest.raises(BadInput, match="devices: 1 x H100, 1 x L4"):
        TARGETS[name].text(job_of(BatchPlan(micro_batches=(64, 8)), cluster))
    assert TARGETS[name].text(job_of(BatchPlan.equal(8, 1, 2), cluster))


def test_a_stage_in_a_loop_without_one() -> None:
    with pytest.raises(BadInput, match="zero_stage: 2") as caught:
        TARGETS["ray"].text(job_of(BatchPlan.equal(8, 1, 2, zero_stage=2)))
    assert "--to deepspeed" in caught.value.hint


def test_a_stage_on_cpus_in_lightning() -> None:
    with pytest.raises(BadInput, match="zero_stage: 1 on kind: cpu"):
        TARGETS["lightning"].text(job_of(BatchPlan.equal(8, 1, 2, zero_stage=1)))


@pytest.mark.parametrize("name", TARGETS)
def test_a_name_stays_a_name(name: str) -> None:
    text = TARGETS[name].text(
        job_of(BatchPlan.equal(8, 1, 2), name='evil\n"""\nimport os #', workload="x'\"\n")
    )
    assert not re.search(r"^(import os #|\"\"\"\nimport os #)", text, re.M)
