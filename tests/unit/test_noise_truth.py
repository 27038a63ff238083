"""The noise scale against the covariance of all examples' gradients, over 200 repeated measurements."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from scaler.fit.noise import noise_scale, unbiased_parts
from scaler.noise_scale import NoiseScale

EXAMPLES, MICRO_BATCH, ACCUMULATION, STEPS, REPEATS = 300, 12, 2, 64, 200


class Fixed:
    """A network that stays where it is, its data, and an Adam whose second moments stay as well."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        self.x = torch.randn(EXAMPLES, 6)
        self.y = self.x.sum(dim=1, keepdim=True) + 0.5 * torch.randn(EXAMPLES, 1)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.0, betas=(0.9, 1 - 1e-9))
        for p in self.net.parameters():
            second = torch.rand_like(p) + 0.1
            self.optimizer.state[p] = {
                "step": torch.tensor(1e12),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": second,
            }

    def loss(self, index):
        return F.mse_loss(self.net(self.x[index]), self.y[index])

    def gradients(self):
        """Every example's, [examples, parameters], and what Adam multiplies each parameter's by."""
        parameters = list(self.net.parameters())
        rows = [torch.autograd.grad(self.loss([n]), parameters) for n in range(EXAMPLES)]
        scales = [1 / (self.optimizer.state[p]["exp_avg_sq"].sqrt() + 1e-8) for p in parameters]
        flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        return flat.double().numpy(), torch.cat([s.flatten() for s in scales]).double().numpy()


@pytest.fixture(scope="module")
def measured():
    """The truth, (|G|^2, tr(Sigma)) by name, and rows of both from each repeat, sampled with replacement."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of no use to a network this small
    yield measure(Fixed())
    torch.set_num_threads(threads)


def measure(fixed):
    gradients, scales = fixed.gradients()
    first = 6 * 8 + 8
    kinds = {
        "total": gradients,
        "preconditioned": gradients * scales,
        "0 (Linear)": gradients[:, :first],
        "2 (Linear)": gradients[:, first:],
    }
    truth = {name: ((g.mean(axis=0) ** 2).sum(), g.var(axis=0).sum()) for name, g in kinds.items()}
    draw = torch.Generator().manual_seed(1)
    repeats = {name: [] for name in truth}
    for _ in range(REPEATS):
        noise = NoiseScale(fixed.net, fixed.optimizer, MICRO_BATCH, ACCUMULATION)
        for _ in range(STEPS):
            for _ in range(ACCUMULATION):
                index = torch.randint(EXAMPLES, (MICRO_BATCH,), generator=draw)
                (fixed.loss(index) / ACCUMULATION).backward()
            fixed.optimizer.step()
            fixed.optimizer.zero_grad()
        noise.close()
        norms = noise._collector.collect()
        found = {"total": norms.total, "preconditioned": norms.preconditioned}
        found |= dict(zip(("0 (Linear)", "2 (Linear)"), zip(*norms.groups, strict=True), strict=True))
        for name, pairs in found.items():
            small, big = zip(*pairs, strict=True)
            repeats[name].append(unbiased_parts(small, big, MICRO_BATCH, MICRO_BATCH * ACCUMULATION))
    return truth, repeats


@pytest.mark.parametrize("kind", ["total", "0 (Linear)", "2 (Linear)", "preconditioned"])
@pytest.mark.parametrize("part", [0, 1])
def test_numerator_and_denominator_are_unbiased(measured, kind, part):
    truth, repeats = measured
    means = np.array([rows[:, part].mean() for rows in repeats[kind]])
    z = (means.mean() - truth[kind][part]) / stats.sem(means)
    assert abs(z) < 3.3
    assert stats.sem(means) < 0.05 * truth[kind][part]  # or the test could not tell


@pytest.mark.parametrize("kind", ["total", "0 (Linear)"])
def test_the_interval_covers_the_ratio(measured, kind):
    truth, repeats = measured
    scale = truth[kind][1] / truth[kind][0]
    found = [noise_scale(rows) for rows in repeats[kind]]
    hits = sum(e is not None and e.low <= scale <= e.high for e in found)
    assert sum(e is None for e in found) < 0.05 * REPEATS
    assert stats.binomtest(hits, REPEATS).proportion_ci(0.95, method="exact").high >= 0.90
