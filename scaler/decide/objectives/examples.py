"""The fewest examples to target, and of plans that need as many the fastest."""

from scaler.decide.outcomes import Outcomes
from scaler.stats import Floats

TITLE = "the fewest examples to target"
NEEDS_TARGET = True
EFFICIENCY_LOSS = None

_TIE = 1e-6  # of the examples: how a batch is spread does not change them, only the time


def score(outcomes: Outcomes) -> Floats:
    """Examples until the target is reached."""
    slower = outcomes.time_s / (1 + outcomes.time_s)
    return outcomes.examples * (1 + _TIE * slower)
