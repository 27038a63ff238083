"""What would change an answer: each limit lifted saves what it truly would."""

import pytest
from decide_records import BATCHES, Study, cluster_of

from scaler.batch import BatchPlan
from scaler.decide.decide import decide
from scaler.decide.limits import Limits

NEVER_BENDS = 1e5  # a critical batch far beyond every batch
SHARES = {
    "communication": "twice the bandwidth of the links",
    "step overhead": "half the fixed time of a pass",
    "critical batch": "twice the critical batch",
}


def changes_of(study: Study, cluster, records=None, **asked):
    config = decide(records or study.records(), cluster, **asked)
    return config.chosen, {change.limit: change for change in config.changes}


def true_time_s(study: Study, plan: BatchPlan) -> float:
    return study.examples(plan.global_batch) / plan.global_batch * study.step_time_s(plan)


def best_true_time_s(study: Study, counts, batches=BATCHES, largest_pass=10_000) -> float:
    plans = [BatchPlan.split(batch, workers, largest_pass) for batch in batches for workers in counts]
    return min(true_time_s(study, plan) for plan in plans)


@pytest.mark.parametrize(
    ("limit", "study", "lifted"),
    [
        ("communication", Study(sync_s=0.01), Study(sync_s=0.005)),
        ("communication", Study(sync_s=0.02, overhead_s=0.02), Study(sync_s=0.01, overhead_s=0.02)),
        ("step overhead", Study(overhead_s=0.02), Study(overhead_s=0.01)),
        ("step overhead", Study(overhead_s=0.002), Study(overhead_s=0.001)),
        ("critical batch", Study(), Study(critical_batch=600)),
        ("critical batch", Study(critical_batch=100), Study(critical_batch=200)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_lifted_limit_saves_what_it_truly_would(limit, study, lifted):
    _, found = changes_of(study, cluster_of(4))
    assert found[limit].change == SHARES[limit]
    true_ratio = best_true_time_s(lifted, [4]) / best_true_time_s(study, [4])
    assert found[limit].ratio == pytest.approx(true_ratio, rel=0.05)


def test_the_same_is_decided_where_the_links_are_as_fast_as_that():
    cluster = cluster_of(4)
    slow, fast = (decide(Study(sync_s=sync_s).records(), cluster) for sync_s in (0.01, 0.005))
    (change,) = [change for change in slow.changes if change.limit == "communication"]
    ratio = fast.chosen.time_to_target_s.value / slow.chosen.time_to_target_s.value
    assert change.ratio == pytest.approx(ratio, rel=0.04)
    assert change.global_batch == fast.chosen.plan.global_batch


def test_with_faster_links_more_workers_would_be_used():
    study = Study(sync_s=0.004)
    chosen, found = changes_of(study, cluster_of())
    change = found["communication"]
    assert chosen.plan.workers == 1 and change.workers > 1
    assert change.is_other
    ratio = best_true_time_s(Study(sync_s=0.002), range(1, 5)) / best_true_time_s(study, range(1, 5))
    assert change.ratio == pytest.approx(ratio, rel=0.05)


def test_where_a_pass_must_be_repeated_more_memory_saves():
    study = Study(critical_batch=NEVER_BENDS, memory_mib=28)
    chosen, found = changes_of(study, cluster_of(1, memory_mib=28))
    change = found["memory"]
    assert chosen.bound_by == "memory"
    assert (change.global_batch, change.micro_batch, change.accumulation) == (1024, 1024, 1)
    true_ratio = best_true_time_s(study, [1]) / true_time_s(study, chosen.plan)
    assert change.ratio == pytest.approx(true_ratio, rel=0.05)
    # As on a device that has the memory.
    plenty = decide(Study(critical_batch=NEVER_BENDS).records(), cluster_of(1)).chosen
    ratio = plenty.time_to_target_s.value / chosen.time_to_target_s.value
    assert change.ratio == pytest.approx(ratio, rel=0.01)
    assert plenty.plan.micro_batches == (1024,)


def test_memory_that_is_not_short_saves_nothing():
    _, found = changes_of(Study(), cluster_of())
    assert "memory" not in found


def test_a_batch_beyond_those_measured_saves_where_the_curve_has_not_bent():
    chosen, found = changes_of(Study(critical_batch=NEVER_BENDS), cluster_of(4))
    change = found["largest batch measured"]
    assert chosen.plan.global_batch == 1024
    assert change.global_batch == 2048
    far = Study(critical_batch=NEVER_BENDS)
    true_ratio = best_true_time_s(far, [4], [2048]) / best_true_time_s(far, [4])
    assert change.ratio == pytest.approx(true_ratio, rel=0.1)


def test_no_batch_is_larger_than_the_data_unless_there_were_more():
    some, all_of_it = (Study(critical_batch=NEVER_BENDS, train_examples=n) for n in (1500, 1024))
    _, found = changes_of(some, cluster_of(4))
    assert found["largest batch measured"].global_batch == 1500
    _, found = changes_of(all_of_it, cluster_of(4))
    assert found["dataset size"].global_batch == 2048
    assert found["dataset size"].change.startswith("twice the data")


def test_more_workers_save_where_computation_is_what_takes_long():
    study = Study(per_example_s=5e-3)
    chosen, found = changes_of(study, cluster_of(4, nodes=2), spread_over_nodes(study))
    change = found["worker count"]
    assert chosen.plan.workers == 4 and change.workers == 8
    assert change.is_other and change.change == "twice the workers"
    true_ratio = best_true_time_s(study, [8]) / best_true_time_s(study, [4])
    assert change.ratio == pytest.approx(true_ratio, rel=0.05)


def spread_over_nodes(study: Study):
    """Four workers are on two nodes, whose links are as fast as those inside one."""
    return [
        record.model_copy(update={"nodes": 2})
        if record.kind == "throughput" and record.plan.workers == 4
        else record
        for record in study.records()
    ]


def test_workers_that_wait_for_each_other_are_not_missed():
    _, found = changes_of(Study(sync_s=0.05), cluster_of())
    assert "worker count" not in found and "communication" not in found


# All of them


@pytest.mark.parametrize(
    ("study", "memory_mib"),
    [
        (Study(), 256),
        (Study(sync_s=0.01), 256),
        (Study(critical_batch=NEVER_BENDS, memory_mib=28), 28),
        (Study(per_example_s=1e-3), 256),
    ],
    ids=["usual", "slow links", "little memory", "slow devices"],
)
@pytest.mark.parametrize("objective", ["time", "cost", "throughput"])
def test_the_changes_are_real_savings_largest_first(objective, study, memory_mib):
    chosen, found = changes_of(study, cluster_of((1, 4), memory_mib), objective=objective)
    ratios = [change.ratio for change in found.values()]
    assert ratios == sorted(ratios)
    assert all(0 < ratio < 1 for ratio in ratios)
    plan = chosen.plan
    for change in found.values():
        numbers = (change.workers, change.global_batch, change.micro_batch, change.accumulation)
        own = (plan.workers, plan.global_batch, plan.micro_batch, plan.accumulation)
        assert change.is_other == (numbers != own)
        one_pass = -(-change.global_batch // change.accumulation)
        assert change.micro_batch == -(-one_pass // change.workers)


def test_every_answer_is_bound_by_a_limit_whose_change_saves_most():
    config = decide(Study(sync_s=0.01).records(), cluster_of(4))
    ratios = {change.limit: change.ratio for change in config.changes}
    assert config.chosen.bound_by == min(ratios, key=ratios.__getitem__)


def test_a_pinned_plan_and_one_without_a_target_have_no_changes():
    pinned = decide(Study().records(), cluster_of(), pinned=BatchPlan.equal(64, 2, 2))
    untold = decide(Study().records(reached=lambda _batch: False), cluster_of())
    assert pinned.changes == untold.changes == ()


def test_limits_hold_for_the_changes_too():
    study = Study(sync_s=0.004)
    config = decide(study.records(), cluster_of(), limits=Limits(efficiency_loss=0.3))
    assert config.changes
    fewest = study.examples(min(BATCHES))
    for change in config.changes:
        if change.limit != "critical batch":
            assert 1 - fewest / study.examples(change.global_batch) <= 0.32


def test_of_several_zero_stages_each_limit_is_named_once():
    study = Study()
    records = [*study.records(), *study.memory(zero_stage=2), *Study(sync_s=0.002).throughput(zero_stage=2)]
    limits = [change.limit for change in decide(records, cluster_of(), zero_stage=None).changes]
    assert limits and len(set(limits)) == len(limits)
