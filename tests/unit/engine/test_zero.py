"""DeepSpeed's stages take the step that the plain engine takes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from spread_cases import STEPS

from scaler.batch import BatchPlan
from scaler.engine.open import open_engine
from scaler.errors import BadInput

CASES = [(name, stage, passes) for name in ("momentum", "tokens") for stage in (1, 2, 3) for passes in (1, 2)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    file = tmp_path_factory.mktemp("zero") / "found.pt"
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("zero_steps.py")
    run = subprocess.run(
        [sys.executable, str(script), str(file)], env=env, capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return torch.load(file)


@pytest.mark.integration
@pytest.mark.parametrize(("name", "stage", "passes"), CASES)
def test_a_sharded_step_is_the_plain_step(found, name, stage, passes):
    sharded, plain = found[name, stage, passes]
    assert sharded["parameters"].shape == plain["parameters"].shape
    assert sharded["parameters"].shape[0] == 1 + STEPS
    assert torch.allclose(sharded["parameters"], plain["parameters"], rtol=0, atol=1e-5)
    assert sharded["losses"] == pytest.approx(plain["losses"], abs=1e-5)


def test_without_deepspeed_a_stage_is_bad_input(tiny, rank, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(BadInput, match="needs DeepSpeed, which is not installed") as caught:
        open_engine(tiny(), BatchPlan.equal(8, 1, 1, zero_stage=1), rank, 0.1, 0)
    assert "scaler[deepspeed]" in caught.value.hint
