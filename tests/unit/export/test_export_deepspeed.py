"""DeepSpeed's own class reads the file, and `deepspeed.initialize` trains by it."""

import importlib.util
import json
from pathlib import Path

import deepspeed_reads
import pytest
from export_cases import job_of
from rank_processes import run_ranks

from scaler.batch import BatchPlan
from scaler.export.deepspeed import deepspeed_text

RATE, WARMUP = 0.04, 5
JOBS = {
    "plain": job_of(BatchPlan.equal(8, 1, 2), learning_rate=RATE),
    "sharded": job_of(BatchPlan.equal(4, 3, 2, zero_stage=2), learning_rate=RATE, warmup_steps=WARMUP),
}

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed: pip install 'scaler[deepspeed]'")
    folder = tmp_path_factory.mktemp("deepspeed")
    for name, job in JOBS.items():
        (folder / f"{name}.json").write_text(deepspeed_text(job), encoding="utf-8")
    ended = run_ranks(deepspeed_reads.__file__, folder, 2, timeout_s=90, DS_ACCELERATOR="cpu")
    assert [rank.code for rank in ended] == [0, 0], "\n".join(rank.output[-3000:] for rank in ended)
    return [json.loads(Path(folder / f"found-{rank}.txt").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.parametrize("name", JOBS)
def test_it_trains_by_the_plan(found: list[dict], name: str) -> None:
    plan = JOBS[name].plan
    for rank in found:
        assert rank[name]["global_batch"] == plan.global_batch
        assert rank[name]["passes"] == 8 * plan.accumulation
        assert rank[name]["stage"] == plan.zero_stage


def test_it_trains_at_the_learning_rate(found: list[dict]) -> None:
    assert found[0]["plain"]["rates"] == [RATE] * 8


def test_its_warm_up_is_one_step_behind(found: list[dict]) -> None:
    steps = [1, 1, 2, 3, 4, 5, 5, 5]
    assert found[0]["sharded"]["rates"] == pytest.approx([RATE * step / WARMUP for step in steps])


def test_hugging_face_fills_its_arguments_in(found: list[dict]) -> None:
    read = found[0]["hugging face"]
    assert read["zero_optimization"]["stage"] == 2
    assert read["train_batch_size"] == 8 * 2 * 2
    assert read["train_micro_batch_size_per_gpu"] == 8 and read["gradient_accumulation_steps"] == 2
