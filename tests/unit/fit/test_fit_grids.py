"""Learning rates fitted to a part of the recorded grids, held against all of them."""

import csv
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from fit_records import trial

from scaler.fit.convergence import fit_convergence
from scaler.fit.optimizer import Optimizer

GRIDS = Path(__file__).parents[2] / "recorded" / "grids"
NEVER = 4.0  # times the best mean, as which a run counts that did not reach the target
OPTIMIZERS = {"digits": Optimizer("SGD"), "mnist": Optimizer("SGD"), "chars": Optimizer("AdamW", (0.9, 0.95))}


def grid_of(name):
    """Batch -> rate -> [(seed, examples, reached)]."""
    found = defaultdict(lambda: defaultdict(list))
    with (GRIDS / f"{name}.csv").open() as file:
        for row in csv.DictReader(file):
            run = int(row["seed"]), int(row["examples"]), row["reached"] == "1"
            found[int(row["global_batch"])][float(row["learning_rate"])].append(run)
    return found


def cost(rates, rate):
    """Mean examples at a rate over the best rate's, between the grid's rates on the log scale."""
    means = {r: np.mean([e if reached else math.inf for _, e, reached in runs]) for r, runs in rates.items()}
    best = min(means.values())
    known = sorted(means)
    logs = [math.log(min(means[r] / best, NEVER)) for r in known]
    return math.exp(np.interp(math.log(rate), np.log(known), logs))


def trials_of(grid, batches, seed):
    return [
        trial(batch, rate, examples, "reached" if reached else "limit", own)
        for batch in batches
        for rate, runs in grid[batch].items()
        for own, examples, reached in runs
        if own == seed
    ]


@pytest.mark.parametrize("name", sorted(path.stem for path in GRIDS.glob("*.csv")))
@pytest.mark.parametrize("seed", [100, 101])
def test_rates_of_two_batches_carry_to_all_others(name, seed):
    grid = grid_of(name)
    batches = sorted(grid)
    known = batches[1], batches[-3]
    fit = fit_convergence(trials_of(grid, known, seed), OPTIMIZERS[name])
    costs = [cost(grid[batch], fit.learning_rate(batch)) for batch in batches]
    assert np.median(costs) < 1.15
    assert max(costs) < 1.5
    assert fit.rates.exponent() is not None
