"""Predicted peaks of sharded steps beside those of real engines: two processes, gloo, DDP and DeepSpeed."""

import functools
import importlib.util
import json

import pytest
import zero_memory
from rank_processes import run_ranks
from trace_cases import program
from zero_memory import CASES, LINEAR, WORLD, bucket_elements, case, plan

from scaler.trace.sharding import Sharding, shard

NEAR = 0.06
EXACT = 0.001  # DDP's reducer adds a few bytes of its own
WRONG = {
    ("bf16", 3): "DeepSpeed's linear layer keeps no 16-bit copies of weights",
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank found."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    folder = tmp_path_factory.mktemp("zero")
    ended = run_ranks(zero_memory.__file__, folder, WORLD, timeout_s=200, DS_ACCELERATOR="cpu")
    assert [rank.code for rank in ended] == [0] * WORLD, "\n".join(rank.output[-3000:] for rank in ended)
    return [json.loads((folder / f"peaks-{number}.json").read_text()) for number in range(WORLD)]


@pytest.fixture(scope="module")
def measured(ranks):
    """The peaks of every case on the two ranks, each taken twice."""
    first, second = (rank["peaks"] for rank in ranks)
    return {(a[0], a[1]): (a[2], b[2]) for a, b in zip(first, second, strict=True)}


@functools.cache
def unsharded(name):
    return program(case(name), plan(name, 0).accumulation)


def predicted(name, stage):
    spread = plan(name, stage)
    sharding = Sharding(
        WORLD, stage, case(name).gradient_as_bucket_view, bucket_elements=bucket_elements(name)
    )
    return shard(unsharded(name), sharding).count(spread.micro_batch).allocated_bytes


def marked(name, stage):
    reason = WRONG.get((name, stage))
    return pytest.param(name, stage, marks=[pytest.mark.xfail(strict=True, reason=reason)] if reason else [])


@pytest.mark.integration
@pytest.mark.parametrize(("name", "stage"), [marked(*pair) for pair in CASES])
def test_the_prediction_is_near_the_real_engines_peak(measured, name, stage):
    """Of each rank's two peaks the lower: gloo's thread, or a collector, may let a bucket go late."""
    peaks = [min(repeated) for repeated in measured[name, stage]]
    tolerance = NEAR if stage else EXACT
    assert predicted(name, stage) == pytest.approx(max(peaks), rel=tolerance)


@pytest.mark.integration
def test_an_engine_of_stage_3_leaves_torch_as_it_was(ranks):
    """What a process measures next would differ: the replacement keeps other tensors for backward."""
    assert [rank["linear"] for rank in ranks] == [str(LINEAR)] * WORLD
