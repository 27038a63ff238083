"""The joint space: every plan that is feasible, and no other."""

from dataclasses import replace

import numpy as np
import pytest
from decide_records import BATCHES, MIB, Study, cluster_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.cluster import Cluster
from scaler.decide.choose import options
from scaler.decide.decide import decide
from scaler.decide.fits import fit_all
from scaler.decide.plans import feasible_plan
from scaler.decide.space import Space
from scaler.fit.memory import fit_memory
from scaler.fit.step_time import shape_of

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)

STUDY = Study()
CLUSTER = cluster_of((1, 24), nodes=3)
FITS = fit_all(STUDY.records(), CLUSTER)
PRIMES = (2, 31, 211, 997, 1439)
batches = st.lists(st.integers(1, 4000) | st.sampled_from(PRIMES), min_size=1, max_size=6, unique=True)
counts = st.lists(st.integers(1, 40), min_size=1, max_size=6, unique=True).map(sorted)


def unequal_cluster(*memory_mib: float, speeds=(0.5, 1.0)) -> Cluster:
    devices = [
        {"device": f"d{i}", "workers": 1, "device_memory": int(memory * MIB), "speed": speeds[i % 2]}
        for i, memory in enumerate(memory_mib)
    ]
    return Cluster(workers=len(devices), kind="mock", devices=devices)


def entries(space: Space) -> list[tuple[int, ...]]:
    columns = (space.workers, space.global_batch, space.micro_batch, space.accumulation)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def one_by_one(fits, cluster, counts, batches, zero_stage=0) -> list[tuple[int, ...]]:
    plans = [feasible_plan(b, w, fits.memory, cluster, zero_stage) for b in batches for w in counts]
    return sorted((p.workers, p.global_batch, p.micro_batch, p.accumulation) for p in plans if p is not None)


@quiet
@given(st.floats(11, 90), st.sampled_from([0.0, 4.0, 60.0]), counts, batches)
def test_the_space_holds_exactly_the_plans_that_fit(memory_mib, gradients_mib, counts, batches):
    study, cluster = Study(memory_mib=256, gradients_mib=gradients_mib), cluster_of((1, 40), memory_mib)
    fits = replace(FITS, memory=fit_memory(study.memory(), cluster.capacity_bytes()))
    assert entries(Space.of(fits, cluster, counts, batches)) == one_by_one(fits, cluster, counts, batches)


@quiet
@given(st.floats(15, 90), counts, batches)
def test_workers_and_passes_share_the_batch_evenly(memory_mib, counts, batches):
    cluster = cluster_of((1, 40), memory_mib)
    fits = replace(FITS, memory=fit_memory(STUDY.memory(), cluster.capacity_bytes()))
    space = Space.of(fits, cluster, counts, batches)
    assert len(space) == len(set(entries(space)))
    for workers, batch, micro_batch, accumulation in entries(space):
        assert workers in counts and batch in batches
        assert batch % accumulation == 0
        one_pass = batch // accumulation
        assert (micro_batch - 1) * workers < one_pass <= micro_batch * workers
        assert one_pass >= workers


@quiet
@given(counts, batches)
def test_without_a_limit_of_memory_every_batch_is_taken_at_once(counts, batches):
    cluster = cluster_of((1, 40), memory_mib=16)
    fits = replace(FITS, memory=fit_memory(STUDY.memory(), cluster.capacity_bytes()))
    space = Space.of(fits, cluster, counts, batches, one_pass=True)
    assert entries(space) == sorted((w, b, -(-b // w), 1) for w in counts for b in batches if b >= w)


def test_each_entry_can_be_named():
    space = Space.of(FITS, CLUSTER, [3], [1000])
    assert space.entry(0) == {
        "workers": 3,
        "global_batch": 1000,
        "micro_batch": 334,
        "accumulation": 1,
        "zero_stage": 0,
    }


def test_nothing_fits_in_too_little_memory():
    cluster = cluster_of((1, 4), memory_mib=10)
    fits = fit_all(STUDY.records(), cluster)
    assert len(Space.of(fits, cluster, [1, 2, 4], BATCHES)) == 0


def test_several_workers_that_were_never_timed_have_no_plans():
    records = [STUDY.workload(), *STUDY.memory(), *STUDY.throughput((1,)), *STUDY.trials()]
    equal, unequal = cluster_of(), unequal_cluster(40, 80)
    alone = Space.of(fit_all(records, equal), equal, [1, 2, 4], BATCHES)
    assert set(alone.workers.tolist()) == {1}
    assert len(Space.of(fit_all(records, unequal), unequal, [2], BATCHES)) == 0


# What is predicted


@pytest.mark.parametrize("memory_mib", [18, 256])
@pytest.mark.parametrize("nodes", [1, 3])
def test_plans_are_predicted_as_the_options_are(memory_mib, nodes):
    cluster = cluster_of((1, 24), memory_mib, nodes=nodes, price_per_device_hour=2.5)
    fits = fit_all(STUDY.records(), cluster)
    found = {
        (o.plan.workers, o.plan.global_batch): o
        for workers in cluster.worker_counts
        for o in options(fits, cluster, workers)[0]
    }
    space = Space.of(fits, cluster, cluster.worker_counts, fits.examples)
    outcomes = space.outcomes
    assert len(space) == len(found)
    for i, (workers, batch) in enumerate(zip(space.workers, space.global_batch, strict=True)):
        option = found[workers, batch]
        alone = fits.step_time.predict(shape_of(option.plan, cluster.nodes_of(option.plan.workers)))
        assert outcomes.step_time_s[i] == pytest.approx(alone.value)
        assert outcomes.step_time_s[i] == pytest.approx(option.step_time_s.value)
        assert outcomes.examples[i] == pytest.approx(option.examples.value)
        assert outcomes.time_s[i] == pytest.approx(option.time_s.value)
        assert outcomes.cost[i] == pytest.approx(option.time_s.value / 3600 * workers * 2.5)
        assert outcomes.samples_per_s[i] == pytest.approx(batch / option.step_time_s.value)


def test_the_loss_of_efficiency_is_beside_the_batch_that_needs_the_fewest_examples():
    space = Space.of(FITS, CLUSTER, [1], BATCHES)
    expected = [1 - STUDY.examples(32) / STUDY.examples(batch) for batch in BATCHES]
    assert space.outcomes.efficiency_loss == pytest.approx(np.array(expected), abs=0.03)


# Unequal devices and ZeRO


@quiet
@given(st.lists(st.floats(24, 90), min_size=2, max_size=4), batches)
def test_unequal_devices_have_the_plans_that_fit_each(memory_mib, batches):
    cluster = unequal_cluster(*memory_mib)
    workers = len(memory_mib)
    fits = replace(FITS, memory=fit_memory(STUDY.memory(), cluster.capacity_bytes()))
    found = Space.of(fits, cluster, [workers], batches)
    assert entries(found) == one_by_one(fits, cluster, [workers], batches)
    unlimited = Space.of(fits, cluster, [workers], batches, one_pass=True)
    assert entries(unlimited) == sorted((workers, b, -(-b // workers), 1) for b in batches if b >= workers)


def test_each_zero_stage_has_plans_of_its_own():
    lean = Study(fixed_mib=4, floor_mib=6, overhead_s=0.004)
    records = [*STUDY.records(), *lean.memory((2,), zero_stage=2), *lean.throughput((2, 4), zero_stage=2)]
    cluster = cluster_of((1, 4), memory_mib=28)
    spaces = {}
    for stage in (0, 2):
        fits = fit_all(records, cluster, stage)
        space = spaces[stage] = Space.of(fits, cluster, cluster.worker_counts, BATCHES)
        counts = list(cluster.worker_counts)
        assert entries(space) == one_by_one(fits, cluster, counts, BATCHES, stage)
        assert space.entry(0)["zero_stage"] == stage
    assert set(spaces[2].workers.tolist()) == {2, 3, 4}  # on one worker its memory was not measured
    assert spaces[2].micro_batch.max() > spaces[0].micro_batch.max()


# Very many workers


def test_ten_thousand_workers_are_answered():
    found = Study().records(batches=tuple(2**k for k in range(5, 15)))
    config = decide(found, cluster_of((1, 10_000)))
    reported = [answer.plan.workers for answer in config.answers]
    assert config.chosen_workers in reported
    assert {1, 2, 1024, 8192, 10_000} <= set(reported)
    assert len(reported) < 20
    times = {answer.plan.workers: answer.time_to_target_s.value for answer in config.answers}
    assert min(times, key=times.__getitem__) == config.chosen_workers
    # Each batch on as many workers as it has examples.
    assert config.choice.feasible_plans == sum(min(2**k, 10_000) for k in range(5, 15))
    assert config.pareto[0].workers == config.chosen_workers
