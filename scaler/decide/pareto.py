"""Plans that no other beats in time, cost and examples to target at once."""

from collections.abc import Sequence

import numpy as np

from scaler.decide.config import ParetoPoint
from scaler.decide.limits import Limits
from scaler.decide.space import Space
from scaler.stats import Floats

_ALIKE = 0.01  # a plan that is better by less than this in one, and worse in another, is not listed
_MOST = 24  # points; with more, plans must differ by more


def pareto_front(spaces: Sequence[Space], limits: Limits) -> tuple[ParetoPoint, ...]:
    """List the front of all ZeRO stages' plans within the limits, fastest first; empty without a target."""
    found: list[tuple[Floats, ParetoPoint]] = []
    for space in spaces:
        if not len(space):
            continue
        outcomes = space.outcomes
        points = np.stack([outcomes.time_s, outcomes.cost, outcomes.examples], axis=1)
        usable = np.flatnonzero(limits.keeps(outcomes) & np.isfinite(points).all(axis=1))
        for batch in np.unique(space.global_batch[usable]):
            own = usable[space.global_batch[usable] == batch]
            found += [(points[i], _point(space, int(i), points[i])) for i in own[_steps(points[own, :2])]]
    found.sort(key=lambda pair: tuple(pair[0]))
    alike, kept = _ALIKE, _thinned(found, _ALIKE)
    while len(kept) > _MOST:
        alike *= 1.5
        kept = _thinned(found, alike)
    return tuple(kept)


def _thinned(found: Sequence[tuple[Floats, ParetoPoint]], alike: float) -> list[ParetoPoint]:
    """Leave out, of points fastest first, those that a kept one beats in everything but a small share."""
    values, kept = np.zeros((0, 3)), list[ParetoPoint]()
    for own, point in found:
        if not (values <= own * (1 + alike)).all(axis=1).any():
            values = np.vstack([values, own])
            kept.append(point)
            if len(kept) > _MOST:
                break
    return kept


def _steps(points: Floats) -> list[int]:
    """Give the places of the front of two columns, both the less the better."""
    order = np.lexsort((points[:, 1], points[:, 0]))
    least = np.minimum.accumulate(points[order, 1])
    new = np.append(True, least[1:] < least[:-1])
    return [int(i) for i in order[new]]


def _point(space: Space, place: int, values: Floats) -> ParetoPoint:
    return ParetoPoint(
        **space.entry(place),
        time_to_target_s=float(values[0]),
        cost_to_target=float(values[1]),
        examples_to_target=float(values[2]),
    )
