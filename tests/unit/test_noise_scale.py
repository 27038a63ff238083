"""NoiseScale in training loops of a user's own."""

import json

import noise_ranks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rank_processes import run_ranks
from torch import nn

from scaler import NoiseScale
from scaler.errors import BadInput
from scaler.fit.noise import NoiseFit


class Net(nn.Module):
    """A sparse embedding, a frozen layer, one that is never used, and one that is trained."""

    def __init__(self):
        super().__init__()
        self.words = nn.EmbeddingBag(20, 4, sparse=True)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Linear(4, 4)
        self.out = nn.Linear(4, 1)

    def forward(self, words):
        return self.out(self.frozen(self.words(words)))


def batch(step, number, size=4):
    generator = torch.Generator().manual_seed(1000 * step + number)
    words = torch.randint(20, (size, 3), generator=generator)
    return words, words.float().sum(dim=1, keepdim=True) / 30 + torch.randn(size, 1, generator=generator)


def train(steps=20, passes=2, accumulation=2, scaler=None, poisoned=(), clip=None, dense=False):
    """Train with SGD, or densely with AdamW; in `poisoned` steps the loss is nan, and nothing is updated."""
    torch.manual_seed(0)
    net = Net()
    net.words.sparse = not dense
    kind = torch.optim.AdamW if dense else torch.optim.SGD
    optimizer = kind(net.parameters(), lr=0.01)
    noise = NoiseScale(net, optimizer, 4, accumulation, scaler)
    for step in range(steps):
        for number in range(passes):
            words, y = batch(step, number)
            loss = F.mse_loss(net(words), y) / passes
            loss = loss * float("nan") if step in poisoned else loss
            (scaler.scale(loss) if scaler else loss).backward()
        if scaler:
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        else:
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            if step in poisoned:
                net.zero_grad()
            optimizer.step()
        optimizer.zero_grad()
    return noise


def by_hand(steps=20):
    """(|G_small|^2, |G_big|^2) of the first pass and of both, by autograd alone."""
    torch.manual_seed(0)
    net = Net()
    net.words.sparse = False
    trained = [p for name, p in net.named_parameters() if name.split(".")[0] in ("words", "out")]
    pairs = []
    for step in range(steps):
        halves = []
        for number in range(2):
            words, y = batch(step, number)
            halves.append(torch.autograd.grad(F.mse_loss(net(words), y), trained))
        mean = [(a + b) / 2 for a, b in zip(*halves, strict=True)]
        pairs.append([sum(float(g.square().sum()) for g in gradient) for gradient in (halves[0], mean)])
        for p, g in zip(trained, mean, strict=True):
            p.data -= 0.01 * g
    return pairs


def totals(noise):
    noise.estimate()
    return np.array(noise._collector.norms.total)


def test_sparse_frozen_and_unused_parameters_are_measured_as_they_are():
    noise = train()
    assert totals(noise) == pytest.approx(np.array(by_hand()), rel=1e-4)
    found = noise.estimate()
    assert found.steps == 20
    assert set(found.groups) == {"words (EmbeddingBag)", "out (Linear)"}
    assert found.preconditioned is None


def test_clipping_comes_after_the_reading():
    clipped, plain = (totals(train(clip=clip, dense=True)) for clip in (1e-9, None))
    assert clipped[0] == pytest.approx(plain[0])


def test_adam_has_a_preconditioned_scale_too():
    noise = train(dense=True, steps=40)
    noise.estimate()
    pairs = noise._collector.norms.preconditioned
    assert len(pairs) == 10
    assert all(small > 0 and big > 0 for small, big in pairs)


def test_the_loss_scale_is_taken_out_and_overflows_are_left_out():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=7)
    noise = train(dense=True, scaler=scaler, poisoned=(3, 4, 11))
    found = noise.estimate()
    assert (found.steps, found.left_out_steps, found.miscounted_steps) == (17, 3, 0)
    plain = totals(train(dense=True, poisoned=(3, 4, 11)))
    assert totals(noise)[:3] == pytest.approx(plain[:3], rel=1e-3)


def test_steps_whose_loss_is_nan_are_left_out():
    found = train(poisoned=(0, 7)).estimate()
    assert (found.steps, found.left_out_steps) == (18, 2)
    assert "18 steps; 2 left out: gradients that were not finite" in str(found)


@pytest.mark.parametrize(("passes", "accumulation"), [(4, 2), (2, 4), (3, 2), (1, 2)])
def test_another_number_of_passes_than_stated_is_said(passes, accumulation):
    found = train(passes=passes, accumulation=accumulation).estimate()
    assert (found.scale, found.steps, found.miscounted_steps) == (None, 0, 20)
    assert "gradient noise scale: not identifiable" in str(found)
    assert "20 left out: another number of backward passes than stated" in str(found)


def test_the_optimizers_own_groups_come_first():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(
        [{"params": net[0].parameters(), "name": "body"}, {"params": net[1].parameters(), "lr": 0.0}], lr=0.1
    )
    noise = NoiseScale(net, optimizer, 8, 2)
    for _ in range(30):
        for _ in range(2):
            x = torch.randn(8, 4)
            F.mse_loss(net(x), x.sum(dim=1, keepdim=True) + 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert list(noise.estimate().groups) == ["group 0 (body)", "group 1"]


def test_nothing_is_seen_after_the_end():
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    noise = NoiseScale(net, optimizer, 8, 2)
    noise.close()
    for _ in range(2):
        net(torch.randn(8, 4)).mean().backward()
    optimizer.step()
    assert noise.estimate() == NoiseFit()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"micro_batch": 8}, "one process without accumulation"),
        ({"micro_batch": 0, "accumulation": 2}, "micro_batch = 0"),
        ({"micro_batch": 8, "accumulation": 2.5}, r"accumulation = 2\.5"),
    ],
)
def test_what_cannot_be_measured_is_refused(fields, message):
    net = nn.Linear(4, 1)
    with pytest.raises(BadInput, match=message):
        NoiseScale(net, torch.optim.SGD(net.parameters(), lr=0.1), **fields)


def test_a_frozen_model_is_refused():
    net = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.requires_grad_(False)
    with pytest.raises(BadInput, match="no parameter of the optimizer requires a gradient"):
        NoiseScale(net, optimizer, 8, 2)


def test_sharded_gradients_are_refused():
    sharded = type("FullyShardedDataParallel", (nn.Linear,), {})(4, 1)
    with pytest.raises(BadInput, match="sharded gradients"):
        NoiseScale(sharded, torch.optim.SGD(sharded.parameters(), lr=0.1), 8, 2)


# Two DDP ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    ended = run_ranks(noise_ranks.__file__, folder, 2, timeout_s=90)
    for number, rank in enumerate(ended):
        assert rank.in_time and (folder / f"rank-{number}.json").exists(), rank.output
    return [json.loads((folder / f"rank-{number}.json").read_text()) for number in range(2)]


def test_ddp_ranks_are_compared_with_their_average(ranks):
    net = noise_ranks.network()
    parameters, expected = list(net.parameters()), []
    for step in range(noise_ranks.STEPS):
        own = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
        for number in range(noise_ranks.ACCUMULATION):
            x, y = noise_ranks.passes(step, number)
            for rank in range(2):
                loss = F.mse_loss(net(x[rank]), y[rank]) / noise_ranks.ACCUMULATION
                own[rank] = [
                    a + g for a, g in zip(own[rank], torch.autograd.grad(loss, parameters), strict=True)
                ]
        mean = [(a + b) / 2 for a, b in zip(*own, strict=True)]
        squares = [sum(float(g.square().sum()) for g in gradient) for gradient in (*own, mean)]
        expected.append([(squares[0] + squares[1]) / 2, squares[2]])
        for p, g in zip(parameters, mean, strict=True):
            p.data -= 0.05 * g
    for rank in ranks:
        assert np.array(rank["plain"]["total"]) == pytest.approx(np.array(expected), rel=1e-4)
    assert ranks[0]["plain"]["fit"] == ranks[1]["plain"]["fit"]
    assert ranks[0]["plain"]["fit"]["steps"] == 16


def test_a_loss_that_is_nan_on_one_rank_is_left_out_on_both(ranks):
    for rank in ranks:
        fit = rank["poisoned"]["fit"]
        assert (fit["steps"], fit["left_out_steps"], fit["miscounted_steps"]) == (15, 1, 0)


def test_reducing_in_every_pass_is_said(ranks):
    for rank in ranks:
        fit = rank["without no_sync"]["fit"]
        assert (fit["scale"], fit["steps"], fit["miscounted_steps"]) == (None, 0, 16)
        assert sum("no_sync" in warning for warning in rank["warnings"]) == 1


def test_a_second_communication_hook_is_refused(ranks):
    assert all("does not take its communication hook" in rank["refused"] for rank in ranks)
