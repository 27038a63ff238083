import sys

import pytest

from scaler.job import unmet, version_differences

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}.99"


@pytest.mark.parametrize(
    ("requirement", "fault"),
    [
        ("torch>=2.0", None),
        ("ray[train]>=2,<99", None),
        ("deepspeed>=99; extra == 'deepspeed'", None),
        ("torch>=99", "torch>=99: 2."),
        ("no-such-package>=1", "no-such-package>=1: not installed"),
    ],
)
def test_what_a_cluster_lacks_is_named_with_what_it_has(requirement: str, fault: str | None) -> None:
    found = unmet([requirement], ">=3.11")
    assert found == [] if fault is None else found[0].startswith(fault)


def test_everything_that_is_lacking_is_named_at_once() -> None:
    assert len(unmet(["torch>=99", "numpy", "nix"], "<3")) == 3


def test_the_same_versions_are_not_worth_a_word() -> None:
    same = {"python": PYTHON, "ray": "2.60.0", "scaler": "0.1.0"}
    assert version_differences(same, {**same, "python": PYTHON.replace(".99", ".1")}, {"0.1.0"}) == []


def test_every_difference_is_named() -> None:
    sender = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "scaler": "0.2.0"}
    cluster = {"python": "3.12.1", "ray": "2.61.0", "scaler": "0.2.0"}
    assert version_differences(sender, cluster, {"0.1.0", "0.2.0"}) == [
        "python 3.12 on the cluster, 3.11 where the job was submitted",
        "ray 2.61.0 on the cluster, 2.60.0 where the job was submitted",
        "torch missing on the cluster, 2.13.0 where the job was submitted",
        "scaler 0.2.0 came with the job, 0.1.0 on the cluster is not used",
    ]
