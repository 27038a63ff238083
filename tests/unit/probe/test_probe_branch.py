"""Branches go on from a state, on the same examples, with another batch and rate."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from scaler.batch import BatchPlan
from scaler.fit.branching import fit_branching
from scaler.probe.branch import BranchRequest, CheckpointRequest, probe_branch, probe_checkpoint
from scaler.probe.convergence import ConvergenceRequest, probe_convergence
from scaler.runtime.local import LocalRuntime
from scaler.runtime.protocol import Task
from scaler.workload import Reference, Target

RATE, START, EXAMPLES, POINTS = 0.05, 160, 256, 8


def request(path, micro_batch=8, accumulation=1, **fields):
    base = {
        "plan": BatchPlan.equal(micro_batch, accumulation, 1),
        "learning_rate": RATE,
        "rate_rule": "square root",
        "reference_batch": 8,
        "reference_rate": RATE,
        "examples": EXAMPLES,
        "points": POINTS,
        "held_out_examples": 16,
        "rewarm_examples": 0,
        "start_examples": START,
        "seed": 1,
        "checkpoint": str(path),
    }
    return BranchRequest(**base | fields)


@pytest.fixture
def failure(tiny, cluster):
    """A function (probe, request, **workload fields) that gives the failure."""

    def of(probe, asked, **fields):
        (outcome,) = LocalRuntime(cluster(), tiny(**fields)).run([Task(probe, asked)])
        assert outcome.failure is not None
        return outcome.failure

    return of


def noisy(parameters, rate):
    return torch.optim.SGD(parameters, lr=rate, momentum=0.5)


@pytest.fixture
def hard(tiny):
    """A workload that keeps its optimizer's state, warms up for long and never reaches its target."""
    return tiny(
        optimizer=noisy,
        target=Target(-1.0, "min", max_examples=START, evaluate_every=32),
        reference=Reference(global_batch=8, learning_rate=RATE, warmup_examples=200),
    )


@pytest.fixture
def state(hard, ask, tmp_path):
    """The path of the state that a trial of `hard` left."""
    path = tmp_path / "checkpoint.pt"
    trial = ConvergenceRequest(BatchPlan.equal(8, 1, 1), RATE, 200, START, seed=0, checkpoint=str(path))
    assert ask(hard, probe_convergence, trial).stop == "limit"
    return path


def test_a_trial_that_reaches_its_target_leaves_no_state(tiny, ask, tmp_path):
    path = tmp_path / "checkpoint.pt"
    trial = ConvergenceRequest(BatchPlan.equal(8, 1, 1), RATE, 0, 1280, seed=0, checkpoint=str(path))
    assert ask(tiny(), probe_convergence, trial).reached
    assert not path.exists()


def test_a_deadline_leaves_a_state_even_between_evaluations(hard, ask, tmp_path):
    never = dataclasses.replace(hard, target=Target(-1.0, "min", max_examples=10**9, evaluate_every=10**9))
    path = tmp_path / "checkpoint.pt"
    trial = ConvergenceRequest(BatchPlan.equal(8, 1, 1), RATE, 200, 10**9, 0, 0.05, checkpoint=str(path))
    record = ask(never, probe_convergence, trial)
    assert (record.stop, record.time_limit_s, record.curve) == ("deadline", 0.05, ())
    assert torch.load(path, weights_only=True)["examples"] == record.examples > 0


def test_a_state_that_is_not_found_is_trained_again_to_the_same_branch(hard, ask, state, tmp_path):
    found = ask(hard, probe_branch, request(state))
    again = ask(hard, probe_branch, request(tmp_path / "elsewhere.pt"))
    assert again.losses == found.losses
    assert again.held_out_loss == found.held_out_loss
    assert (tmp_path / "elsewhere.pt").is_file()
    assert again.task == found.task  # where the file lies is no part of the question


def test_a_branch_of_the_reference_is_the_reference_going_on(hard, ask, state):
    """Against the same steps by hand, on the branch's examples, through the end of the warm-up."""
    record = ask(hard, probe_branch, request(state))
    module = nn.Linear(4, 1)
    optimizer = noisy(module.parameters(), RATE)
    saved = torch.load(state, weights_only=True)
    module.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    data, generator, losses, done = hard.train_data(), torch.Generator().manual_seed(1), [], START
    for _ in range(4):
        for chunk in torch.randperm(64, generator=generator).split(8):
            done += 8
            optimizer.param_groups[0]["lr"] = RATE * min(1.0, done / 200)
            optimizer.zero_grad()
            loss = hard.loss(module, data[chunk])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    expected = np.reshape(losses, (POINTS, -1)).mean(axis=1)
    assert record.losses == pytest.approx(expected, rel=1e-4)


def test_accumulating_gives_the_branch_of_the_whole_batch(hard, ask, state):
    whole, parts = (ask(hard, probe_branch, request(state, *split)) for split in ((16, 1), (4, 4)))
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
    assert whole.plan.global_batch == 16


def test_warming_up_again_takes_smaller_steps_first(hard, ask, state):
    plain, warmed = (
        ask(hard, probe_branch, request(state, start_examples=None, is_ours=False, rewarm_examples=again))
        for again in (0, EXAMPLES)
    )
    assert warmed.losses[0] > plain.losses[0]
    assert warmed.rewarm_examples == EXAMPLES


def test_a_branch_that_diverges_ends_there(hard, ask, state):
    record = ask(hard, probe_branch, request(state, learning_rate=1e12))
    assert record.losses[-1] is None and len(record.losses) < POINTS
    assert None not in record.losses[:-1]
    assert record.held_out_loss is None


def test_held_out_losses_are_of_the_same_examples_whatever_the_branch(hard, ask, state):
    records = [
        ask(hard, probe_branch, request(state, learning_rate=1e-12, seed=seed, held_out_examples=examples))
        for seed, examples in ((1, 10), (2, 10), (1, 1000))
    ]
    assert records[0].held_out_loss == pytest.approx(records[1].held_out_loss, rel=1e-5)
    assert [r.held_out_examples for r in records] == [10, 10, 32]


def test_what_cannot_be_branched_is_said(failure, state, tmp_path):
    shards = request(state, plan=BatchPlan.equal(8, 1, 1, zero_stage=1))
    assert "does not load a state into ZeRO" in failure(probe_branch, shards).message
    lost = request(tmp_path / "none.pt", is_ours=False)
    assert "no such checkpoint on the worker" in failure(probe_branch, lost).message
    wide = failure(probe_branch, request(state), model=lambda: nn.Linear(4, 2))
    assert wide.kind == "workload" and "of another shape: weight (1, 4) for (2, 4)" in wide.message


@pytest.mark.parametrize(
    ("content", "examples", "has_state"),
    [
        (("model",), None, False),
        (("model", "examples"), START, False),
        (("model", "optimizer", "examples"), START, True),
    ],
)
def test_a_users_checkpoint_is_looked_at_before_anything_is_measured(
    hard, ask, state, content, examples, has_state
):
    whole = torch.load(state, weights_only=True)
    torch.save({key: whole[key] for key in content}, state)
    record = ask(hard, probe_checkpoint, CheckpointRequest(str(state)))
    assert (record.examples, record.optimizer_state) == (examples, has_state)
    assert record.learning_rate == (pytest.approx(RATE * START / 200) if has_state else None)


def test_a_schedule_needs_to_know_how_far_the_state_had_got(failure, state):
    whole = torch.load(state, weights_only=True)
    torch.save({"model": whole["model"]}, state)
    said = failure(probe_checkpoint, CheckpointRequest(str(state)), schedule=lambda examples: 1.0)
    assert "does not say how many examples" in said.message and "examples" in said.hint


# A quadratic, whose losses can be computed by hand


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.full((8,), 6.0))

    def forward(self, x):
        return self.place - x


def test_on_a_quadratic_the_branches_are_as_slow_as_theory_says(tiny, ask, tmp_path):
    """Far from the optimum a step shrinks the distance by 1 - rate, whatever the batch.

    With the square root of k on the rate, k x the batch is then sqrt(k) slower; with k, hardly any.
    """
    rate, batch, most = 0.02, 8, 4
    data = torch.randn(8192, 8, generator=torch.Generator().manual_seed(3))
    workload = tiny(
        model=Point,
        train_data=lambda: TensorDataset(data),
        eval_data=lambda: TensorDataset(data[:64]),
        loss=lambda net, batch: net(batch[0]).square().sum(dim=1).mean() / 2,
        metric=lambda net, batch: net(batch[0]).square().sum(dim=1).mean() / 2,
        reference=Reference(batch, rate),
    )
    torch.save(Point().state_dict(), tmp_path / "state.pt")
    fields = {"reference_batch": batch, "reference_rate": rate, "examples": 32 * most * batch, "points": 32}
    fields |= {"start_examples": None, "is_ours": False}

    def branches(growth, own_rate):
        asked = [
            request(tmp_path / "state.pt", growth * batch, learning_rate=own_rate, seed=seed, **fields)
            for seed in (1, 2, 3)
        ]
        return [ask(workload, probe_branch, one) for one in asked]

    reference = branches(1, rate)
    for own_rate, slowdown in ((2 * rate, 4 * np.log(1 - rate) / np.log(1 - 2 * rate)), (4 * rate, None)):
        slowdown = slowdown or 4 * np.log(1 - rate) / np.log(1 - 4 * rate)
        fit = fit_branching([*reference, *branches(4, own_rate)])
        assert fit.results[-1].slowdown.value == pytest.approx(slowdown, rel=0.06)
        assert fit.results[-1].verdict == ("loses" if slowdown > 1.5 else "does not lose")
