"""Step times of known truths: a plain one by hand, and ones drawn from what the priors expect."""

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from scaler.fit.step_model import KNOTS, Grid, Layout, StepShape
from scaler.fit.step_posterior import Rows, StepPriors

OVERHEAD_S, PER_EXAMPLE_S, SYNC_S = 0.002, 2e-5, 0.0008


def plain_s(shape: StepShape) -> float:
    """Compute by a line, synchronisation by the logarithm of the workers, nothing of it hidden."""
    compute_s = shape.accumulation * (OVERHEAD_S + PER_EXAMPLE_S * shape.micro_batch)
    return compute_s + SYNC_S * float(np.log2(shape.workers))


def spread(
    workers: Iterable[int] = (1, 2, 4),
    micro_batches: Iterable[int] = (8, 32, 128, 512),
    nodes: int = 1,
    repeats: int = 1,
) -> list[StepShape]:
    """Every worker count with every micro-batch."""
    shapes = [StepShape(nodes, w, m) for w, m in itertools.product(workers, micro_batches)]
    return [shape for shape in shapes for _ in range(repeats)]


def rows(
    shapes: Sequence[StepShape],
    true_s: Callable[[StepShape], float] = plain_s,
    noise: float = 0.0,
    seed: int = 0,
    sync_s: Callable[[StepShape], float] | None = None,
) -> Rows:
    """One run of each shape; fresh runs differ by a log-normal factor of the whole step."""
    factors = np.exp(noise * np.random.default_rng(seed).normal(size=len(shapes)))
    return Rows(
        shapes=tuple(shapes),
        step_time_s=np.array([true_s(shape) for shape in shapes]) * factors,
        sync_time_s=np.array([np.nan if sync_s is None else sync_s(shape) for shape in shapes]) * factors,
    )


class DrawnTruth:
    """A workload on a cluster as the priors expect it; `shapes` are all that will be asked of it."""

    def __init__(self, shapes: Sequence[StepShape], seed: int, priors: StepPriors | None = None) -> None:
        priors = priors or StepPriors()
        draw = np.random.default_rng([seed, 7])
        layout = Layout.of(shapes)
        x = np.zeros(layout.size)
        x[Layout.OVERHEAD] = draw.normal(-5, 1)
        x[Layout.PER_EXAMPLE] = x[Layout.OVERHEAD] - draw.normal(4, 1)
        for at, prior in (
            (Layout.STRAGGLE, priors.straggle),
            (Layout.OVERLAP, priors.log_overlap),
            (Layout.GROWTH, priors.growth),
            (Layout.NODE_GROWTH, priors.node_growth),
        ):
            x[at] = draw.normal(prior.mean, prior.deviation)
        x[layout.growths] = draw.normal(x[Layout.GROWTH], priors.growth_spread, len(layout.node_counts))
        x[layout.deviations] = draw.normal(0, priors.deviation, len(layout.placements))
        doublings = np.subtract.outer(layout.knots, layout.knots) / KNOTS
        drift = priors.drift**2 * np.exp(-np.abs(doublings))
        x[layout.drifts] = draw.multivariate_normal(np.zeros(len(layout.knots)), drift, method="cholesky")
        level, before = x[Layout.OVERHEAD] + draw.normal(-0.5, 1), 1
        for i, nodes in enumerate(layout.node_counts, layout.levels.start):
            grown = float(np.log2(nodes / before))
            if before == 1 < nodes:
                level += draw.normal(1.5, 0.7)
            elif before != nodes:
                level += draw.normal(x[Layout.NODE_GROWTH] * grown, priors.level_spread * np.sqrt(grown))
            x[i], before = level, nodes
        grid = Grid(layout, shapes)
        step_s, compute_s = np.exp(grid.log_step(x)[0]), np.exp(grid.log_compute(x)[0])
        self._step_s = dict(zip(shapes, step_s.tolist(), strict=True))
        sync_s = step_s - grid.accumulation * compute_s
        self._sync_s = dict(zip(shapes, np.maximum(sync_s, 0.0).tolist(), strict=True))

    def step_s(self, shape: StepShape) -> float:
        return self._step_s[shape]

    def sync_s(self, shape: StepShape) -> float:
        """What of the synchronisation the step shows."""
        return self._sync_s[shape]
