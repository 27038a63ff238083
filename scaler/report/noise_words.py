"""What the report says of gradient noise."""

from scaler.decide.config import Findings
from scaler.report.wording import interval
from scaler.stats import Estimate
from scaler.units import format_count

TITLE = "Gradient noise"


def noise_sentence(found: Findings) -> str:
    """Say the noise scale with its interval, its groups and the diagnostic; empty where it is not known."""
    scale = found.noise_scale
    if scale is None:
        return ""
    text = (
        f"The gradient noise scale is {_words(scale)}, over {format_count(scale.samples)} steps of the "
        "reference configuration: averaging over many more examples hardly makes the gradient better."
    )
    if found.noise_scale_groups:
        groups = [f"{name} {_words(own)}" for name, own in found.noise_scale_groups.items()]
        text += f" By group of parameters: {'; '.join(groups)}."
    if found.noise_scale_preconditioned is not None:
        text += (
            f" As the optimizer scales the gradient (diagnostic): {_words(found.noise_scale_preconditioned)}."
        )
    return text


def noise_estimates(found: Findings) -> list[tuple[str, Estimate]]:
    """List what else was estimated: of each group, and of the preconditioned gradient."""
    estimates = [(f"noise scale of {name}", own) for name, own in found.noise_scale_groups.items()]
    if found.noise_scale_preconditioned is not None:
        estimates.append(("preconditioned noise scale (diagnostic)", found.noise_scale_preconditioned))
    return estimates


def _words(scale: Estimate) -> str:
    return f"{format_count(scale.value)} examples (90% interval {interval(scale, format_count)})"
