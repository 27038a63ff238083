"""The answer where no run to the target fits: the largest batch that does not lose."""

import numpy as np
import pytest
from decide_records import REFERENCE_BATCH, REFERENCE_RATE, Study, cluster_of, seen, trial

from scaler.batch import BatchPlan
from scaler.decide.config import BatchConfig
from scaler.decide.confirm import with_confirmation
from scaler.decide.decide import decide
from scaler.records import CONFIRMING_SEED, BranchRecord, ThroughputRecord
from scaler.report.terminal import answer_table

STUDY = Study()
POINTS, EXAMPLES = 32, 32 * 8 * REFERENCE_BATCH


def branch(growth: int, slowdown: float, seed: int, wobble: float = 0.0, **fields) -> BranchRecord:
    taken = EXAMPLES / POINTS * np.arange(POINTS)
    losses = 2.0 - taken / slowdown / EXAMPLES + 0.02 * seed + wobble
    base = {
        "plan": BatchPlan.equal(growth * REFERENCE_BATCH, 1, 1),
        "reference_batch": REFERENCE_BATCH,
        "learning_rate": float(f"{REFERENCE_RATE * growth**0.5:.4g}"),
        "rate_rule": "square root",
        "start_examples": 20_000,
        "examples": EXAMPLES,
        "points": POINTS,
        "losses": tuple(losses),
        "held_out_examples": 512,
        "held_out_loss": float(losses[-1]),
    }
    return BranchRecord(**seen(f"b{growth}-{seed}", seed), **base | fields)


def branches(slowdowns, wobble=0.0, **fields):
    return [
        branch(growth, slowdown, seed, wobble * (seed - 2) * (growth > 1), **fields)
        for growth, slowdown in slowdowns.items()
        for seed in (1, 2, 3)
    ]


def measured(*, more=()):
    return [STUDY.workload(), *STUDY.memory(), *STUDY.throughput(), *more]


LOSES_AT_8 = {1: 1.0, 2: 1.02, 4: 1.1, 8: 1.8}


def config_of(slowdowns, cluster=None, **fields) -> BatchConfig:
    return decide(measured(more=branches(slowdowns, wobble=0.002, **fields)), cluster or cluster_of())


def test_every_worker_count_gets_the_largest_batch_that_does_not_lose():
    config = config_of(LOSES_AT_8)
    assert [a.plan.workers for a in config.answers] == [1, 2, 3, 4]
    for answer in config.answers:
        assert answer.plan.global_batch == 4 * REFERENCE_BATCH
        assert answer.learning_rate == pytest.approx(2 * REFERENCE_RATE, rel=1e-3)
        assert answer.bound_by == "critical batch"
        assert answer.time_to_target_s is answer.examples_to_target is answer.steps_to_target is None
        assert answer.step_time_s.value == pytest.approx(STUDY.step_time_s(answer.plan), rel=0.1)
        assert answer.peak_memory_bytes is not None
    assert "time_to_target_s" not in config.to_dict()["answers"][0]
    assert config.branching is not None and config.branching.best.global_batch == 4 * REFERENCE_BATCH


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_relative_time_is_time_per_example_times_examples_for_the_same_loss(workers):
    answer = config_of(LOSES_AT_8).answers[workers - 1]
    small = BatchPlan.split(REFERENCE_BATCH, workers, 2000)
    true = STUDY.step_time_s(answer.plan) / 4 / STUDY.step_time_s(small) * 1.1
    assert answer.relative_time.value == pytest.approx(true, rel=0.1)
    assert answer.relative_time.low < true < answer.relative_time.high


def test_a_larger_batch_is_not_credited_with_fewer_examples():
    """Its rate lets the loss fall below the reference's for a while."""
    plain, better = (config_of({1: 1.0, 2: slow, 4: 8.0}).answers[0].relative_time for slow in (1.0, 0.8))
    assert better.value == pytest.approx(plain.value, rel=0.01)
    assert better.low <= better.value <= better.high


def test_each_number_has_its_reason():
    answer = config_of(LOSES_AT_8).chosen
    assert answer.reasons["global_batch"].startswith(
        "the largest of 64, 128, 256, 512 that does not lose over"
    )
    assert "20,000 examples" in answer.reasons["global_batch"]
    assert answer.reasons["learning_rate"].startswith(
        "the reference's, 0.07, x 2: the square root of the batch's"
    )
    assert "256 does not lose and 512 does" in answer.reasons["bound_by"]
    assert "longer" in answer.reasons["time_to_target"]
    assert "64 on the same workers" in answer.reasons["relative_time"]
    linear = config_of({1: 1.0, 2: 1.0, 4: 9.0}, rate_rule="linear").chosen
    assert "linear in the batch's growth of 2" in linear.reasons["learning_rate"]


def test_without_a_losing_batch_larger_ones_may_keep_up_as_well():
    config = config_of({1: 1.0, 2: 1.0, 4: 1.0})
    assert config.chosen.bound_by == "largest batch measured"
    assert config.findings.critical_batch is None
    assert any("critical batch: at least" in note for note in config.findings.notes)


def test_where_nothing_is_shown_to_keep_up_the_reference_is_kept():
    for slowdowns, wobble, bound in (
        ({1: 1.0, 2: 5.0}, 0.002, "critical batch"),
        ({1: 1.0, 2: 1.3}, 0.4, "no evidence"),
    ):
        config = decide(measured(more=branches(slowdowns, wobble)), cluster_of())
        assert config.chosen.plan.global_batch == REFERENCE_BATCH
        assert config.chosen.learning_rate == REFERENCE_RATE
        assert config.chosen.bound_by == bound
        assert config.chosen.relative_time is None
    assert any("128: whether it loses is not settled" in note for note in config.findings.notes)


def test_branches_without_the_optimizers_state_are_noted():
    notes = config_of(LOSES_AT_8, rewarm_examples=1_024, start_examples=None).findings.notes
    assert any("no optimizer state" in note and "1,024 examples" in note for note in notes)


def test_the_critical_batch_is_the_branches_where_no_trial_tells():
    config = config_of({1: 1.0, 2: 1.3, 4: 1.9, 8: 3.0})
    estimate = config.findings.critical_batch
    assert estimate is not None and estimate.method.startswith("branches")
    assert not any(note.startswith("critical batch") for note in config.findings.notes)


def test_a_trial_that_reached_the_target_counts_for_more_than_branches():
    reached = [trial(64, REFERENCE_RATE, seed, 10_000) for seed in (0, 1)]
    config = decide(measured(more=[*branches(LOSES_AT_8), *reached]), cluster_of())
    assert config.chosen.time_to_target_s is not None
    assert config.branching is None and config.chosen.relative_time is None


def test_a_pinned_plan_is_kept_whatever_was_branched():
    plan = BatchPlan.equal(32, 1, 2)
    config = decide(measured(more=branches(LOSES_AT_8)), cluster_of(), pinned=plan)
    assert config.chosen.plan == plan and config.chosen.relative_time is None


def test_one_launch_stands_in_for_the_confirming_run():
    records = measured(more=branches(LOSES_AT_8, wobble=0.002))
    config = decide(records, cluster_of())
    plan = config.chosen.plan
    launch = STUDY.run(plan).model_copy(update={"seed": CONFIRMING_SEED, "task": "confirm"})
    peak = STUDY.peak(plan).model_copy(update={"seed": CONFIRMING_SEED, "task": "confirm peak"})
    assert isinstance(launch, ThroughputRecord) and launch.held_out
    confirmed = with_confirmation(config, [*records, launch, peak]).confirmation
    assert confirmed.reached is confirmed.examples is confirmed.steps is None
    assert [c.quantity for c in confirmed.comparisons] == ["step_time_s", "peak_memory_bytes"]
    assert decide([*records, launch], cluster_of()).chosen.step_time_s == config.chosen.step_time_s


def test_the_answer_is_written_and_read_back():
    config = config_of(LOSES_AT_8)
    assert BatchConfig.model_validate(config.to_dict()) == config
    assert answer_table(config)
