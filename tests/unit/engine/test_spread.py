"""Every spread of one global batch is one and the same optimizer step."""

import itertools
from typing import get_args

import numpy as np
import pytest
import spread_cases
import torch
import torch.nn.functional as F
from rank_processes import run_ranks, saved_by_ranks
from spread_cases import CONVERGENCE, NOISE_PLANS, STEPS, TWO_RANKS, WORKLOADS, alone, train
from torch import nn

from scaler.batch import BatchPlan
from scaler.engine.clock import StepClock
from scaler.engine.data import load_train_data, rank_steps
from scaler.engine.noise import GradientNorms
from scaler.engine.open import open_engine
from scaler.errors import BadInput
from scaler.probe.convergence import probe_convergence
from scaler.records import RECORD, StepPhase

CLOSE = 1e-5


def single(name, plan, **kwargs):
    """The same global batch in one pass on one rank."""
    return train(WORKLOADS[name], BatchPlan.equal(plan.global_batch, 1, 1), alone(), **kwargs)


def same(found, expected):
    assert found.shape == expected.shape
    return torch.allclose(found, expected, rtol=0, atol=CLOSE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def outputs(folder):
    """What two real processes printed that trained every case."""
    ended = run_ranks(spread_cases.__file__, folder, 2, timeout_s=60)
    return [rank.output for rank in ended]


@pytest.fixture(scope="module")
def ranks(folder, outputs):
    return saved_by_ranks(folder, outputs)


# One rank


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize(("micro_batch", "accumulation"), [(32, 2), (16, 4), (1, 64)])
def test_accumulating_is_the_same_step(name, micro_batch, accumulation):
    plan = BatchPlan.equal(micro_batch, accumulation, 1)
    found, expected = train(WORKLOADS[name], plan, alone()), single(name, plan)
    assert same(found["parameters"], expected["parameters"])
    assert found["losses"] == pytest.approx(expected["losses"], abs=CLOSE)


@pytest.mark.parametrize("name", ["examples", "tokens"])
def test_a_step_follows_the_gradient_of_the_whole_batch(name):
    """Held to the gradient as written down by hand, not to another engine."""
    workload, plan = WORKLOADS[name], BatchPlan.equal(16, 4, 1)
    found = train(workload, plan, alone())["parameters"]
    net = workload.model()
    batches = rank_steps(workload, load_train_data(workload, 64), BatchPlan.equal(64, 1, 1), 0, seed=11)
    for before, after in itertools.pairwise(found):
        nn.utils.vector_to_parameters(before, net.parameters())
        x, y, counts = next(batches)[0]
        error = (net(x).squeeze(2) - y) ** 2
        loss = error.mean() if name == "examples" else error[counts > 0].mean()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
        assert same((before - after) / 0.2, gradient)


def test_weights_differ_between_the_passes():
    """Otherwise the tests with tokens show nothing: averaging pass means has to be wrong."""
    workload, plan = WORKLOADS["tokens"], BatchPlan.equal(1, 64, 1)
    unweighted = spread_cases.workload(spread_cases.by_token)
    assert not same(
        train(unweighted, plan, alone())["parameters"], train(workload, plan, alone())["parameters"]
    )


# Two ranks


@pytest.mark.parametrize("spread", TWO_RANKS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_two_ranks_are_the_same_step(ranks, name, spread):
    expected = single(name, TWO_RANKS[spread])
    for rank in ranks:
        assert rank[name, spread]["parameters"].shape[0] == 1 + STEPS
        assert same(rank[name, spread]["parameters"], expected["parameters"])
    losses = torch.tensor([rank[name, spread]["losses"] for rank in ranks])
    assert same(losses.mean(dim=0), torch.tensor(expected["losses"]))


def test_two_ranks_converge_as_one(ranks):
    record = probe_convergence(
        alone(),
        WORKLOADS["tokens"],
        type(CONVERGENCE)(BatchPlan.equal(64, 1, 1), 0.2, 100, 1024, seed=5),
    )
    assert ranks[0]["curve"] == ranks[1]["curve"]
    assert ranks[0]["stop"] == record.stop == "limit"
    assert [examples for examples, _ in ranks[0]["curve"]] == [e.examples for e in record.curve]
    assert [metric for _, metric in ranks[0]["curve"]] == pytest.approx(
        [e.metric for e in record.curve], abs=CLOSE
    )


def test_the_memory_of_two_ranks_is_the_larger_rank(ranks):
    first, second = (RECORD.validate_json(rank["fits"]) for rank in ranks)
    assert first.peak_bytes == second.peak_bytes
    alone_peak = spread_cases.probe_memory(
        alone(), spread_cases.WIDE, spread_cases.MemoryRequest(BatchPlan.equal(200, 1, 1))
    ).peak_bytes
    assert alone_peak <= first.peak_bytes < 1.1 * alone_peak  # DDP's buckets on top


def test_a_rank_that_runs_out_of_memory_leaves_no_peer_waiting(folder, outputs, ranks):
    for number in range(2):
        file = folder / f"tight-{number}.json"
        assert file.exists(), outputs[number][-2000:]
        record = RECORD.validate_json(file.read_text(encoding="utf-8"))
        assert record.out_of_memory
        assert record.peak_bytes is None


# Gradient norms


def by_hand(parts, weights):
    """Train as the Adam workload does; give what the norms of parts and of the whole batch should be.

    [steps][groups], the mean over parts weighted by `weights`; the preconditioned ones of the second step.
    """
    workload = WORKLOADS["adam"]
    torch.manual_seed(7)
    net = workload.model()
    parameters = list(net.parameters())
    optimizer = workload.optimizer(parameters, 0.2)
    batches = rank_steps(workload, load_train_data(workload, 64), BatchPlan.equal(64, 1, 1), 0, seed=11)
    small, big = [], []
    for step in range(STEPS):
        x, y, _ = next(batches)[0]

        def gradients(examples, x=x, y=y):
            return torch.autograd.grad(F.mse_loss(net(x[examples]).squeeze(2), y[examples]), parameters)

        whole = gradients(slice(0, 64))
        squares = [norms(gradients(part)) for part in parts]
        small.append([sum(w * s[n] for w, s in zip(weights, squares, strict=True)) for n in range(2)])
        big.append(norms(whole))
        if step == 1:
            scales = [scale(optimizer.state[p]) for p in parameters]
            own = [sum(norms(gradients(part), scales)) for part in parts]
            pair = sum(w * s for w, s in zip(weights, own, strict=True)), sum(norms(whole, scales))
        for parameter, gradient in zip(parameters, whole, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return small, big, pair


def norms(gradients, scales=(1.0,) * 4):
    """Of both layers, weight and bias each."""
    squares = [float((g * s).square().sum()) for g, s in zip(gradients, scales, strict=True)]
    return [squares[0] + squares[1], squares[2] + squares[3]]


def scale(state, beta=0.999, eps=1e-8):
    return 1 / ((state["exp_avg_sq"] / (1 - beta ** state["step"])).sqrt() + eps)


def held_to(found, expected, groups_in):
    small, big, pair = expected
    norms = found["norms"]
    assert found["groups"] == ("0 (Linear)", "2 (Linear)")
    total = np.stack([np.sum(small, axis=1), np.sum(big, axis=1)], axis=1)
    assert np.array(norms["total"]) == pytest.approx(total, rel=1e-3)
    groups = np.stack([small, big], axis=2)[groups_in]
    assert np.array(norms["groups"]) == pytest.approx(groups, rel=1e-3)
    assert norms["preconditioned"] == [pytest.approx(pair, rel=1e-3)]
    assert norms["left_out_steps"] == 0


@pytest.mark.parametrize("accumulation", [2, 4])
def test_norms_on_one_rank_are_of_the_first_pass_and_the_whole(accumulation):
    plan = BatchPlan.equal(64 // accumulation, accumulation, 1)
    found = train(WORKLOADS["adam"], plan, alone(), observe=True)
    assert found["small_batch"] == 64 // accumulation
    held_to(found, by_hand([slice(0, 64 // accumulation)], [1]), groups_in=slice(None))


@pytest.mark.parametrize(
    ("spread", "parts", "small_batch"),
    [
        ("equal", [slice(0, 32), slice(32, 64)], 32),
        # Each pass takes 16 examples of each rank in turn.
        ("accumulating", [[*range(16), *range(32, 48)], [*range(16, 32), *range(48, 64)]], 32),
        ("very unequal", [slice(0, 57), slice(57, 64)], (57**2 + 7**2) / 64),
    ],
)
def test_norms_on_two_ranks_are_of_each_rank_and_the_whole(ranks, spread, parts, small_batch):
    squares = np.array(TWO_RANKS[spread].micro_batches) ** 2
    expected = by_hand(parts, squares / squares.sum())
    for rank in ranks:
        assert rank["noise", spread]["small_batch"] == pytest.approx(small_batch)
        held_to(rank["noise", spread], expected, groups_in=slice(1, 2))  # one step in four


def test_observing_changes_nothing(ranks):
    plan = BatchPlan.equal(32, 2, 1)
    observed = train(WORKLOADS["adam"], plan, alone(), observe=True)
    assert torch.equal(observed["parameters"], train(WORKLOADS["adam"], plan, alone())["parameters"])
    for rank in ranks:
        for spread in NOISE_PLANS:
            assert same(rank["noise", spread]["parameters"], rank["adam", spread]["parameters"])


# Step times


def test_measuring_changes_nothing(ranks):
    plan = BatchPlan.equal(32, 2, 1)
    measured = train(WORKLOADS["momentum"], plan, alone(), clock=StepClock())
    assert torch.equal(measured["parameters"], train(WORKLOADS["momentum"], plan, alone())["parameters"])
    for rank in ranks:
        for spread in NOISE_PLANS:
            assert same(rank["measured", spread]["parameters"], rank["momentum", spread]["parameters"])


@pytest.mark.parametrize(("spread", "nodes"), [("equal", 1), ("accumulating", 2)])
def test_the_steps_of_two_ranks_are_split_into_phases(ranks, spread, nodes):
    first, second = (RECORD.validate_json(rank["throughput", spread]) for rank in ranks)
    assert len(first.step_times_s) == len(second.step_times_s) >= 6
    assert first.nodes == second.nodes == nodes
    for record in (first, second):
        phases = np.array([record.phase_times_s[phase] for phase in get_args(StepPhase)])
        assert set(record.phase_times_s) == set(get_args(StepPhase))
        assert (phases[:, 1:] > 0).all()  # the first step finds out where synchronisation begins
        assert (phases.sum(axis=0) <= record.step_times_s).all()
    assert first.rank_compute_s == second.rank_compute_s
    assert len(first.rank_compute_s) == 2


def test_one_gradient_a_step_says_nothing_of_noise():
    engine = open_engine(WORKLOADS["examples"], BatchPlan.equal(64, 1, 1), alone(), 0.1, 0)
    with pytest.raises(BadInput, match=r"two parts of a step; 64 \(micro-batch\)"):
        GradientNorms(engine)
