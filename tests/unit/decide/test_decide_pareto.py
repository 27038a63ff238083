"""The plans that no other beats in time, cost and examples at once."""

import itertools

import numpy as np
import pytest
from decide_records import Study, cluster_of

from scaler.decide.choose import options
from scaler.decide.decide import decide
from scaler.decide.fits import fit_all
from scaler.decide.limits import Limits

PRICE = 2.5
ALIKE = 1.01  # what is better by less is not listed
CASES = {
    "usual": (Study(), (1, 4), 256),
    "slow links": (Study(sync_s=0.003), (1, 8), 256),
    "little memory": (Study(memory_mib=24), (1, 6), 24),
    "never bends": (Study(critical_batch=1e5), (2, 6), 256),
    "slow devices": (Study(per_example_s=1e-3), (1, 6), 256),
    "one worker": (Study(), (1, 1), 256),
}


def values(option) -> tuple[float, float, float]:
    time_s = option.time_s.value
    return time_s, time_s / 3600 * PRICE * option.plan.workers, option.examples.value


def listed(config):
    return [(p.time_to_target_s, p.cost_to_target, p.examples_to_target) for p in config.pareto]


def every_option(records, cluster, stages=(0,)):
    fits = [fit_all(records, cluster, stage) for stage in stages]
    return [o for own in fits for workers in cluster.worker_counts for o in options(own, cluster, workers)[0]]


def beats(left, right) -> bool:
    return all(a <= b for a, b in zip(left, right, strict=True)) and left != right


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_plan_beats_a_listed_one_and_a_listed_one_beats_every_other(case):
    study, workers, memory_mib = case
    cluster = cluster_of(workers, memory_mib, price_per_device_hour=PRICE)
    config = decide(study.records(), cluster)
    found = {
        (o.plan.workers, o.plan.global_batch, o.plan.micro_batch, o.plan.accumulation): values(o)
        for o in every_option(study.records(), cluster)
    }
    for point, own in zip(config.pareto, listed(config), strict=True):
        plan = (point.workers, point.global_batch, point.micro_batch, point.accumulation)
        assert own == pytest.approx(found[plan])
        assert not any(beats(np.array(other) * (1 + 1e-9), own) for other in found.values())
    for other in found.values():
        assert any(all(np.array(own) <= ALIKE * np.array(other)) for own in listed(config))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_fastest_comes_first_and_the_cheapest_is_among_them(case):
    study, workers, memory_mib = case
    cluster = cluster_of(workers, memory_mib, price_per_device_hour=PRICE)
    config = decide(study.records(), cluster)
    found = [values(option) for option in every_option(study.records(), cluster)]
    times, costs, examples = zip(*listed(config), strict=True)
    assert list(times) == sorted(times)
    assert times[0] == pytest.approx(min(own[0] for own in found))
    assert min(costs) <= ALIKE * min(own[1] for own in found)
    assert min(examples) <= ALIKE * min(own[2] for own in found)
    assert (config.pareto[0].workers, config.pareto[0].global_batch) == (
        config.chosen_workers,
        config.chosen.plan.global_batch,
    )
    cheapest = decide(study.records(), cluster, objective="cost")
    assert min(costs) == pytest.approx(cheapest.chosen.cost_to_target, rel=0.01)
    assert listed(cheapest) == listed(config)  # whatever is chosen by


def test_none_is_listed_that_another_beats_but_for_a_hair():
    for study, workers, memory_mib in CASES.values():
        own = listed(decide(study.records(), cluster_of(workers, memory_mib)))
        for left, right in itertools.combinations(own, 2):
            assert not all(np.array(left) <= ALIKE * np.array(right))


def test_without_a_price_the_cost_is_device_hours():
    records = Study().records()
    priced, bare = (decide(records, cluster_of(price_per_device_hour=price)) for price in (PRICE, None))
    for left, right in zip(priced.pareto, bare.pareto, strict=True):
        assert left.cost_to_target == pytest.approx(PRICE * right.cost_to_target)
        assert right.cost_to_target == pytest.approx(right.workers * right.time_to_target_s / 3600)


def test_what_exceeds_a_limit_is_not_listed():
    cluster = cluster_of(price_per_device_hour=PRICE)
    free = decide(Study().records(), cluster)
    limits = Limits(time_s=1.3 * free.pareto[0].time_to_target_s, efficiency_loss=0.45)
    config = decide(Study().records(), cluster, limits=limits)
    assert config.pareto
    fewest = min(point.examples_to_target for point in free.pareto)
    for point in config.pareto:
        assert point.time_to_target_s <= limits.time_s
        assert 1 - fewest / point.examples_to_target <= 0.45
    assert len(config.pareto) < len(free.pareto)


def test_the_plans_of_every_zero_stage_are_compared():
    study, faster = Study(), Study(overhead_s=0.001)
    records = [
        *study.records(),
        *study.memory((1, 2), zero_stage=2),
        *faster.throughput((2, 4), zero_stage=2),
    ]
    cluster = cluster_of(price_per_device_hour=PRICE)
    config = decide(records, cluster, zero_stage=None)
    found = [values(option) for option in every_option(records, cluster, (0, 2))]
    for own in listed(config):
        assert not any(beats(np.array(other) * (1 + 1e-9), own) for other in found)
    for other in found:
        assert any(all(np.array(own) <= ALIKE * np.array(other)) for own in listed(config))
    assert config.pareto[0].zero_stage == config.chosen.plan.zero_stage == 2


def test_of_very_many_plans_few_are_listed():
    records, cluster = Study(per_example_s=1e-3).records(), cluster_of((1, 64), price_per_device_hour=PRICE)
    config = decide(records, cluster)
    found = [values(option) for option in every_option(records, cluster)]
    assert 5 < len(config.pareto) < 30 < len(found)
    assert config.pareto[0].workers == config.chosen_workers
    # Each is near one of those.
    for other in found:
        assert any(all(np.array(own) <= 1.2 * np.array(other)) for own in listed(config))


def test_without_a_target_nothing_is_listed():
    assert decide(Study().records(reached=lambda _batch: False), cluster_of()).pareto == ()
    assert decide(Study().records(batches=()), cluster_of()).pareto == ()
