import pytest
from decide_records import Study, cluster_of, noise

from scaler.decide.decide import decide
from scaler.records import SquaredNorms

STUDY = Study()
OTHERS = [STUDY.workload(), *STUDY.memory(), *STUDY.throughput(), *STUDY.trials()]


def findings(**changes):
    return decide([*OTHERS, noise().model_copy(update=changes)], cluster_of()).findings


def test_groups_and_the_preconditioned_scale_are_found():
    # tr(Sigma) = 32 in both groups; |G|^2 is 1 in the first, and cannot be told from 0 in the second.
    clear = SquaredNorms(small=(3.0,) * 20, big=(1.5,) * 20)
    pure = SquaredNorms(small=(2.0,) * 20, big=(0.4, 0.6) * 10)
    found = findings(groups={"a": clear, "b": pure}, preconditioned=clear)
    assert found.noise_scale_groups.keys() == {"a"}
    assert found.noise_scale_groups["a"].value == pytest.approx(32)
    assert found.noise_scale_preconditioned.value == pytest.approx(32)
    assert found.notes == ("gradient noise scale of b: not identifiable",)


def test_a_scale_that_is_not_identifiable_is_told_from_one_that_was_not_measured():
    found = findings(small_squared_norms=(2.0,) * 20, big_squared_norms=(0.4, 0.6) * 10, left_out_steps=3)
    assert found.noise_scale is None
    assert found.notes == (
        "gradient noise scale: not identifiable from 20 steps, |G|^2 may be 0",
        "gradient noise: 3 steps left out, their gradients were not finite",
    )
    assert decide(OTHERS, cluster_of()).findings.notes == ("gradient noise scale: not measured",)


def test_steps_that_were_all_left_out_give_no_scale():
    found = findings(small_squared_norms=(), big_squared_norms=(), left_out_steps=100)
    assert found.noise_scale is None
    assert "not identifiable from 0 steps" in found.notes[0]
