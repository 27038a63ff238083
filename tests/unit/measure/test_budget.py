"""What measuring will cost, and a budget that is a share of the training run."""

import math

import pytest
from asking import Asked

from scaler.errors import BadInput
from scaler.launch import LaunchConfig
from scaler.measure.budget import expected_cost
from scaler.measure.evidence import Evidence
from scaler.measure.stages import measure
from scaler.runs import RunFolder
from scaler.runtime.local import LocalRuntime
from scaler.workload import Target


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ("--budget bounds it", "12 times the examples")),
        ({"budget": "1h"}, ("at most 3600s, 2 device-hours",)),
        ({"budget": "3 device-hours"}, ("at most 3 device-hours",)),
        ({"budget": "5%"}, ("at most 5%",)),
        ({"from_checkpoint": "state.pt"}, ("branches of the checkpoint",)),
    ],
)
def test_the_cost_is_said_before_anything_starts(cluster, given, words):
    said = expected_cost(LaunchConfig(workload="tiny", cluster=cluster(), **given), 2)
    assert said.startswith("to be measured on up to 2 workers")
    assert all(word in said for word in words)


def measured(cluster, workload, path, said):
    path.mkdir()
    launch = LaunchConfig(workload="tiny", cluster=cluster, runtime="local", budget="50%")
    evidence = Evidence(
        Asked(LocalRuntime(cluster, workload)), RunFolder(path), launch.budget_s, notice=said.append
    )
    measure(evidence, workload, launch, 1)
    return evidence


def test_a_share_of_the_training_run_bounds_measuring(cluster, tiny, tmp_path):
    said = []
    target = Target(0.05, "min", max_examples=10**9, evaluate_every=64)
    evidence = measured(cluster(), tiny(target=target), tmp_path / "run", said)
    assert not math.isinf(evidence.left_s())
    assert any("a run at the reference takes at most" in line for line in said)


def test_a_share_of_a_run_of_unknown_length_is_refused(cluster, tiny, tmp_path):
    with pytest.raises(BadInput, match="how long a run may be is not known") as caught:
        measured(cluster(), tiny(target=Target(0.05, "min")), tmp_path / "run", [])
    assert "max_examples" in caught.value.hint
