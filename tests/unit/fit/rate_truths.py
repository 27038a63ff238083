"""Simulated trials of known best rates."""

from collections.abc import Callable

import numpy as np

from scaler.fit.rate_curve import Trial

BATCHES = (32, 64, 256, 512)
Growth = Callable[[float], float]
"""Global batch -> log best rate."""


def sgd(batch: float) -> float:
    return -1.0 - float(np.log1p(300 / batch))


def surge(batch: float) -> float:
    return -6.0 - float(np.log(0.5 * (np.sqrt(300 / batch) + np.sqrt(batch / 300))))


def power(batch: float) -> float:
    return -3.0 + 0.6 * float(np.log(batch / 64))


def quadratic(u: float) -> float:
    return 0.3 * u * u


def cliff(u: float) -> float:
    return 0.3 * u * u if u < 1.2 else np.inf


def valley(u: float) -> float:
    """Examples in proportion to 1 / rate below the optimum, and a wall above it."""
    return float(np.log(np.exp(-u) / 2 + np.exp(u) / 2)) if u < 1.5 else np.inf


FORMS = {"quadratic": quadratic, "cliff": cliff, "valley": valley}
GROWTHS = {"sgd": sgd, "surge": surge, "power": power}


def simulate(
    growth: Growth,
    form: Callable[[float], float],
    seed: int,
    batches: tuple[int, ...] = BATCHES,
    seeds: int = 2,
    noise: float = 0.05,
    deviation: float = 0.08,
    reach: int = 5,
) -> tuple[list[Trial], dict[int, float]]:
    """Trials on a grid of rates, a factor of 2 apart, and the log best rate of each batch."""
    random = np.random.default_rng(seed)
    best = {batch: growth(batch) + deviation * random.standard_normal() for batch in batches}
    centre = np.mean([growth(batch) for batch in batches]) + random.uniform(-0.35, 0.35)
    trials = []
    for batch in batches:
        level = 3 + 0.2 * random.standard_normal()
        for log_rate in centre + np.log(2) * np.arange(-reach, reach + 1):
            for _ in range(seeds):
                value = level + form(log_rate - best[batch]) + noise * random.standard_normal()
                trials.append(Trial(batch, float(log_rate), float(value)))
    return trials, best
