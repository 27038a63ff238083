"""Launches after the trials, while step times leave the choice open."""

from types import SimpleNamespace

import pytest
from asking import Asked

from scaler.batch import BatchPlan
from scaler.measure.evidence import Evidence
from scaler.measure.settle import settle
from scaler.probe.throughput import ThroughputRequest
from scaler.runs import RunFolder
from scaler.runtime.local import LocalRuntime

ANSWER, RIVAL = BatchPlan.equal(8, 1, 1), BatchPlan.equal(16, 1, 1)


def decided(left, rival=RIVAL):
    choice = SimpleNamespace(regret_step_time=left, rival=rival and SimpleNamespace(plan=rival))
    return SimpleNamespace(choice=choice, chosen=SimpleNamespace(plan=ANSWER))


@pytest.fixture
def launched(tiny, cluster, tmp_path):
    """A function (what each decision leaves open) that gives the launches, and the last decision."""

    def run(decisions, budget_s=None):
        runtime = Asked(LocalRuntime(cluster(), tiny()))
        answers = iter(decisions)
        last = settle(Evidence(runtime, RunFolder(tmp_path), budget_s), lambda: next(answers))
        assert all(isinstance(task.request, ThroughputRequest) for task in runtime.tasks)
        return [(task.request.plan, task.request.seed) for task in runtime.tasks], last

    return run


def test_a_settled_choice_asks_nothing(launched):
    settled = decided(0.009)
    assert launched([settled]) == ([], settled)


@pytest.mark.parametrize("config", [decided(None), decided(0.5, rival=None)], ids=["no target", "no rival"])
def test_without_a_choice_nothing_is_asked(launched, config):
    assert launched([config]) == ([], config)


def test_the_answer_and_its_rival_are_launched_in_turn_until_it_is_settled(launched):
    last = decided(0.005)
    found = launched([decided(0.05), decided(0.04), decided(0.02), last])
    assert found == ([(ANSWER, 100), (RIVAL, 100), (ANSWER, 101)], last)


def test_it_ends_after_six_launches(launched):
    asked, _ = launched([decided(0.05)] * 7)
    assert len(asked) == len(set(asked)) == 6


def test_a_resumed_run_goes_on_with_new_launches(launched):
    first, _ = launched([decided(0.05), decided(0.0)])
    again, _ = launched([decided(0.05), decided(0.0)])
    assert (first, again) == ([(ANSWER, 100)], [(RIVAL, 100)])


def test_without_a_budget_left_nothing_is_asked(launched):
    assert launched([decided(0.05)], budget_s=0.0)[0] == []
