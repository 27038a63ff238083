"""decide(): an answer or a reason for every worker count."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from decide_records import BATCHES, MIB, VERSIONS, WARMUP_EXAMPLES, Study, best_rate, cluster_of, noise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.decide import decide
from scaler.errors import BadInput, NothingFeasible

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)

STUDY = Study()
RECORDS = STUDY.records()
SHARDED = [STUDY.workload(), *STUDY.memory((1, 2), zero_stage=2), *STUDY.trials()]
CONFIG = decide(RECORDS, cluster_of(price_per_device_hour=2.5))


def true_time_s(plan: BatchPlan) -> float:
    # Of the steps of a run one is 1.2 x the median and one 0.9 x.
    mean_step_s = STUDY.step_time_s(plan) * (0.9 + 1 + 1.2) / 3
    return STUDY.examples(plan.global_batch) / plan.global_batch * mean_step_s


def test_every_worker_count_has_an_answer():
    assert [a.plan.workers for a in CONFIG.answers] == [1, 2, 3, 4]
    assert CONFIG.infeasible == {}


def test_worker_counts_without_an_answer_have_a_reason():
    config = decide(STUDY.records(batches=(32, 48)), cluster_of((30, 70)))
    answered = [a.plan.workers for a in config.answers]
    assert answered == list(range(30, 65))
    assert list(config.infeasible) == list(range(65, 71))
    assert config.infeasible[65].startswith("a global batch of 48 leaves 17 of 65 workers")


@settings(quiet, max_examples=15)  # each fits anew
@given(st.sets(st.integers(0, len(RECORDS) - 2)), st.integers(1, 6), st.integers(0, 4))
def test_whatever_was_measured_no_worker_count_is_forgotten(dropped, fewest, more):
    records = [RECORDS[0], *(r for i, r in enumerate(RECORDS[1:]) if i not in dropped)]
    cluster = cluster_of((fewest, fewest + more))
    try:
        config = decide(records, cluster)
    except NothingFeasible as error:
        assert all(f"{workers} workers: " in error.message for workers in cluster.worker_counts)
        return
    answered = [a.plan.workers for a in config.answers]
    assert sorted([*answered, *config.infeasible]) == list(cluster.worker_counts)
    assert all(config.infeasible.values())
    assert config.chosen.plan.workers == config.chosen_workers
    assert config.records == len(records)


@quiet
@given(st.lists(st.booleans(), min_size=5, max_size=5), st.sampled_from([(1,), (2,), (1, 2, 4)]))
def test_whatever_kinds_of_record_there_are_no_worker_count_is_forgotten(kept, timed):
    kinds = [STUDY.memory((1,)), STUDY.memory((2,)), STUDY.throughput(timed), STUDY.trials(), [noise()]]
    records = [STUDY.workload(), *itertools.chain(*itertools.compress(kinds, kept))]
    try:
        config = decide(records, cluster_of())
    except NothingFeasible as error:
        assert all(f"{workers} workers: " in error.message for workers in range(1, 5))
        return
    assert sorted([*(a.plan.workers for a in config.answers), *config.infeasible]) == [1, 2, 3, 4]


@pytest.mark.parametrize("answer", CONFIG.answers, ids=lambda a: f"{a.plan.workers} workers")
def test_the_batch_is_the_one_with_the_least_true_time_to_target(answer):
    plans = [BatchPlan.split(b, answer.plan.workers, 2000) for b in BATCHES]
    assert answer.plan in plans
    assert true_time_s(answer.plan) <= 1.02 * min(map(true_time_s, plans))
    assert answer.learning_rate == best_rate(answer.plan.global_batch)


@pytest.mark.parametrize("answer", CONFIG.answers, ids=lambda a: f"{a.plan.workers} workers")
def test_the_numbers_of_an_answer_follow_from_each_other(answer):
    plan = answer.plan
    assert plan.global_batch == plan.accumulation * sum(plan.micro_batches)
    assert answer.warmup_examples == WARMUP_EXAMPLES
    assert answer.warmup_steps == -(-WARMUP_EXAMPLES // plan.global_batch)
    step, examples, rate = answer.step_time_s, answer.examples_to_target, answer.samples_per_s
    steps, time = answer.steps_to_target, answer.time_to_target_s
    assert step.value == pytest.approx(STUDY.step_time_s(plan), rel=0.03)
    assert examples.value == pytest.approx(STUDY.examples(plan.global_batch), rel=0.03)
    assert time.value == pytest.approx(true_time_s(plan), rel=0.04)
    assert rate.value == pytest.approx(plan.global_batch / step.value)
    assert (rate.low, rate.high) == pytest.approx(
        (plan.global_batch / step.high, plan.global_batch / step.low)
    )
    assert steps.value == pytest.approx(examples.value / plan.global_batch)
    assert (steps.low, steps.high) == pytest.approx(
        (examples.low / plan.global_batch, examples.high / plan.global_batch)
    )
    assert answer.cost_to_target == pytest.approx(time.value / 3600 * 2.5 * plan.workers)
    assert answer.peak_memory_bytes.value == pytest.approx(STUDY.peak_bytes(plan), rel=0.01)
    for estimate in (step, examples, rate, steps, time, answer.peak_memory_bytes):
        assert estimate.low <= estimate.value <= estimate.high
    # The interval of a product is wider than that of each factor.
    assert time.high / time.low > max(step.high / step.low, examples.high / examples.low)


@pytest.mark.parametrize("answer", CONFIG.answers, ids=lambda a: f"{a.plan.workers} workers")
def test_every_number_has_its_reason(answer):
    names = {"global_batch", "micro_batch", "accumulation", "zero_stage", "learning_rate", "step_time"}
    assert names | {"warmup", "bound_by"} <= set(answer.reasons)
    assert all(answer.reasons.values())
    assert "of 6 global batches; the runner-up, " in answer.reasons["global_batch"]
    assert answer.reasons["micro_batch"].endswith(
        # (256 MiB / 1.05 - 12 MiB) / 0.1 MiB, and without the 1.05
        "256.0 MiB; the largest that fits is 2318, without the margin for unusual batches 2440"
    )
    assert f"tried: {best_rate(answer.plan.global_batch) / 3:.4g}, " in answer.reasons["learning_rate"]
    assert "24 launches on up to 4 workers" in answer.reasons["step_time"]
    assert "extrapolated" not in answer.reasons["step_time"]


def test_a_margin_of_nothing_has_nothing_to_say():
    config = decide(RECORDS, cluster_of((1, 1), margin=0.0))
    assert config.chosen.reasons["micro_batch"].endswith("the largest that fits is 2440")


def test_each_of_unequal_devices_has_its_reason():
    groups = [
        {"device": "old", "workers": 1, "device_memory": 40 * MIB},
        {"device": "new", "workers": 1, "device_memory": 80 * MIB},
    ]
    cluster = cluster_of(2).model_dump(mode="json", by_alias=True, exclude_none=True)
    del cluster["device_memory"]
    answer = decide(RECORDS, Cluster.model_validate({**cluster, "devices": groups})).chosen
    reason = answer.reasons["micro_batch"]
    for size, device, memory, largest in zip(
        answer.plan.micro_batches, ("old", "new"), (40, 80), (260, 641), strict=True
    ):
        assert f"{size} on {device} with {memory}.0 MiB" in reason
        assert str(largest) in reason


def test_a_plan_far_from_what_was_timed_is_called_extrapolated():
    config = decide(RECORDS, cluster_of((17, 17)))
    assert "extrapolated" in config.chosen.reasons["step_time"]


def test_a_best_rate_at_the_edge_of_the_grid_is_told():
    lowest = [r for r in RECORDS if getattr(r, "learning_rate", 1) >= 0.9 * best_rate(BATCHES[0])]
    few = [r for r in lowest if r.kind != "convergence" or r.plan.global_batch == BATCHES[0]]
    (answer,) = decide(few, cluster_of(1)).answers
    assert answer.plan.global_batch == BATCHES[0]
    assert answer.reasons["learning_rate"].endswith("no worse one was tried on both sides")


def test_the_chosen_answer_has_the_least_time_to_target():
    times = {a.plan.workers: a.time_to_target_s.value for a in CONFIG.answers}
    assert times[CONFIG.chosen_workers] == min(times.values())
    assert CONFIG.chosen.time_to_target_s.value == min(times.values())


def test_workers_that_synchronise_slowly_are_not_chosen():
    assert decide(Study(sync_s=0.5).records(), cluster_of()).chosen_workers == 1


def test_the_step_time_of_more_workers_is_not_guessed_from_one():
    records = [STUDY.workload(), *STUDY.memory(), *STUDY.throughput((1,)), *STUDY.trials()]
    config = decide(records, cluster_of())
    assert [a.plan.workers for a in config.answers] == [1]
    assert set(config.infeasible) == {2, 3, 4}
    assert all("more than one worker" in why for why in config.infeasible.values())


def test_the_zero_stage_is_carried_into_the_plans():
    records = [*SHARDED, *STUDY.throughput(zero_stage=1), *STUDY.throughput(zero_stage=2)]
    config = decide(records, cluster_of(), zero_stage=2)
    assert {a.plan.zero_stage for a in config.answers} == {2}
    with pytest.raises(NothingFeasible, match="ZeRO stage 1"):
        decide(records, cluster_of(), zero_stage=1)


def test_step_times_are_those_of_the_zero_stage():
    slower = Study(overhead_s=0.02).throughput()
    alone = decide([*SHARDED, *STUDY.throughput(zero_stage=2)], cluster_of(), zero_stage=2)
    beside = decide([*SHARDED, *slower, *STUDY.throughput(zero_stage=2)], cluster_of(), zero_stage=2)
    assert beside.answers == alone.answers
    with pytest.raises(NothingFeasible, match="no step time was measured"):
        decide([*SHARDED, *slower], cluster_of(), zero_stage=2)


def test_what_the_fits_say_of_the_workload():
    findings = CONFIG.findings
    assert (findings.train_examples, findings.parameters) == (10_000, 101_770)
    # tr(Sigma) = (3 - 1.5) / (1/16 - 1/64) = 32 and |G|^2 = (64 x 1.5 - 16 x 3) / 48 = 1.
    assert findings.noise_scale.value == pytest.approx(32, rel=0.1)
    assert findings.critical_batch.low < STUDY.critical_batch < findings.critical_batch.high
    exponent = findings.learning_rate_exponent
    assert exponent.low < 0.5 < exponent.high
    assert exponent.value == pytest.approx(0.5, abs=0.1)
    assert findings.step_overhead_s == pytest.approx(STUDY.overhead_s, rel=0.05)
    assert findings.seconds_per_example == pytest.approx(STUDY.per_example_s, rel=0.05)
    assert findings.notes == ()
    assert CONFIG.versions == VERSIONS
    assert (CONFIG.workload, CONFIG.records) == ("digits", len(RECORDS))


def test_what_is_not_known_is_noted():
    records = [STUDY.workload(), *STUDY.memory(), *STUDY.throughput()]
    records += STUDY.trials(batches=(64, 128), reached=lambda batch: batch == 64)
    findings = decide(records, cluster_of()).findings
    assert findings.noise_scale is None
    assert findings.critical_batch is None
    assert findings.learning_rate_exponent is None
    notes = " | ".join(findings.notes)
    for words in ("noise scale", "critical batch", "exponent", "global batch 128"):
        assert words in notes


def test_batches_that_share_a_best_rate_do_not_stop_the_answer():
    trials = [r.model_copy(update={"learning_rate": 0.1}) for r in STUDY.trials() if r.examples < 2 * 10**5]
    best = {}
    for record in trials:
        best.setdefault((record.plan.global_batch, record.seed), record)
    records = [STUDY.workload(), *STUDY.memory(), *STUDY.throughput(), *best.values()]
    config = decide(records, cluster_of())
    assert all(0.01 < a.learning_rate < 0.3 for a in config.answers)


def test_one_batch_that_reached_the_target_has_a_time_without_an_interval():
    records = STUDY.records(reached=lambda batch: batch == 128)
    for answer in decide(records, cluster_of()).answers:
        assert answer.plan.global_batch == 128
        assert answer.examples_to_target.value == pytest.approx(STUDY.examples(128), rel=0.1)
        assert not answer.examples_to_target.is_identified
        assert not answer.time_to_target_s.is_identified
        assert answer.step_time_s.is_identified


def test_another_cluster_is_answered_from_the_same_records():
    smaller = decide(RECORDS, cluster_of((1, 2), memory_mib=24))
    assert [a.plan.workers for a in smaller.answers] == [1, 2]
    assert max(a.plan.micro_batch for a in smaller.answers) <= (24 / 1.05 - 12) / 0.1


def test_nothing_feasible_names_every_worker_count():
    records = [STUDY.workload(), *STUDY.memory(), *STUDY.throughput(), *STUDY.trials()]
    with pytest.raises(NothingFeasible) as caught:
        decide(records, cluster_of(memory_mib=10))
    assert caught.value.exit_code == 3
    assert "mock-4" in caught.value.message
    for workers in (1, 2, 3, 4):
        assert f"{workers} workers: " in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([STUDY.workload()], "no step time was measured"),
        ([STUDY.workload(), *STUDY.memory()], "no step time was measured"),
        ([STUDY.workload(), *STUDY.throughput()], "no memory was measured"),
        ([STUDY.workload(), *STUDY.throughput(), *STUDY.trials()], "no memory was measured"),
    ],
    ids=["sizes only", "no step times", "no memory and no trials", "no memory"],
)
def test_the_reason_is_what_is_missing(records, why):
    with pytest.raises(NothingFeasible) as caught:
        decide(records, cluster_of())
    assert caught.value.message.count(why) == 4


@pytest.mark.parametrize("records", [[], STUDY.memory(), STUDY.trials()], ids=["none", "memory", "trials"])
def test_without_the_sizes_of_the_workload_there_is_no_answer(records):
    with pytest.raises(BadInput, match="no records yet") as caught:
        decide(records, cluster_of())
    assert caught.value.exit_code == 2


def test_deciding_twice_gives_the_same():
    assert decide(RECORDS, cluster_of(price_per_device_hour=2.5)) == CONFIG
    order = np.random.default_rng(0).permutation(len(RECORDS))
    again = decide([RECORDS[i] for i in order], cluster_of(price_per_device_hour=2.5))
    assert [a.plan for a in again.answers] == [a.plan for a in CONFIG.answers]


def test_neither_torch_nor_ray_is_imported():
    code = (
        "import importlib, pkgutil, sys, scaler.fit, scaler.decide\n"
        "for package in (scaler.fit, scaler.decide):\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "assert 'scaler.decide.decide' in sys.modules and 'scaler.fit.steps' in sys.modules\n"
        "print([name for name in ('torch', 'ray') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
