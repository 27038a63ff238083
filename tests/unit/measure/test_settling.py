"""Trials and launches in one list: what is asked after the first rates."""

from random import Random

import numpy as np
import pytest
from asking import Asked

from scaler.batch import BatchPlan
from scaler.measure.evidence import Evidence
from scaler.measure.learning_rates import search_learning_rates
from scaler.measure.stages import ask_sizes
from scaler.probe.convergence import ConvergenceRequest
from scaler.runs import RunFolder
from scaler.runtime.local import LocalRuntime
from scaler.workload import Reference

BATCHES = (4, 8, 16, 32)


class Uncertain:
    """Two plans a batch; what is not known of their steps shrinks with every launch."""

    noise = 0.05

    def __init__(self, deviation, asked, cost_s=1e-3, twice=1.0):
        self.launched = []
        self._deviation, self._asked, self._cost_s, self._twice = deviation, asked, cost_s, twice

    def plans(self, batches):
        return [BatchPlan.equal(batch // workers, 1, workers) for batch in batches for workers in (1, 2)]

    def typical_s(self, plans):
        return np.array([(4.0 + p.global_batch) * (self._twice if p.workers == 2 else 1.0) for p in plans])

    def draw_s(self, plans, draws):
        normal = np.random.default_rng(0).standard_normal((draws, len(plans)))
        left = np.array([self._deviation / 8 ** self.launched.count(plan) for plan in plans])
        return self.typical_s(plans) * np.exp(left * normal)

    def costs_s(self, plans):
        return np.full(len(plans), self._cost_s)

    def time_again(self, plan):
        self.launched.append(plan)
        self._asked.append("launch")
        return True


class Noted(Asked):
    def __init__(self, runtime, asked):
        super().__init__(runtime)
        self._asked = asked

    def run(self, tasks):
        for task in tasks:
            self._asked.append("trial")
            yield from super().run([task])


@pytest.fixture
def settle(tiny, cluster, tmp_path):
    """A function (times' arguments) that searches; gives the order of questions, the launches, the trials."""

    def run(deviation, objective=None, **times):
        folder = tmp_path / str(Random().random())
        folder.mkdir()
        asked = []
        runtime = Noted(LocalRuntime(cluster(), tiny(reference=Reference(8, 0.1))), asked)
        evidence = Evidence(runtime, RunFolder(folder), None)
        sizes = ask_sizes(evidence)
        asked.clear()
        known = Uncertain(deviation, asked, **times)
        plans = {batch: BatchPlan.equal(batch, 1, 1) for batch in BATCHES}
        search_learning_rates(evidence, tiny(reference=Reference(8, 0.1)), 1, sizes, plans, known, objective)
        trials = [t.request for t in runtime.tasks if isinstance(t.request, ConvergenceRequest)]
        return asked, known.launched, trials

    return run


def test_step_times_that_are_known_are_not_launched(settle):
    assert settle(0.0)[1] == []


def test_what_step_times_leave_open_is_launched_until_it_is_settled(settle):
    _, launched, _ = settle(0.3)
    assert 1 <= len(launched) < 24
    assert len(set(launched)) > 1


def test_launches_that_take_longer_than_trials_wait_for_them(settle):
    cheap, _, _ = settle(0.3, cost_s=1e-6)
    dear, _, _ = settle(0.3, cost_s=1e6)
    assert cheap[: cheap.index("launch")].count("trial") < dear[: dear.index("launch")].count("trial")


def test_plans_that_cannot_win_are_not_launched(settle):
    _, launched, _ = settle(0.4, twice=30.0)
    assert launched and {plan.workers for plan in launched} == {1}


def test_the_cheapest_batch_is_searched_where_cost_is_the_objective(settle):
    """Two workers are twice as fast here: as fast by cost, so that which is better is open."""
    by_time = settle(0.02, twice=0.5)[1]
    by_cost = settle(0.02, twice=0.5, objective="cost")[1]
    assert {plan.workers for plan in by_time} <= {2}
    assert {plan.workers for plan in by_cost} == {1, 2} or not by_cost


def test_steps_do_not_matter_where_examples_are_the_objective(settle):
    assert settle(0.5, objective="examples")[1] == []
