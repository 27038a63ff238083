"""What is predicted of plans, as arrays: what objectives and limits choose by."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from scaler.stats import Floats


@dataclass(frozen=True)
class Outcomes:
    """Predictions of plans: [plans], or [draws, plans] where they were drawn. What is not known is nan."""

    workers: Floats
    global_batch: Floats
    step_time_s: Floats
    """Median step."""
    examples: Floats
    """To the target."""
    mean_over_median: Floats | float = 1.0
    """Of a run's steps."""
    price_per_device_hour: float | None = None
    least_examples: Floats = field(default_factory=lambda: np.array(np.nan))
    """Of any global batch, on any cluster."""

    @property
    def time_s(self) -> Floats:
        """Time to target, training steps only."""
        return self.examples / self.global_batch * self.step_time_s * self.mean_over_median

    @property
    def samples_per_s(self) -> Floats:
        """Throughput over all workers."""
        return self.global_batch / self.step_time_s

    @property
    def device_hours(self) -> Floats:
        """Devices held until the target."""
        return self.workers * self.time_s / 3600

    @property
    def cost(self) -> Floats:
        """Price of the run to the target; in device-hours where the cluster has no price."""
        return self.device_hours * (1.0 if self.price_per_device_hour is None else self.price_per_device_hour)

    @property
    def efficiency_loss(self) -> Floats:
        """Share of the examples that a smaller batch would not have needed."""
        return 1 - self.least_examples / self.examples


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """Put predictions of plans on one cluster side by side: [plans]."""

    def column(name: str) -> Floats:
        own = [np.broadcast_to(getattr(part, name), part.workers.shape) for part in parts]
        return np.concatenate(own)

    return Outcomes(
        workers=column("workers"),
        global_batch=column("global_batch"),
        step_time_s=column("step_time_s"),
        examples=column("examples"),
        mean_over_median=column("mean_over_median"),
        price_per_device_hour=parts[0].price_per_device_hour,
        least_examples=column("least_examples"),
    )
