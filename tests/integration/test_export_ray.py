"""The script that `scaler export --to ray` writes runs on Ray Train, and takes the plan's own steps."""

import contextlib
import io
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.config import Answer
from scaler.device import Device
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.open import open_engine
from scaler.export.job import Job
from scaler.export.ray import ray_text, scaling_arguments
from scaler.runtime.protocol import Rank
from scaler.runtime.ray_cluster import ray_cluster
from scaler.stats import Estimate
from scaler.workload import load_workload

pytestmark = pytest.mark.integration

STEPS, RATE = 6, 0.1
CLUSTER = Cluster(name="here", workers=2, kind="cpu")
UNEQUAL = BatchPlan(micro_batches=(40, 24), accumulation=2)


@pytest.fixture(scope="module", autouse=True)
def here() -> Iterator[None]:
    with ray_cluster(CLUSTER, None, {}):
        yield


def job_of(plan: BatchPlan, **cluster) -> Job:
    given = Estimate(value=1.0, samples=1, method="given")
    answer = Answer(
        plan=plan,
        learning_rate=RATE,
        warmup_steps=3,
        warmup_examples=3 * plan.global_batch,
        step_time_s=given,
        samples_per_s=given,
        examples_to_target=given.scaled(STEPS * plan.global_batch),
        bound_by="no evidence",
        reasons={},
    )
    return Job(answer, CLUSTER.model_copy(update=cluster), "digits", "mine.py:workload")


def trained_by_the_engine(plan: BatchPlan) -> dict[str, torch.Tensor]:
    """The same global batches in one process, by the engine that measures."""
    whole = BatchPlan.equal(plan.global_batch, 1, 1)
    rank, workload = Rank(0, 1, Device("cpu", None)), load_workload("digits")
    engine = open_engine(workload, whole, rank, RATE, seed=0)
    batches = rank_steps(workload, load_train_data(workload, plan.global_batch), whole, 0, seed=0)
    for step in range(1, STEPS + 1):
        engine.step(next(batches), min(1.0, step / 3))
    return engine.module.state_dict()


def test_the_script_trains_as_the_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A file beside the script: workers train in another folder.
    (tmp_path / "mine.py").write_text("from scaler.workloads.digits import workload\n", encoding="utf-8")
    (tmp_path / "train_digits.py").write_text(ray_text(job_of(UNEQUAL)), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path("train_digits.py", run_name="__main__")
    checkpoint = Path(printed.getvalue().strip().splitlines()[-1])
    assert tmp_path in checkpoint.parents
    found, true = torch.load(checkpoint / "model.pt"), trained_by_the_engine(UNEQUAL)
    assert found.keys() == true.keys()
    for name, tensor in true.items():
        assert torch.allclose(found[name], tensor, atol=1e-5), name
    assert ray.is_initialized()


@pytest.mark.parametrize("kind", ["cpu", "mock", "cuda"])
def test_ray_takes_the_scaling(kind: str) -> None:
    config = ray.train.ScalingConfig(**scaling_arguments(job_of(BatchPlan.equal(8, 2, 2), kind=kind)))
    assert config.num_workers == 2
    assert config.total_resources == {"CPU": 2} | ({"GPU": 2} if kind == "cuda" else {})
