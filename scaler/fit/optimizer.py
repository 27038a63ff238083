"""What the workload's optimizer tells of its learning rate beforehand."""

from collections.abc import Iterable
from dataclasses import dataclass

from scaler.fit.rate_posterior import GROWTH_OF_ADAM, GROWTH_OF_SGD, USUAL_GROWTH, GrowthPrior
from scaler.records import Record, WorkloadRecord


@dataclass(frozen=True)
class Optimizer:
    """What the workload's optimizer is; an empty name where it was not recorded."""

    name: str
    betas: tuple[float, ...] = ()

    @property
    def is_adam_like(self) -> bool:
        """Whether it keeps a running mean of gradients and one of their squares."""
        return len(self.betas) == 2

    @property
    def is_sgd(self) -> bool:
        """Whether it is SGD, with or without momentum."""
        return self.name == "SGD"

    @property
    def growth(self) -> GrowthPrior:
        """How its best rate usually grows with the batch."""
        return GROWTH_OF_SGD if self.is_sgd else GROWTH_OF_ADAM if self.is_adam_like else USUAL_GROWTH


def optimizer_of(records: Iterable[Record]) -> Optimizer:
    """Read the workload's optimizer off its record; an unknown one where that is not there."""
    sizes = (record for record in records if isinstance(record, WorkloadRecord))
    return next((Optimizer(found.optimizer, found.betas) for found in sizes), Optimizer(""))
