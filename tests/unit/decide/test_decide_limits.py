"""What an answer may not exceed: kept by every answer, and named where no plan keeps it."""

import re

import pytest
from decide_records import MIB, Study, cluster_of

from scaler.cluster import Cluster
from scaler.decide.choose import options
from scaler.decide.decide import decide
from scaler.decide.fits import fit_all
from scaler.decide.limits import Limits
from scaler.decide.objectives import NAMES
from scaler.errors import BadInput, NothingFeasible

PRICE = 2.5
CLUSTER = cluster_of((1, 4), price_per_device_hour=PRICE)
STUDY = Study()
RECORDS = STUDY.records()
FREE = decide(RECORDS, CLUSTER)
FITS = fit_all(RECORDS, CLUSTER)
OPTIONS = [option for workers in CLUSTER.worker_counts for option in options(FITS, CLUSTER, workers)[0]]
TIMES = [option.time_s.value for option in OPTIONS]
COSTS = [option.time_s.value / 3600 * PRICE * option.plan.workers for option in OPTIONS]


def loss(examples) -> float:
    return 1 - min(option.examples.value for option in OPTIONS) / examples.value


@pytest.mark.parametrize("objective", NAMES)
def test_every_answer_keeps_every_limit(objective):
    within = {
        "time": (
            Limits(time_s=0.5, efficiency_loss=0.9),
            lambda answer: answer.time_to_target_s.value <= 0.5,
        ),
        "cost": (Limits(cost=6e-4, efficiency_loss=0.9), lambda answer: answer.cost_to_target <= 6e-4),
        "efficiency": (Limits(efficiency_loss=0.3), lambda answer: loss(answer.examples_to_target) <= 0.3),
        "workers": (Limits(workers=2), lambda answer: answer.plan.workers <= 2),
        "memory": (
            Limits(memory_bytes=24 * MIB),
            lambda answer: 1.05 * answer.peak_memory_bytes.value <= 24 * MIB,
        ),
    }
    for limits, keeps in within.values():
        config = decide(RECORDS, CLUSTER, objective=objective, limits=limits)
        assert config.answers
        assert all(keeps(answer) for answer in config.answers)
        assert all(answer.plan.workers <= 4 for answer in config.answers)
    both = Limits(time_s=0.6, efficiency_loss=0.3)
    for answer in decide(RECORDS, CLUSTER, objective=objective, limits=both).answers:
        assert answer.time_to_target_s.value <= 0.6
        assert loss(answer.examples_to_target) <= 0.3


def test_a_worker_count_without_a_plan_that_keeps_the_limits_says_so():
    config = decide(RECORDS, CLUSTER, limits=Limits(time_s=0.4))
    slow = {w for w in range(1, 5) if min(o.time_s.value for o in OPTIONS if o.plan.workers == w) > 0.4}
    assert slow and set(config.infeasible) == slow
    assert set(config.infeasible.values()) == {"no plan keeps the limits"}


def test_limits_that_nothing_exceeds_change_nothing():
    wide = Limits(time_s=1e6, cost=1e6, memory_bytes=2**40, workers=4, efficiency_loss=0.999)
    config = decide(RECORDS, CLUSTER, limits=wide)
    assert config.answers == FREE.answers
    assert set(config.choice.limits) == {"time_s", "cost", "memory_bytes", "workers", "efficiency_loss"}


def test_the_limits_are_read_with_their_units():
    read = Limits.model_validate({"time": "2h", "memory": "24GiB"})
    assert (read.time_s, read.memory_bytes) == (7200, 24 * 2**30)


# Workers and memory


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("most", [1, 3, 4, 5, 8, 9])
def test_fewer_workers_are_answered_as_they_are_among_more(nodes, most):
    cluster = cluster_of((1, 8), nodes=nodes)
    among = decide(RECORDS, cluster).answers
    assert decide(RECORDS, cluster, limits=Limits(workers=most)).answers == among[:most]


def test_fewer_workers_than_the_cluster_has_at_least_are_refused_with_the_nearest():
    with pytest.raises(BadInput, match="at most 2 workers are allowed") as caught:
        decide(RECORDS, cluster_of((3, 6)), limits=Limits(workers=2))
    assert "3 workers" in caught.value.hint


def test_less_memory_is_as_smaller_devices():
    limited = decide(RECORDS, CLUSTER, limits=Limits(memory_bytes=24 * MIB))
    smaller = decide(RECORDS, cluster_of((1, 4), 24, price_per_device_hour=PRICE))
    assert limited.answers == smaller.answers
    assert limited.answers != FREE.answers


def test_more_memory_than_the_devices_have_is_not_used():
    records = Study(memory_mib=24).records()
    for kind in (
        {"kind": "mock", "device_memory": 24 * MIB},
        {"kind": "cuda"},
    ):  # or what they say themselves
        cluster = Cluster(workers=(1, 4), **kind)
        limited = decide(records, cluster, limits=Limits(memory_bytes=256 * MIB))
        assert limited.answers == decide(records, cluster).answers


def test_unequal_devices_have_no_one_memory_to_limit():
    devices = [
        {"device": name, "workers": 1, "device_memory": size * MIB} for name, size in (("a", 40), ("b", 80))
    ]
    with pytest.raises(BadInput, match="unequal devices") as caught:
        decide(
            RECORDS, Cluster(workers=2, kind="mock", devices=devices), limits=Limits(memory_bytes=30 * MIB)
        )
    assert "device_memory" in caught.value.hint


# Limits that no plan keeps


@pytest.mark.parametrize(
    ("limits", "name", "values"),
    [
        (Limits(time_s=0.5 * min(TIMES)), "time", TIMES),
        (Limits(cost=0.5 * min(COSTS)), "cost", COSTS),
    ],
    ids=["time", "cost"],
)
def test_a_limit_that_no_plan_keeps_is_named_with_the_nearest_plan(limits, name, values):
    with pytest.raises(NothingFeasible, match=f"no plan keeps the limit on {name}") as caught:
        decide(RECORDS, CLUSTER, limits=limits)
    nearest = OPTIONS[values.index(min(values))].plan
    assert f"a global batch of {nearest.global_batch:,} on {nearest.workers} worker" in caught.value.hint
    # One that everything keeps is not blamed.
    with pytest.raises(NothingFeasible, match=f"no plan keeps the limit on {name}"):
        decide(RECORDS, CLUSTER, limits=limits.model_copy(update={"efficiency_loss": 0.99}))


def test_two_limits_that_exclude_each_other_are_both_named_with_the_nearest_plan():
    time_s, cost = 1.01 * min(TIMES), 1.01 * min(COSTS)
    excess = [max(t / time_s, c / cost) for t, c in zip(TIMES, COSTS, strict=True)]
    nearest = OPTIONS[excess.index(min(excess))].plan
    with pytest.raises(NothingFeasible) as caught:
        decide(RECORDS, CLUSTER, limits=Limits(time_s=time_s, cost=cost))
    assert "time" in caught.value.message and "cost" in caught.value.message
    assert "exclude each other" in caught.value.message
    assert f"a global batch of {nearest.global_batch:,} on {nearest.workers} worker" in caught.value.hint
    for limits in (Limits(time_s=time_s), Limits(cost=cost)):
        assert decide(RECORDS, CLUSTER, limits=limits).answers


def test_a_limit_is_not_blamed_that_another_zero_stage_keeps():
    fast = Study(overhead_s=0.0002, per_example_s=2e-6, sync_s=0.0001)
    records = [*RECORDS, *STUDY.memory((1, 2), zero_stage=2), *fast.throughput(zero_stage=2)]
    with pytest.raises(NothingFeasible) as caught:
        decide(records, CLUSTER, zero_stage=None, limits=Limits(time_s=0.2, cost=1e-6))
    assert "no plan keeps the limit on cost" in caught.value.message
    seconds = float(re.search(r"at ZeRO stage 2: (\S+) ms", caught.value.hint)[1]) / 1000
    assert seconds < min(TIMES)


@pytest.mark.parametrize("limits", [Limits(time_s=9), Limits(cost=9), Limits(efficiency_loss=0.5)], ids=str)
def test_what_only_a_run_to_the_target_tells_is_not_limited_without_one(limits):
    records = STUDY.records(reached=lambda _batch: False)
    with pytest.raises(BadInput, match="a limit on time, cost or efficiency needs the examples") as caught:
        decide(records, CLUSTER, limits=limits)
    assert "scaler tune" in caught.value.hint


# How surely they are kept


def test_a_limit_at_what_is_predicted_is_kept_by_half():
    at = [
        Limits(time_s=1.0001 * FREE.chosen.time_to_target_s.value),
        Limits(cost=1.0001 * FREE.chosen.cost_to_target),
        Limits(efficiency_loss=loss(FREE.chosen.examples_to_target) + 1e-4),
    ]
    for limits in at:
        config = decide(RECORDS, CLUSTER, limits=limits)
        assert config.chosen.plan == FREE.chosen.plan
        assert config.choice.kept == pytest.approx(0.5, abs=0.08)


def test_the_wider_a_limit_the_surer_it_is_kept():
    kept = [
        decide(RECORDS, CLUSTER, limits=Limits(time_s=far * min(TIMES))).choice.kept
        for far in (1.0001, 1.03, 1.06, 1.5)
    ]
    assert kept == sorted(kept)
    assert kept[0] < kept[2] < 1 and kept[-1] > 0.99


def test_without_a_limit_on_what_is_predicted_nothing_is_said():
    assert FREE.choice.kept is None
    assert decide(RECORDS, CLUSTER, limits=Limits(workers=2, memory_bytes=30 * MIB)).choice.kept is None
