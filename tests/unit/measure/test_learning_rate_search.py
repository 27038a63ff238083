"""The search for learning rates, with real trials of the tiny workload."""

import math

import pytest
from asking import Asked

from scaler.batch import BatchPlan
from scaler.fit.convergence import fit_convergence
from scaler.fit.learning_rate import batch_results, fit_learning_rates
from scaler.fit.optimizer import optimizer_of
from scaler.measure.evidence import Evidence
from scaler.measure.learning_rates import search_learning_rates, trial_limit
from scaler.measure.stages import ask_sizes
from scaler.measure.step_times import GivenTimes
from scaler.records import ConvergenceRecord
from scaler.runs import RunFolder
from scaler.runtime.local import LocalRuntime
from scaler.workload import Reference, Target


def plans(*batches):
    return {batch: BatchPlan.equal(batch, 1, 1) for batch in batches}


class Wide(Asked):
    """Of several ranks; keeps which batches were asked together."""

    def __init__(self, runtime, workers):
        super().__init__(runtime)
        self.workers = workers
        self.rounds = []

    def run(self, tasks):
        asked = list(tasks)
        self.rounds.append(
            [task.request.plan.global_batch for task in asked if hasattr(task.request, "plan")]
        )
        yield from super().run(asked)


class Search:
    """One search into a run folder; `found` has the best rate of every batch."""

    def __init__(self, workload, cluster, folder, batches, seeds=1, budget_s=None, workers=1, **search):
        self.run = RunFolder(folder)
        self.runtime = Wide(LocalRuntime(cluster, workload), workers)
        evidence = Evidence(self.runtime, self.run, budget_s)
        sizes = ask_sizes(evidence)
        self.runtime.tasks.clear()
        search_learning_rates(evidence, workload, seeds, sizes, batches, **search)
        self.trials = [r for r in self.run.records() if isinstance(r, ConvergenceRecord)]
        self.found = batch_results(self.trials)

    def rates(self, batch):
        """In the order asked."""
        asked = [t.request for t in self.runtime.tasks if t.request.plan.global_batch == batch]
        return list(dict.fromkeys(request.learning_rate for request in asked))

    def batches(self):
        return list(dict.fromkeys(task.request.plan.global_batch for task in self.runtime.tasks))


@pytest.fixture
def search(tiny, cluster, tmp_path):
    """A function (batches, seeds, folder, **workload fields) that runs a search."""

    def run(
        batches,
        seeds=1,
        folder="run",
        budget_s=None,
        workers=1,
        step_time_s=lambda _: 1.0,
        objective=None,
        **fields,
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        here = (tiny(**fields), cluster(), tmp_path / folder, batches)
        return Search(*here, seeds, budget_s, workers, times=GivenTimes(step_time_s))

    return run


def test_a_trials_limit_is_the_targets_or_a_hundred_epochs(tiny, ask, cluster, tmp_path):
    sizes = ask_sizes(Evidence(LocalRuntime(cluster(), tiny()), RunFolder(tmp_path), None))
    assert trial_limit(tiny(), sizes) == 1_280
    assert trial_limit(tiny(target=Target(0.1, "min")), sizes) == 6_400


def test_the_reference_is_tried_first_then_upwards_while_that_is_better(search):
    result = search(plans(8), reference=Reference(8, 0.1))
    first, high, other = result.rates(8)[:3]
    assert (first, high) == (0.1, pytest.approx(0.3, rel=1e-3))
    examples = {t.learning_rate: t.examples for t in result.trials if t.seed == 0 and t.reached}
    higher = examples.get(high, math.inf) < examples[first]
    assert other == pytest.approx(0.9 if higher else 0.1 / 3, rel=1e-3)


@pytest.mark.parametrize(("rate", "side"), [(0.004, 1), (2.0, -1)])
def test_the_grid_is_extended_while_the_best_lies_at_its_edge(search, rate, side):
    target = Target(0.05, "min", max_examples=6_400, evaluate_every=16)
    result = search(plans(8), reference=Reference(8, rate), target=target)
    steps = [round(math.log(r / rate, 3), 2) for r in result.rates(8)]
    assert 2 * side in steps
    assert 8 in fit_learning_rates(result.trials, optimizer_of(result.run.records())).bracketed


def test_a_known_best_rate_is_left_alone(search):
    best = search(plans(8), reference=Reference(8, 0.1)).found[8].best_rate
    result = search(plans(8), folder="again", reference=Reference(8, best))
    assert len(result.rates(8)) <= 6  # no far ones: three around it, and a few closer by
    assert max(result.rates(8)) < 3.01 * best
    assert min(result.found[8].examples) <= 1.2 * min(t.examples for t in result.trials if t.reached)


def test_hopeless_rates_are_cut_short(search):
    """Beside a rate that reached, a trial needs no more than a quarter more examples."""
    result = search(plans(8), reference=Reference(8, 0.1))
    best = result.trials[0].examples
    assert result.trials[0].reached
    for trial, task in zip(result.trials[1:3], result.runtime.tasks[1:3], strict=True):
        assert task.request.max_examples == math.ceil(1.25 * best)
        best = min(best, trial.examples if trial.reached else best)


def test_seeds_are_spent_at_the_best_batch(search):
    result = search(plans(4, 8, 16, 32), seeds=3)
    fit = fit_convergence(result.trials, optimizer_of(result.run.records()))
    best = min(fit.runs, key=lambda batch: fit.examples(batch).value / batch)
    rates = {t.learning_rate for t in result.trials if t.plan.global_batch == best}
    seeds = {
        r: {t.seed for t in result.trials if (t.plan.global_batch, t.learning_rate) == (best, r)}
        for r in rates
    }
    assert any({0, 1, 2} <= own for own in seeds.values())


def test_the_first_rates_are_tried_at_the_batch_that_is_likely_to_be_fastest(search):
    """By the step times, and not far above the reference: there its rate, grown with the root, and others."""
    for overhead, start in ((1e-3, 8), (16.0, 16), (1e6, 32)):
        result = search(
            plans(4, 8, 16, 32, 64),
            folder=f"at {start}",
            reference=Reference(8, 0.05),
            step_time_s=lambda batch, overhead=overhead: overhead + batch,
        )
        assert (result.trials[0].plan.global_batch, result.trials[0].learning_rate) == (8, 0.05)
        others = [trial for trial in result.trials[1:3] if trial.plan.global_batch == start]
        assert len(others) == 2
        if start > 8:
            assert others[0].learning_rate == pytest.approx(0.05 * (start / 8) ** 0.5, rel=1e-3)


def test_where_the_likely_batch_does_not_arrive_the_reference_is_bracketed(search):
    target = Target(0.05, "min", max_examples=112, evaluate_every=16)
    result = search(plans(8, 32), reference=Reference(8, 0.3), target=target)
    assert result.found[32].best_rate is None
    assert len(result.rates(8)) >= 3


def test_another_batch_is_first_tried_at_the_rate_the_fit_advises(search):
    result = search(plans(4, 8, 16, 32), step_time_s=lambda batch: 16.0 + batch)
    other = next(trial for trial in result.trials if trial.plan.global_batch not in (8, 16))
    before = result.trials[: result.trials.index(other)]
    fit = fit_learning_rates(before, optimizer_of(result.run.records()))
    assert other.learning_rate == pytest.approx(fit.advised_rate(other.plan.global_batch), rel=1e-3)


def test_a_way_ends_where_the_time_to_the_target_rises(search):
    """With steps that take as long as their examples, a larger batch only costs."""
    fast = search(plans(4, 8, 16, 32, 64))
    dear = search(plans(4, 8, 16, 32, 64), folder="dear", step_time_s=lambda batch: float(batch) ** 2)
    assert max(fast.batches()) > max(dear.batches())
    assert min(dear.batches()) == 4


@pytest.mark.parametrize("most", [112, 144, 192])
def test_growing_stops_where_the_target_is_not_reached(search, most):
    """Large batches have too few steps within the limit: none is asked beyond the first that misses."""
    target = Target(0.05, "min", max_examples=most, evaluate_every=16)
    result = search(plans(8, 16, 32, 64), reference=Reference(8, 0.1), target=target)
    assert result.found[8].best_rate is not None
    unreached = [batch for batch, found in result.found.items() if found.best_rate is None]
    assert unreached in ([], [max(result.batches())])
    assert most > 112 or unreached


def test_a_search_takes_few_examples(search):
    """All of it, over one run at the best batch."""
    result = search(plans(4, 8, 16, 32), seeds=3, reference=Reference(8, 0.1))
    best = min(result.found.values(), key=lambda found: found.mean_examples / found.global_batch)
    assert sum(t.examples for t in result.trials) <= 20 * best.mean_examples


@pytest.mark.parametrize(("workers", "least", "most"), [(1, 1, 1), (2, 2, 2), (8, 2, 3)])
def test_batches_are_tried_side_by_side_where_ranks_are_free(search, workers, least, most):
    result = search(plans(4, 8, 16, 32), workers=workers, step_time_s=lambda batch: 4.0 + batch)
    assert least <= max(len(set(asked)) for asked in result.runtime.rounds) <= most


def test_without_a_reference_that_trains_no_other_batch_is_asked(search):
    result = search(plans(4, 8, 16), target=Target(0.0, "min", max_examples=64, evaluate_every=32))
    assert result.batches() == [8]
    assert result.found[8].best_rate is None


def test_batches_without_a_plan_are_left_out(search):
    assert search({4: None, **plans(8, 16), 32: None}).batches() == [8, 16]
    assert search({8: None}, folder="none").batches() == []


def test_without_a_budget_nothing_is_asked(search):
    first = search(plans(8))
    again = search(plans(8), budget_s=0.0)
    assert first.trials == again.trials
    assert again.runtime.tasks == []


def test_a_finished_search_asks_nothing_again(search):
    search(plans(4, 8, 16))
    assert search(plans(4, 8, 16)).runtime.tasks == []


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4, 0.6, 0.8])
def test_an_interrupted_search_goes_on_where_it_stopped(search, tmp_path, share):
    """It asks what was left, and comes to the same answer as one that was not interrupted."""
    fields = {"reference": Reference(8, 0.02), "seeds": 2}
    whole = search(plans(4, 8, 16), **fields)
    kept = 1 + int(share * len(whole.trials))
    (tmp_path / "cut").mkdir()
    lines = whole.run.records_file.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "cut" / "records.jsonl").write_text("".join(lines[:kept]), encoding="utf-8")
    resumed = search(plans(4, 8, 16), folder="cut", **fields)
    assert [t.key for t in resumed.runtime.tasks] == [t.task for t in whole.trials[kept - 1 :]]
    assert resumed.found == whole.found
