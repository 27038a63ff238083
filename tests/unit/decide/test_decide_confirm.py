import itertools

import pytest
from decide_records import MIB, Study, cluster_of, confirmation

from scaler.batch import BatchPlan
from scaler.decide.confirm import with_confirmation
from scaler.decide.decide import decide
from scaler.records import CONFIRMING_SEED

STUDY = Study()
RECORDS = STUDY.records()
CONFIG = decide(RECORDS, cluster_of())
PLAN, RATE = CONFIG.chosen.plan, CONFIG.chosen.learning_rate


def confirm(*runs, config=CONFIG):
    return with_confirmation(config, [*RECORDS, *runs]).confirmation


def run(step_s=None, examples=None, plan=PLAN, rate=RATE, **more):
    """A run as predicted: a slow start, then steps around one time."""
    examples = examples or round(STUDY.examples(plan.global_batch))
    step_s = step_s or STUDY.step_time_s(plan)
    steady = itertools.islice(itertools.cycle((0.99, 1.0, 1.01)), examples // plan.global_batch - 5)
    return confirmation(plan, rate, examples, [1.0] * 5 + [step_s * wobble for wobble in steady], **more)


def rows(found):
    return {row.quantity: row for row in found.comparisons}


def test_without_a_confirming_run_the_answer_stays_as_it_is():
    assert with_confirmation(CONFIG, RECORDS) == CONFIG
    assert CONFIG.confirmation is None


def test_predictions_are_put_beside_what_was_observed():
    found = confirm(run())
    assert found.reached
    assert found.examples == round(STUDY.examples(PLAN.global_batch))
    assert found.steps == found.examples // PLAN.global_batch
    assert found.final_metric == pytest.approx(0.95, abs=0.01)
    compared = rows(found)
    assert set(compared) == {"step_time_s", "examples_to_target", "time_to_target_s"}
    step, examples, time = (compared[q] for q in ("step_time_s", "examples_to_target", "time_to_target_s"))
    assert (step.predicted, step.observed) == (CONFIG.chosen.step_time_s, STUDY.step_time_s(PLAN))
    assert (examples.predicted, examples.observed) == (CONFIG.chosen.examples_to_target, found.examples)
    assert time.predicted == CONFIG.chosen.time_to_target_s
    assert time.observed == pytest.approx(found.steps * STUDY.step_time_s(PLAN), rel=1e-3)
    assert step.inside and examples.inside


def test_observations_outside_their_interval_are_flagged():
    compared = rows(confirm(run(step_s=2 * STUDY.step_time_s(PLAN), examples=60_000)))
    assert [compared[q].inside for q in compared] == [False, False, False]
    compared = rows(confirm(run(examples=60_000)))
    assert compared["step_time_s"].inside
    assert compared["examples_to_target"].inside is False


@pytest.mark.parametrize("end", ["low", "high"])
def test_the_ends_of_an_interval_are_inside(end):
    edge_s = getattr(CONFIG.chosen.step_time_s, end)
    assert rows(confirm(run(step_s=edge_s)))["step_time_s"].inside
    beyond_s = edge_s * (1.001 if end == "high" else 0.999)
    assert rows(confirm(run(step_s=beyond_s)))["step_time_s"].inside is False


def test_a_run_that_missed_the_target_is_compared_by_its_steps_only():
    found = confirm(run(reached=False))
    assert not found.reached
    assert set(rows(found)) == {"step_time_s"}


def test_a_run_shorter_than_the_warm_up_is_compared_by_all_it_has():
    found = confirm(confirmation(PLAN, RATE, 3 * PLAN.global_batch, [0.25, 0.5, 1.0]))
    assert rows(found)["step_time_s"].observed == 0.5


def held_out(record, **changes):
    return record.model_copy(update={"seed": CONFIRMING_SEED} | changes)


def test_the_peak_of_the_plan_is_compared():
    peak = STUDY.peak(PLAN)
    compared = rows(confirm(run(), held_out(peak)))
    assert compared["peak_memory_bytes"].observed == peak.peak_bytes
    assert compared["peak_memory_bytes"].inside
    grown = held_out(peak, peak_bytes=200 * MIB)
    assert rows(confirm(run(), held_out(peak), grown))["peak_memory_bytes"].inside is False


def test_a_peak_that_was_fitted_confirms_nothing():
    assert "peak_memory_bytes" not in rows(confirm(run(), STUDY.peak(PLAN)))


def test_no_fit_sees_what_is_held_out():
    slow = STUDY.run(PLAN, wobble=50.0)
    far = STUDY.trials(batches=(PLAN.global_batch,))[2].model_copy(update={"examples": 10**9})
    grown = STUDY.peak(PLAN).model_copy(update={"peak_bytes": 200 * MIB})
    records = [*RECORDS, *(held_out(record) for record in (slow, far, grown))]
    assert decide(records, cluster_of()).answers == CONFIG.answers


def test_what_was_predicted_without_an_interval_is_not_called_inside():
    records = [STUDY.workload(), *STUDY.memory(), STUDY.run(BatchPlan.equal(64, 1, 1))]
    config = decide([*records, *STUDY.trials(batches=(64,))], cluster_of(1))
    plan = config.chosen.plan
    found = confirm(run(plan=plan, rate=config.chosen.learning_rate), config=config)
    assert {quantity: row.inside for quantity, row in rows(found).items()} == {
        "step_time_s": True,
        "examples_to_target": None,
        "time_to_target_s": None,
    }
    written = with_confirmation(
        config, [*records, run(plan=plan, rate=config.chosen.learning_rate)]
    ).to_dict()
    assert ["inside" in row for row in written["confirmation"]["comparisons"]] == [True, False, False]


def test_only_a_run_of_the_chosen_plan_and_rate_confirms():
    other = BatchPlan.equal(8, 1, 1)
    assert confirm(run(plan=other)) is None
    assert confirm(run(rate=2 * RATE)) is None


def test_the_last_confirming_run_counts():
    found = confirm(run(examples=10 * PLAN.global_batch), run(examples=30 * PLAN.global_batch, seed=2))
    assert found.examples == 30 * PLAN.global_batch


def test_a_confirmation_changes_no_prediction():
    records = [*RECORDS, run(examples=60_000)]
    config = decide(records, cluster_of())
    assert config.answers == CONFIG.answers
    confirmed = with_confirmation(config, records)
    assert confirmed.records == len(records)
    assert confirmed.answers == CONFIG.answers
