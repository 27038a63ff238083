"""What a choice risks: how likely another plan is better, and how likely a plan runs out of memory."""

import numpy as np
import pytest
from decide_records import BATCHES, MIB, Study, cluster_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.choose import options
from scaler.decide.decide import decide
from scaler.decide.fits import fit_all
from scaler.decide.risk import drawn_outcomes, out_of_memory, regret
from scaler.fit.memory import fit_memory, memory_for

CLUSTER = cluster_of(price_per_device_hour=2.5)
STUDY = Study()
FITS = fit_all(STUDY.records(), CLUSTER)
OPTIONS = [option for workers in CLUSTER.worker_counts for option in options(FITS, CLUSTER, workers)[0]]
DRAWN = drawn_outcomes(OPTIONS, CLUSTER)
CLEAR, ALIKE = Study(critical_batch=1e5), Study(sync_s=0.002)


def few(study: Study):
    trials = [trial for trial in study.trials(batches=(64, 128, 256)) if trial.seed == 0]
    return [study.workload(), *study.memory(), *study.throughput((1, 4)), *trials]


# Regret

scores = arrays.arrays(float, st.tuples(st.integers(1, 20), st.integers(2, 5)), elements=st.floats(1e-3, 1e3))


@given(scores, st.floats(1e-3, 1e3))
def test_regret_is_never_negative_and_has_no_unit(drawn, unit):
    assert regret(drawn) >= 0
    assert regret(drawn * unit) == pytest.approx(regret(drawn), abs=1e-9)
    assert regret(np.column_stack([drawn, drawn[:, 1]])) == regret(drawn)


@given(scores)
def test_regret_is_the_mean_share_lost_to_the_best(drawn):
    lost = [row[0] / min(row) - 1 for row in drawn.tolist()]
    assert regret(drawn) == pytest.approx(np.mean(lost), abs=1e-9)
    best = np.column_stack([drawn.min(axis=1), drawn])
    assert regret(best) == 0
    assert regret(best, chosen=1) == pytest.approx(regret(drawn), abs=1e-9)


@given(scores)
def test_a_further_plan_never_lowers_the_regret(drawn):
    assert regret(drawn) >= regret(drawn[:, :-1]) - 1e-12


def test_where_one_plan_is_far_better_nothing_is_risked():
    choice = decide(CLEAR.records(), CLUSTER).choice
    assert choice.regret == pytest.approx(0, abs=1e-3)
    assert choice.rival.ratio > 1.1
    assert choice.rival.chance < 0.01


def test_plans_alike_risk_more_and_with_few_data_more_still():
    clear, alike = (decide(study.records(), CLUSTER).choice for study in (CLEAR, ALIKE))
    unsure = decide(few(ALIKE), CLUSTER).choice
    assert clear.regret < alike.regret < unsure.regret
    assert clear.rival.chance < alike.rival.chance
    assert 0.3 < alike.rival.chance < 0.6
    assert unsure.regret < 0.2


def test_the_rival_is_the_plan_next_after_the_answer():
    config = decide(STUDY.records(), CLUSTER)
    ranked = sorted(OPTIONS, key=lambda option: option.time_s.value)
    first, second = ranked[:2]
    rival = config.choice.rival
    assert (config.chosen.plan, rival.plan) == (first.plan, second.plan)
    assert rival.learning_rate == second.learning_rate
    assert rival.ratio == pytest.approx(second.time_s.value / first.time_s.value)
    assert rival.chance < 0.5


def test_a_plan_without_another_has_no_rival_and_nothing_to_regret():
    choice = decide(STUDY.records(batches=(128,)), cluster_of(1)).choice
    assert choice.rival is None
    assert choice.regret == 0


# Draws


def test_the_draws_lie_around_what_is_predicted():
    for i, option in enumerate(OPTIONS):
        assert np.median(DRAWN.step_time_s[:, i]) == pytest.approx(option.step_time_s.value, rel=0.02)
        assert np.median(DRAWN.examples[:, i]) == pytest.approx(option.examples.value, rel=0.02)
        assert np.median(DRAWN.time_s[:, i]) == pytest.approx(option.time_s.value, rel=0.03)
        assert np.median(DRAWN.cost[:, i]) == pytest.approx(
            option.time_s.value / 3600 * 2.5 * option.plan.workers, rel=0.03
        )


def width(values) -> float:
    low, high = np.quantile(values, [0.05, 0.95])
    return float(np.log(high / low))


def test_the_draws_spread_as_the_intervals_without_the_noise_of_a_run():
    for i, option in enumerate(OPTIONS):
        step, batch = option.step_time_s, option.plan.global_batch
        assert 0.1 * np.log(step.high / step.low) < width(DRAWN.step_time_s[:, i])
        assert width(DRAWN.step_time_s[:, i]) < 1.03 * np.log(step.high / step.low)
        mean = FITS.convergence.examples(batch, n_seeds=10**6)
        assert width(DRAWN.examples[:, i]) == pytest.approx(np.log(mean.high / mean.low), rel=0.1)


def test_the_same_batch_needs_the_same_examples_on_every_worker_count():
    for batch in BATCHES:
        own = [i for i, option in enumerate(OPTIONS) if option.plan.global_batch == batch]
        assert np.ptp(DRAWN.examples[:, own], axis=1).max() == 0


def test_the_same_batch_needs_the_same_examples_at_every_zero_stage():
    records = [*STUDY.records(), *STUDY.memory(zero_stage=2), *STUDY.throughput(zero_stage=2)]
    stages = [options(fit_all(records, CLUSTER, stage), CLUSTER, 4)[0] for stage in (0, 2)]
    mixed = [*stages[0], *(option for option in stages[1] if option.plan.global_batch == 512)]
    examples = drawn_outcomes(mixed, CLUSTER).examples
    place = [option.plan.global_batch for option in mixed].index(512)
    assert np.array_equal(examples[:, place], examples[:, -1])
    assert not np.array_equal(examples[:, 0], examples[:, -1])


# Memory


def noisy(study: Study, spread=0.02, seed=0):
    generator = np.random.default_rng(seed)
    return [
        record
        if record.peak_bytes is None
        else record.model_copy(
            update={"peak_bytes": round(record.peak_bytes * np.exp(spread * generator.normal()))}
        )
        for record in study.memory()
    ]


def chance(peaks, plan: BatchPlan, memory_mib: float, **more) -> float | None:
    cluster = cluster_of((1, 4), memory_mib, **more)
    return out_of_memory(fit_memory(peaks, cluster.capacity_bytes()), plan, cluster)


def test_the_nearer_the_peak_to_the_memory_the_likelier_it_runs_out():
    peaks = noisy(Study())
    plans = [BatchPlan.equal(size, 1, 2) for size in (64, 128, 200, 240, 260, 300, 400)]
    chances = [chance(peaks, plan, 40) for plan in plans]
    assert chances == sorted(chances)
    assert chances[0] < 0.001 and chances[-1] > 0.99
    less = [chance(peaks, plans[2], memory_mib) for memory_mib in (60, 40, 34, 32, 28)]
    assert less == sorted(less)
    assert less[0] < 0.001 < 0.1 < less[-2] < 0.9 < less[-1]


@pytest.mark.parametrize("reserve_mib", [0, 8])
def test_the_interval_of_the_peak_is_what_the_chance_follows(reserve_mib):
    peaks, plan = noisy(Study()), BatchPlan.equal(200, 1, 2)
    peak = memory_for(fit_memory(peaks, 40 * MIB), 2).peak_bytes(200)
    for needed, expected in ((peak.low, 0.95), (peak.value, 0.5), (peak.high, 0.05)):
        found = chance(peaks, plan, needed / MIB + reserve_mib, reserve=reserve_mib * MIB)
        assert found == pytest.approx(expected, abs=0.02)


def test_without_an_interval_of_the_peak_nothing_is_said():
    study = Study()
    two = [study.peak(BatchPlan.equal(size, 1, 2)) for size in (256, 512)]
    assert chance(two, BatchPlan.equal(256, 1, 2), 40) is None
    assert chance([], BatchPlan.equal(256, 1, 2), 40) is None
    assert chance(noisy(study), BatchPlan.equal(256, 1, 2), 40) is not None


def test_of_unequal_devices_the_likeliest_to_run_out_counts():
    devices = [
        {"device": name, "workers": 1, "device_memory": size * MIB} for name, size in (("a", 40), ("b", 80))
    ]
    cluster = Cluster(workers=2, kind="mock", devices=devices)
    peaks = noisy(Study())
    fits = fit_memory(peaks, cluster.capacity_bytes())
    for sizes, tight in (((260, 100), (260, 40)), ((100, 660), (660, 80))):
        found = out_of_memory(fits, BatchPlan(micro_batches=sizes), cluster)
        assert found == pytest.approx(chance(peaks, BatchPlan.equal(tight[0], 1, 2), tight[1]))
        assert 0.001 < found < 0.999


def test_the_answer_says_how_likely_it_runs_out():
    records = [CLEAR.workload(), *CLEAR.throughput(), *CLEAR.trials(), *noisy(CLEAR)]
    tight, safe = (decide(records, cluster_of(1, memory_mib=29.2, margin=m)).chosen for m in (0.0, 0.12))
    assert tight.peak_memory_bytes.value > safe.peak_memory_bytes.value
    assert 0.001 < tight.out_of_memory < 0.5
    assert safe.out_of_memory < 0.2 * tight.out_of_memory
