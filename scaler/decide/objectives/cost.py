"""The least price of a run to the target."""

from scaler.decide.outcomes import Outcomes
from scaler.stats import Floats

TITLE = "the least cost to target"
NEEDS_TARGET = True
EFFICIENCY_LOSS = None


def score(outcomes: Outcomes) -> Floats:
    """Price of the devices until the target is reached; device-hours without a price."""
    return outcomes.cost
