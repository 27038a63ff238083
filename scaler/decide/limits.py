"""What an answer may not exceed, and what to do where two limits exclude each other."""

import itertools
from collections.abc import Callable
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, ByteSize, Field, PositiveFloat, PositiveInt

from scaler.cluster import Cluster
from scaler.decide.objectives import Objective
from scaler.decide.outcomes import Outcomes
from scaler.errors import BadInput, NothingFeasible
from scaler.schema import Strict
from scaler.stats import Floats
from scaler.units import format_seconds, parse_seconds

Duration = Annotated[float, BeforeValidator(parse_seconds), Field(gt=0)]

_ROUNDING = 1e-9


class Limits(Strict):
    """What an answer may not exceed. Nothing is limited by default."""

    time_s: Annotated[Duration | None, Field(alias="time")] = None
    """Until the target: `2h`, `90s`."""
    cost: PositiveFloat | None = None
    """Of the run to the target, in the currency of the cluster's price."""
    memory_bytes: Annotated[Annotated[ByteSize, Field(gt=0)] | None, Field(alias="memory")] = None
    """Of one device."""
    workers: PositiveInt | None = None
    efficiency_loss: Annotated[float | None, Field(gt=0, lt=1)] = None
    """Share of the examples to target that a smaller batch would not need."""

    def counts(self, cluster: Cluster) -> range:
        """Give the cluster's worker counts that are allowed, smallest first.

        Raises:
            BadInput: it has more workers than that at least.
        """
        most = cluster.max_workers if self.workers is None else min(self.workers, cluster.max_workers)
        if most < cluster.min_workers:
            raise BadInput(
                f"at most {most} workers are allowed, and {cluster.name} has at least {cluster.min_workers}",
                hint=f"the nearest that both allow is {cluster.min_workers} workers",
            )
        return range(cluster.min_workers, most + 1)

    def applied(self, cluster: Cluster, said_bytes: int | None = None) -> Cluster:
        """Give the cluster with no more device memory than allowed.

        `said_bytes` is what the devices themselves said, for a cluster that does not say it.

        Raises:
            BadInput: its devices are unequal.
        """
        if self.memory_bytes is None:
            return cluster
        if cluster.devices:
            raise BadInput(
                f"{cluster.name} has unequal devices: there is no one memory to limit",
                hint="give each of its devices a smaller device_memory",
            )
        own = cluster.capacity_bytes() or said_bytes or self.memory_bytes
        return cluster.model_copy(update={"device_memory_bytes": min(self.memory_bytes, own)})

    def excess(self, outcomes: Outcomes) -> dict[str, Floats]:
        """Give, for each limit on an outcome, how many times it is reached: at most 1 keeps it."""
        found = {
            "time": None if self.time_s is None else outcomes.time_s / self.time_s,
            "cost": None if self.cost is None else outcomes.cost / self.cost,
            "loss of efficiency": None
            if self.efficiency_loss is None
            else (1 - self.efficiency_loss) / np.maximum(1 - outcomes.efficiency_loss, _ROUNDING),
        }
        return {name: values for name, values in found.items() if values is not None}

    def keeps(self, outcomes: Outcomes) -> NDArray[np.bool_]:
        """Tell which outcomes keep every limit; what is not known keeps none."""
        kept = np.ones(outcomes.step_time_s.shape, dtype=bool)
        for values in self.excess(outcomes).values():
            kept &= values <= 1 + _ROUNDING
        return kept

    def scores(self, objective: Objective, outcomes: Outcomes) -> Floats:
        """Score outcomes by an objective; infinite where a limit is not kept or something is not known."""
        scores = objective.score(outcomes)
        return np.where(self.keeps(outcomes) & ~np.isnan(scores), scores, np.inf)

    @property
    def on_outcomes(self) -> bool:
        """Whether something is limited that only a prediction tells."""
        return (self.time_s, self.cost, self.efficiency_loss) != (None, None, None)


def conflict(limits: Limits, outcomes: Outcomes, name: Callable[[int], str]) -> NothingFeasible:
    """Say which limit, or which two together, no plan keeps, and which plan comes nearest.

    `name` writes a plan of the outcomes.
    """
    excess = {key: np.nan_to_num(v, nan=np.inf) for key, v in limits.excess(outcomes).items()}
    allowed = 1 + _ROUNDING
    alone = [key for key, values in excess.items() if not (values <= allowed).any()]
    pairs = [
        (left, right)
        for left, right in itertools.combinations(excess, 2)
        if not ((excess[left] <= allowed) & (excess[right] <= allowed)).any()
    ]
    if alone:
        what = f"no plan keeps the limit on {alone[0]}"
    elif pairs:
        what = f"the limits on {pairs[0][0]} and on {pairs[0][1]} exclude each other: no plan keeps both"
    else:
        what = f"no plan keeps the limits on {', '.join(excess)} together"
    nearest = int(np.argmin(np.max(list(excess.values()), axis=0)))
    parts = [
        f"{format_seconds(float(outcomes.time_s[nearest]))} to the target",
        f"{'a cost' if outcomes.price_per_device_hour is not None else 'device-hours'} of "
        f"{float(outcomes.cost[nearest]):.3g}",
        f"a loss of efficiency of {float(outcomes.efficiency_loss[nearest]):.0%}",
    ]
    return NothingFeasible(what, hint=f"the nearest is {name(nearest)}: {', '.join(parts)}")
