"""Which limit an answer names, in situations made for each."""

import pytest
from decide_records import BATCHES, REFERENCE_BATCH, REFERENCE_RATE, Study, best_rate, cluster_of

from scaler.batch import BatchPlan
from scaler.decide.decide import decide

NEVER_BENDS = 1e5  # a critical batch far beyond every batch


def bounds(study: Study, workers=(1, 4), **trials) -> dict[int, str]:
    config = decide(study.records(**trials), cluster_of(workers, memory_mib=study.memory_mib))
    assert not config.infeasible
    return {a.plan.workers: a.bound_by for a in config.answers}


def test_a_batch_below_the_largest_is_bound_by_the_critical_batch():
    assert set(bounds(Study()).values()) == {"critical batch"}


def test_a_curve_that_never_bends_is_bound_by_the_largest_batch_measured():
    study = Study(critical_batch=NEVER_BENDS)
    assert set(bounds(study).values()) == {"largest batch measured"}
    config = decide(study.records(), cluster_of())
    assert {a.plan.global_batch for a in config.answers} == {max(BATCHES)}


def test_a_batch_of_all_the_data_is_bound_by_the_data_set():
    study = Study(critical_batch=NEVER_BENDS, train_examples=max(BATCHES))
    assert set(bounds(study).values()) == {"dataset size"}


def test_a_pass_that_must_be_repeated_is_bound_by_memory():
    # One pass holds 128 examples, and each pass costs the overhead again.
    study = Study(critical_batch=NEVER_BENDS, memory_mib=28)
    found = bounds(study)
    assert set(found.values()) == {"memory"}
    (answer,) = decide(study.records(), cluster_of(1, memory_mib=28)).answers
    assert answer.plan.micro_batch <= 146
    assert "device memory" in answer.reasons["bound_by"]


def test_accumulation_that_costs_nothing_is_not_a_bound():
    study = Study(critical_batch=NEVER_BENDS, memory_mib=28, overhead_s=1e-7, per_example_s=1e-3)
    (answer,) = decide(study.records(), cluster_of(1, memory_mib=28)).answers
    assert answer.bound_by != "memory"


def test_where_accumulating_does_not_fit_the_bound_is_memory():
    study = Study(critical_batch=NEVER_BENDS, memory_mib=28, gradients_mib=30)
    config = decide(study.records(), cluster_of(memory_mib=28))
    assert [a.plan.workers for a in config.answers] == [1, 2, 3, 4]
    assert {a.plan.accumulation for a in config.answers} == {1}
    assert {a.plan.global_batch for a in config.answers} == {128, 256, 512}
    assert {a.bound_by for a in config.answers} == {"memory"}


def test_a_faster_batch_that_memory_rules_out_makes_memory_the_bound():
    # 1,439 is prime: two workers take it in one pass or not at all.
    study = Study(critical_batch=NEVER_BENDS, train_examples=1439, memory_mib=60)
    config = decide(study.records(batches=(32, 128, 512, 1439)), cluster_of(memory_mib=60))
    bound = {a.plan.workers: (a.plan.global_batch, a.bound_by) for a in config.answers}
    assert bound[4] == (1439, "dataset size")
    assert bound[2] == (1024, "memory")  # not tried, but between batches that were


def test_a_pinned_plan_is_bound_by_being_pinned():
    pinned = BatchPlan.equal(64, 2, 2)
    config = decide(Study().records(batches=(256,)), cluster_of(), pinned=pinned)
    (answer,) = config.answers
    assert answer.plan == pinned
    assert (answer.bound_by, config.chosen_workers) == ("pinned plan", 2)
    assert answer.time_to_target_s is not None
    assert config.rules_of_thumb == ()


def test_a_pinned_plan_is_judged_by_the_trials_of_its_own_batch():
    (answer,) = decide(Study().records(), cluster_of(), pinned=BatchPlan.equal(64, 2, 2)).answers
    assert answer.learning_rate == best_rate(256)
    assert answer.examples_to_target.value == pytest.approx(Study().examples(256), rel=0.05)


def test_a_pinned_plan_needs_no_memory_measured():
    study = Study()
    records = [study.workload(), *study.throughput(), *study.trials(batches=(256,))]
    (answer,) = decide(records, cluster_of(), pinned=BatchPlan.equal(64, 2, 2)).answers
    assert answer.peak_memory_bytes is None


def test_a_pinned_plan_stays_where_no_trial_reached_the_target():
    pinned = BatchPlan.equal(64, 2, 2)
    records = Study().records(batches=(256,), reached=lambda _batch: False)
    (answer,) = decide(records, cluster_of(), pinned=pinned).answers
    assert answer.plan == pinned
    assert answer.time_to_target_s is None


@pytest.mark.parametrize("trials", [{"reached": lambda _batch: False}, {"batches": ()}])
def test_where_nothing_reached_the_target_the_reference_is_kept(trials):
    config = decide(Study().records(**trials), cluster_of())
    assert [a.plan.workers for a in config.answers] == [1, 2, 3, 4]
    for answer in config.answers:
        assert answer.bound_by == "no evidence"
        assert answer.plan.global_batch == REFERENCE_BATCH
        assert answer.learning_rate == REFERENCE_RATE
        assert answer.examples_to_target is None
        assert answer.steps_to_target is None
        assert answer.time_to_target_s is None
        assert answer.cost_to_target is None
        assert answer.step_time_s.value > 0
    rates = {a.plan.workers: a.samples_per_s.value for a in config.answers}
    assert config.chosen_workers == max(rates, key=rates.__getitem__)
    assert config.rules_of_thumb == ()


def test_an_answer_with_a_time_goes_before_one_without():
    # Two workers can take the batch that reached the target, five only the reference.
    study = Study()
    records = [study.workload(), *study.memory(), *study.throughput(), *study.trials(batches=(4,))]
    config = decide(records, cluster_of((2, 5)))
    assert {a.plan.workers: a.bound_by for a in config.answers}[5] == "no evidence"
    assert config.chosen_workers < 5
