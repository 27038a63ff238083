"""What to choose by: one module an objective, with the names of `Objective`.

`score(outcomes)` is the lower the better, in any unit, of the shape of the outcomes. A further module here is
a further objective: `--objective` lists what is in this folder.
"""

import importlib
import pkgutil
from typing import Protocol, cast

from scaler.decide.outcomes import Outcomes
from scaler.errors import BadInput
from scaler.stats import Floats

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


class Objective(Protocol):
    """What an objective's module has."""

    TITLE: str
    """What is chosen, such as 'the least time to target'."""
    NEEDS_TARGET: bool
    """Whether the examples to target must be known."""
    EFFICIENCY_LOSS: float | None
    """Share of the examples that may be lost to the batch where no limit is given."""

    def score(self, outcomes: Outcomes) -> Floats:
        """Rate plans: the least is best."""
        ...


def load_objective(name: str) -> Objective:
    """Find an objective by its name.

    Raises:
        BadInput: there is none of that name.
    """
    if name not in NAMES:
        raise BadInput(f"there is no objective {name!r}", hint=f"choose one of {', '.join(NAMES)}")
    return cast(Objective, importlib.import_module(f"{__name__}.{name}"))
