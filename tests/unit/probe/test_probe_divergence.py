"""Divergence ends a trial at once."""

import math

import pytest
import torch

from scaler.batch import BatchPlan
from scaler.probe.convergence import ConvergenceRequest, probe_convergence
from scaler.workload import Target

FAR = Target(0.0, "min", max_examples=6_400, evaluate_every=6_400)  # no evaluation before the end


def run(ask, workload, rate, batch=8):
    request = ConvergenceRequest(BatchPlan.equal(batch, 1, 1), rate, 0, 6_400, seed=0)
    return ask(workload, probe_convergence, request)


@pytest.mark.parametrize("rate", [2.0, 1e6, 1e30])
def test_a_loss_that_explodes_ends_the_trial_before_its_evaluation(ask, tiny, rate):
    record = run(ask, tiny(target=FAR), rate)
    assert record.stop == "diverged"
    assert record.examples <= 32 * 8
    assert record.curve == ()
    assert not record.reached


def test_a_rate_that_trains_is_left_to_its_evaluation(ask, tiny):
    record = run(ask, tiny(target=FAR), 0.1)
    assert record.stop == "limit"
    assert record.examples == 6_400


def test_one_small_loss_at_the_start_is_no_measure(ask, tiny):
    """A model that is right on its first example and wrong on others has not diverged."""
    calls = iter([1e-9] + [1.0] * 10_000)

    def loss(net, batch):
        return net(batch[0]).sum() * 0 + torch.tensor(next(calls))

    def metric(net, batch):
        return 1.0

    record = run(ask, tiny(target=FAR, loss=loss, metric=metric), 0.1, batch=1)
    assert record.stop == "limit"


def test_a_loss_below_nought_is_no_divergence(ask, tiny):
    def loss(net, batch):
        return net(batch[0]).sum() * 0 - 5.0

    record = run(ask, tiny(target=FAR, loss=loss, metric=lambda net, batch: 1.0), 0.1)
    assert record.stop == "limit"


def test_a_loss_that_is_not_a_number_ends_the_trial(ask, tiny):
    def loss(net, batch):
        return net(batch[0]).sum() * math.nan

    assert run(ask, tiny(target=FAR, loss=loss), 0.1).stop == "diverged"
