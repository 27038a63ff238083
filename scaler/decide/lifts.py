"""What limits an answer: each limit lifted in turn, and the decision made again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scaler.cluster import Cluster
from scaler.decide.config import Bound
from scaler.decide.fits import Fits
from scaler.decide.limits import Limits
from scaler.decide.objectives import Objective
from scaler.decide.space import Space
from scaler.fit.step_model import Layout
from scaler.stats import Floats

_MATTERS = 0.02  # share of the score that lifting a limit must save to call it the bound
_STRUCTURAL: tuple[Bound, ...] = ("memory", "dataset size", "largest batch measured")
_GRADUAL: tuple[Bound, ...] = ("critical batch", "communication", "step overhead")


@dataclass(frozen=True)
class Lift:
    """The space of plans with one limit lifted, and each one's score: infinite outside the user's limits."""

    limit: Bound
    change: str
    space: Space
    scores: Floats

    def best(self, workers: int | None = None) -> tuple[float, int]:
        """Give the best score, of one worker count or of all, and its place in the space."""
        if not len(self.space):
            return np.inf, -1
        own = self.scores if workers is None else np.where(self.space.workers == workers, self.scores, np.inf)
        place = int(np.argmin(own))
        return float(own[place]), place


def lifted(
    fits: Fits, cluster: Cluster, counts: Sequence[int], objective: Objective, limits: Limits
) -> list[Lift]:
    """Lift each limit of one ZeRO stage's plans, on these worker counts; none without examples to target."""
    if fits.step_time is None or not fits.examples:
        return []
    batches = list(fits.examples)
    largest, data = max(batches), fits.train_examples
    whole = largest == data
    room = 2 * largest if whole else max(largest, data)
    further = min(2 * largest, room) if len(fits.reached) > 1 else largest
    usual = Space.of(fits, cluster, counts, batches)
    spaces: list[tuple[Bound, str, Space]] = [
        ("memory", "device memory for any batch in one pass", Space.of(fits, cluster, counts, batches, True)),
        (
            "dataset size" if whole else "largest batch measured",
            f"{'twice the data' if whole else 'a batch measured'}, in a batch of {further:,}",
            Space.of(fits, cluster, counts, [*batches, further]),
        ),
        ("critical batch", "twice the critical batch", usual),
        ("communication", "twice the bandwidth of the links", replace(usual, fits=_with(fits, "levels"))),
        ("step overhead", "half the fixed time of a pass", replace(usual, fits=_with(fits, "overhead"))),
    ]
    if not cluster.devices:
        doubled = cluster.model_copy(
            update={"workers": (cluster.min_workers, 2 * cluster.max_workers), "nodes": 2 * cluster.nodes}
        )
        more = sorted({*counts, *(2 * count for count in counts)})
        spaces.append(("worker count", "twice the workers", Space.of(fits, doubled, more, batches)))
    return [_scored(limit, change, space, objective, limits) for limit, change, space in spaces]


def bound_of(lifts: Sequence[Lift], score: float, workers: int) -> Bound:
    """Name the limit that binds an answer of a worker count: lifted, it saves most.

    First those that keep the batch from growing, then those that make its growth worth less.
    """
    savings: dict[Bound, float] = {}
    for lift in lifts:
        saved = 1 - lift.best(workers)[0] / score
        savings[lift.limit] = max(saved, savings.get(lift.limit, 0.0))
    for group in (_STRUCTURAL, _GRADUAL):
        limit = max(group, key=lambda limit: savings.get(limit, 0.0))
        if savings.get(limit, 0.0) > _MATTERS:
            return limit
    return "computation"


def _scored(limit: Bound, change: str, space: Space, objective: Objective, limits: Limits) -> Lift:
    if not len(space):
        return Lift(limit, change, space, np.zeros(0))
    outcomes = space.outcomes
    if limit == "critical batch" and space.fits.convergence is not None:
        halves, which = np.unique(space.global_batch / 2, return_inverse=True)
        examples = space.fits.convergence.typical_examples(halves.tolist())[which]
        # Below the smallest batch there may be nothing to gain.
        outcomes = replace(outcomes, examples=np.fmin(examples, outcomes.examples))
    return Lift(limit, change, space, limits.scores(objective, outcomes))


def _with(fits: Fits, part: str) -> Fits:
    """Halve the time of synchronisation, or of a pass whatever its size."""
    assert fits.step_time is not None
    posterior = fits.step_time.posterior
    parameters = posterior.parameters.copy()
    parameters[posterior.layout.levels if part == "levels" else Layout.OVERHEAD] -= np.log(2)
    return replace(
        fits, step_time=replace(fits.step_time, posterior=replace(posterior, parameters=parameters))
    )
