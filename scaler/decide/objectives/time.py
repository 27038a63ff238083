"""The least time to target."""

from scaler.decide.outcomes import Outcomes
from scaler.stats import Floats

TITLE = "the least time to target"
NEEDS_TARGET = True
EFFICIENCY_LOSS = None


def score(outcomes: Outcomes) -> Floats:
    """Seconds of training until the target is reached."""
    return outcomes.time_s
