"""DeepSpeed's stages take the step that the plain engine takes."""

import importlib.util
import sys
from typing import get_args

import numpy as np
import pytest
import torch
import zero_steps
from rank_processes import run_ranks
from spread_cases import STEPS
from zero_steps import PLANS, STAGES

from scaler.batch import BatchPlan
from scaler.engine.open import open_engine
from scaler.errors import BadInput
from scaler.records import RECORD, StepPhase

CLOSE = 1e-5


def results(folder, world):
    """What each of `world` processes found."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    ended = run_ranks(zero_steps.__file__, folder, world, timeout_s=120, DS_ACCELERATOR="cpu")
    assert [rank.code for rank in ended] == [0] * world, "\n".join(rank.output[-3000:] for rank in ended)
    return [torch.load(folder / f"zero-{world}-{number}.pt") for number in range(world)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    return {world: results(folder, world) for world in PLANS}


@pytest.mark.integration
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["momentum", "tokens", "clipped"])
@pytest.mark.parametrize(("world", "spread"), [(world, spread) for world in PLANS for spread in PLANS[world]])
def test_a_sharded_step_is_the_plain_step(found, world, spread, name, stage):
    for rank in found[world]:
        sharded, plain = rank[name, spread, stage], rank[name, spread, 0]
        assert sharded["parameters"].shape == plain["parameters"].shape
        assert sharded["parameters"].shape[0] == 1 + STEPS
        assert torch.allclose(sharded["parameters"], plain["parameters"], rtol=0, atol=CLOSE)
        assert sharded["losses"] == pytest.approx(plain["losses"], abs=CLOSE)


@pytest.mark.integration
@pytest.mark.parametrize("stage", STAGES)
def test_a_sharded_trial_has_the_plain_curve(found, stage):
    sharded, plain = found[1][0]["curve", stage], found[1][0]["curve", 0]
    assert [examples for examples, _ in sharded] == [examples for examples, _ in plain]
    assert [metric for _, metric in sharded] == pytest.approx([metric for _, metric in plain], abs=CLOSE)


@pytest.mark.integration
@pytest.mark.parametrize("stage", STAGES)
def test_sharded_steps_are_split_into_phases(found, stage):
    first, second = (RECORD.validate_json(rank["throughput", stage]) for rank in found[2])
    assert len(first.step_times_s) == len(second.step_times_s) >= 6
    for record in (first, second):
        phases = np.array([record.phase_times_s[phase] for phase in get_args(StepPhase)])
        assert (phases.sum(axis=0) <= record.step_times_s).all()
        assert min(record.phase_times_s["sync"][1:]) > 0
    assert len(first.rank_compute_s) == 2


def test_without_deepspeed_a_stage_is_bad_input(tiny, rank, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(BadInput, match="needs DeepSpeed, which is not installed") as caught:
        open_engine(tiny(), BatchPlan.equal(8, 1, 1, zero_stage=1), rank, 0.1, 0)
    assert "scaler[deepspeed]" in caught.value.hint
