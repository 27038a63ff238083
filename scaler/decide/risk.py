"""What a choice risks: the predictions drawn from their intervals, all options together."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from scaler.batch import BatchPlan
from scaler.cluster import Cluster
from scaler.decide.choose import Option, outcomes_of
from scaler.decide.outcomes import Outcomes
from scaler.fit.memory import MemoryFits, memory_for
from scaler.fit.step_time import shape_of
from scaler.stats import Floats

DRAWS = 2000
_WIDTH = 2 * float(stats.norm.ppf(0.95))  # of a 90% interval, in standard deviations


def drawn_outcomes(found: Sequence[Option], cluster: Cluster) -> Outcomes:
    """Draw what options (of one or more ZeRO stages) may truly give, on the mean over runs: [draws, options].

    What is not known of two plans alike, such as the examples of the same batch, is drawn once for both.
    """
    step_time_s, examples = np.zeros((DRAWS, len(found))), np.full((DRAWS, len(found)), np.nan)
    for stage in {option.plan.zero_stage for option in found}:
        places = [i for i, option in enumerate(found) if option.plan.zero_stage == stage]
        plans, fits = [found[i].plan for i in places], found[places[0]].fits
        assert fits.step_time is not None
        shapes = [shape_of(plan, cluster.nodes_of(plan.workers)) for plan in plans]
        step_time_s[:, places] = fits.step_time.draw_s(shapes, DRAWS, seed=1)
    convergence = found[0].fits.convergence  # of all stages: the same trials
    if convergence is not None:
        batches, which = np.unique([option.plan.global_batch for option in found], return_inverse=True)
        examples = convergence.draw_examples(batches.tolist(), DRAWS, seed=2)[:, which]
    return replace(outcomes_of(found, cluster), step_time_s=step_time_s, examples=examples)


def regret(scores: Floats, chosen: int = 0) -> float:
    """Expect by what share the chosen option is worse than the best, over draws: [draws, options]."""
    return float(np.mean(scores[:, chosen] / scores.min(axis=1) - 1))


def out_of_memory(memory: MemoryFits, plan: BatchPlan, cluster: Cluster) -> float | None:
    """Give the probability that a plan needs more memory than a device has; None without an interval.

    On unequal devices of the one for which it is likeliest.
    """
    fit = memory_for(memory, plan.workers, plan.zero_stage)
    if fit is None:
        return None
    chances = []
    for rank, size in enumerate(plan.micro_batches if cluster.devices else (plan.micro_batch,)):
        peak = fit.peak_bytes(size, plan.accumulation)
        capacity = cluster.capacity_bytes(rank) if cluster.devices else fit.capacity_bytes
        room = (capacity or fit.capacity_bytes) - cluster.reserve_bytes
        if peak.low is None or peak.high is None or peak.low <= 0 or peak.high <= peak.low or room <= 0:
            return None
        deviation = np.log(peak.high / peak.low) / _WIDTH
        chances.append(float(stats.norm.sf(np.log(room / peak.value) / deviation)))
    return max(chances)
