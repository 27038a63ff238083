"""Whether convergence was measured with the micro-batch that will be used."""

import pytest
from decide_records import Study, cluster_of, trial

from scaler.batch import BatchPlan
from scaler.decide.decide import decide
from scaler.decide.spread import spread_reason
from scaler.records import CONFIRMING_SEED

STUDY = Study()
NORMALISED = STUDY.workload().model_copy(update={"batch_statistics": ("layers.1", "layers.4")})
SAYS_SO = STUDY.workload().model_copy(update={"spread_matters": True})


def trials(*plans):
    return [
        trial(plan.global_batch, 0.1, seed, 10_000).model_copy(update={"plan": plan})
        for seed, plan in enumerate(plans)
    ]


HALVES, WHOLE, PASSES = BatchPlan.equal(32, 1, 2), BatchPlan.equal(64, 1, 1), BatchPlan.equal(16, 2, 2)


def test_a_workload_without_batch_statistics_says_nothing():
    assert spread_reason(trials(WHOLE), STUDY.workload(), HALVES) is None
    config = decide(STUDY.records(), cluster_of())
    assert all("spread" not in answer.reasons for answer in config.answers)


@pytest.mark.parametrize(
    ("sizes", "why"), [(NORMALISED, "batch statistics (layers.1, layers.4)"), (SAYS_SO, "the spread matters")]
)
def test_the_micro_batch_that_will_be_used_is_held_against_those_of_the_trials(sizes, why):
    same = spread_reason(trials(HALVES, HALVES), sizes, HALVES)
    assert why in same and "measured with the micro-batch that will be used, 32 on 2 workers" in same
    other = spread_reason(trials(WHOLE, PASSES), sizes, HALVES)
    assert why in other
    assert "measured with 16 on 2 workers and 64 on 1 worker, not with 32 on 2 workers" in other
    assert "not measured at this batch" in spread_reason(trials(WHOLE), sizes, BatchPlan.equal(8, 1, 1))


def test_accumulating_passes_of_the_same_size_normalise_over_the_same_examples():
    twice = BatchPlan.equal(32, 2, 1)
    assert "that will be used, 32 on 1 worker" in spread_reason(trials(twice), NORMALISED, twice)


def test_the_confirming_run_is_no_evidence_beforehand():
    seen = [t.model_copy(update={"seed": CONFIRMING_SEED}) for t in trials(HALVES)]
    assert "not measured" in spread_reason(seen, NORMALISED, HALVES)


def test_unequal_micro_batches_are_given_as_a_range():
    unequal = BatchPlan(micro_batches=(20, 44), accumulation=1, zero_stage=0)
    assert "20 to 44 on 2 workers" in spread_reason(trials(unequal), NORMALISED, unequal)


def test_every_answer_of_such_a_workload_says_it():
    records = [NORMALISED, *STUDY.records()[1:]]
    config = decide(records, cluster_of())
    assert all(answer.reasons["spread"].startswith("the model has batch") for answer in config.answers)
    assert "will be used" in config.answers[0].reasons["spread"]  # the trials ran on one worker
