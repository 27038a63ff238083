"""The chosen global batch kept exactly on every worker count, so that training goes on unchanged."""

import pytest
from decide_records import BATCHES, Study, cluster_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.batch import BatchPlan
from scaler.decide.decide import decide

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25)

STUDY = Study()
RECORDS = STUDY.records()
CONFIG = decide(RECORDS, cluster_of((1, 12)))


@quiet
@given(
    st.integers(1, 40), st.integers(1, 12), st.sampled_from([24, 40, 256]), st.sampled_from(["time", "cost"])
)
def test_the_global_batch_is_the_chosen_one_on_every_worker_count(fewest, more, memory_mib, objective):
    config = decide(RECORDS, cluster_of((fewest, fewest + more), memory_mib), objective=objective)
    assert [kept.workers for kept in config.kept_batch] == [answer.plan.workers for answer in config.answers]
    batch = config.chosen.plan.global_batch
    for kept, own in zip(config.kept_batch, config.answers, strict=True):
        if kept.plan is None:
            assert kept.infeasible
            assert kept.step_time_s is None and kept.time_to_target_s is None and kept.time_ratio is None
            continue
        assert kept.infeasible is None
        assert kept.plan.accumulation * sum(kept.plan.micro_batches) == batch
        assert kept.plan.workers == kept.workers
        assert max(kept.plan.micro_batches) - min(kept.plan.micro_batches) <= 1
        assert 1.05 * STUDY.peak_bytes(kept.plan) <= 1.001 * memory_mib * 2**20
        # The count's own answer is the best of its plans, this one among them.
        assert kept.time_ratio >= 1 - 1e-9
        assert kept.time_ratio == pytest.approx(kept.time_to_target_s.value / own.time_to_target_s.value)


def test_the_chosen_worker_count_keeps_its_own_answer():
    (kept,) = [kept for kept in CONFIG.kept_batch if kept.workers == CONFIG.chosen_workers]
    assert kept.plan == CONFIG.chosen.plan
    assert kept.time_ratio == pytest.approx(1)
    assert kept.step_time_s == CONFIG.chosen.step_time_s
    assert kept.time_to_target_s == CONFIG.chosen.time_to_target_s


def test_entries_are_unequal_where_the_batch_does_not_divide():
    for kept in CONFIG.kept_batch:
        assert kept.plan.is_equal == (CONFIG.chosen.plan.global_batch % kept.workers == 0)
        assert kept.plan == BatchPlan.split(CONFIG.chosen.plan.global_batch, kept.workers, 2318)
    assert not all(kept.plan.is_equal for kept in CONFIG.kept_batch)


def test_the_times_are_those_of_the_plans():
    batch = CONFIG.chosen.plan.global_batch
    for kept in CONFIG.kept_batch[:4]:
        step_s = STUDY.step_time_s(kept.plan)
        assert kept.step_time_s.value == pytest.approx(step_s, rel=0.05)
        mean_step_s = step_s * (0.9 + 1 + 1.2) / 3
        time_s = STUDY.examples(batch) / batch * mean_step_s
        assert kept.time_to_target_s.value == pytest.approx(time_s, rel=0.06)


def test_little_memory_is_met_by_more_passes():
    config = decide(Study(critical_batch=1e5).records(), cluster_of((1, 8), memory_mib=28))
    assert {kept.plan.global_batch for kept in config.kept_batch} == {config.chosen.plan.global_batch}
    passes = [kept.plan.accumulation for kept in config.kept_batch]
    assert passes == sorted(passes, reverse=True)
    assert passes[0] > 1 == passes[-1]


def test_a_worker_count_that_cannot_take_the_batch_says_why():
    # The chosen batch has an example for each of 48 workers; others keep the reference batch of 64.
    config = decide(STUDY.records(batches=(32, 48)), cluster_of((30, 64)))
    assert config.chosen.plan.global_batch == 48
    beyond = [kept for kept in config.kept_batch if kept.workers > 48]
    assert len(beyond) == 16
    for kept in beyond:
        assert kept.plan is None
        assert f"a global batch of 48 leaves {kept.workers - 48} of {kept.workers} workers" in kept.infeasible
    assert all(kept.plan for kept in config.kept_batch if kept.workers <= 48)


def test_a_prime_batch_that_no_accumulation_divides_says_so():
    study = Study(critical_batch=1e5, train_examples=1439, memory_mib=60)
    config = decide(study.records(batches=(32, 128, 512, 1439)), cluster_of(memory_mib=60))
    assert config.chosen.plan.global_batch == 1439
    found = {kept.workers: kept for kept in config.kept_batch}
    assert found[4].plan.micro_batches == (360, 360, 360, 359)
    assert "1439 does not split over 2 workers" in found[2].infeasible


def test_a_cost_is_kept_by_the_same_rule():
    config = decide(RECORDS, cluster_of((1, 6), price_per_device_hour=2.0), objective="cost")
    batch = config.chosen.plan.global_batch
    assert {kept.plan.global_batch for kept in config.kept_batch} == {batch} <= set(BATCHES)


def test_a_single_worker_count_has_nothing_to_go_on_with():
    assert decide(RECORDS, cluster_of(3)).kept_batch == ()
    assert decide(RECORDS, cluster_of(), pinned=BatchPlan.equal(64, 2, 2)).kept_batch == ()


def test_without_a_target_nothing_is_kept():
    assert decide(STUDY.records(reached=lambda _batch: False), cluster_of()).kept_batch == ()
