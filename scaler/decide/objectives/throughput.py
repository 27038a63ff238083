"""The highest throughput. The limit on the loss of efficiency keeps the batch from growing without end."""

from scaler.decide.outcomes import Outcomes
from scaler.stats import Floats

TITLE = "the most samples/s within the loss of efficiency allowed"
NEEDS_TARGET = False
EFFICIENCY_LOSS = 0.1


def score(outcomes: Outcomes) -> Floats:
    """Seconds an example takes, over all workers."""
    return 1 / outcomes.samples_per_s
