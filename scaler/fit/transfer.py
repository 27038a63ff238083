"""Step times on devices that were not measured: the fit of those that were, scaled by what both can do.

    time an example   x (flops ratio x memory bandwidth ratio)^(-1/2)   kernels are bound by one or the other
    fixed time        x 1                                               launching them is the host's work
    synchronisation   x (bandwidth ratio)^(-1)                          inside a node and across nodes

Each factor has an error of its own, on the log scale, which widens the intervals.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from scaler.cluster import Cluster
from scaler.errors import BadInput
from scaler.fit.step_model import Layout
from scaler.fit.step_time import StepTimeFit
from scaler.stats import CONFIDENCE

_QUANTILE = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
# Standard deviations on the log scale; judged, not measured.
_LEAST_ERROR = 0.15  # of the computation: no kernel reaches all of a datasheet's figure
_ONE_FIGURE = 0.4  # of the computation: the other ratio may be twice as large
_HOST_ERROR = 0.3
_LINK_ERROR = 0.2
_LATENCY = 0.25  # share of a link's log ratio: latency does not follow bandwidth
_UNKNOWN_LINK = 0.7


@dataclass(frozen=True)
class Factor:
    """What a time is multiplied by."""

    value: float = 1.0
    deviation: float = 0.0
    """Standard deviation of its logarithm."""

    @property
    def within(self) -> float:
        """How far off it may be either way, as a factor (90%)."""
        return math.exp(_QUANTILE * self.deviation)


_SAME = Factor()


@dataclass(frozen=True)
class Transfer:
    """How step times of one cluster are scaled to another's: by a factor for each part of a step."""

    measured: str
    asked: str
    per_example: Factor
    overhead: Factor
    local_sync: Factor
    """Inside a node."""
    link_sync: Factor
    """Across nodes."""

    @classmethod
    def between(cls, measured: Cluster, asked: Cluster) -> "Transfer":
        """Compare the figures of two clusters. What is the same device and link is not scaled.

        Raises:
            BadInput: the devices differ, and neither `flops` nor `memory_bandwidth` is known of both.
        """
        per_example = _computation(measured, asked)
        same_device = per_example == _SAME
        same_network = same_device and measured.interconnect == asked.interconnect
        local = _sync(measured.local_bandwidth_bytes, asked.local_bandwidth_bytes, same_device, same_network)
        link = _sync(measured.link_bytes_per_s, asked.link_bytes_per_s, same_device, same_network)
        return cls(
            measured=measured.name,
            asked=asked.name,
            per_example=per_example,
            overhead=_SAME if same_device else Factor(1.0, _HOST_ERROR),
            local_sync=local if min(measured.max_workers, asked.max_workers) > 1 else _SAME,
            link_sync=link if min(measured.nodes, asked.nodes) > 1 else _SAME,
        )

    @property
    def words(self) -> str:
        """What is scaled, by how much, and how far off each factor may be."""
        parts = {
            "time an example": self.per_example,
            "fixed time of a pass": self.overhead,
            "synchronisation inside a node": self.local_sync,
            "synchronisation across nodes": self.link_sync,
        }
        told = [f"{n} x {f.value:.3g} (within {f.within:.2f} x)" for n, f in parts.items() if f != _SAME]
        if not told:
            return "nothing is scaled: devices and links are those that were measured"
        return f"step times of {self.measured} scaled to {self.asked}: {', '.join(told)}; 90%"

    def applied(self, fit: StepTimeFit) -> StepTimeFit:
        """Shift a fit's parameters and widen their covariance; the same fit where nothing is scaled."""
        posterior = fit.posterior
        counts = list(enumerate(posterior.layout.node_counts, posterior.layout.levels.start))
        shift, spread = np.zeros_like(posterior.parameters), np.zeros_like(posterior.covariance)
        for factor, where in (
            (self.per_example, [Layout.PER_EXAMPLE]),
            (self.overhead, [Layout.OVERHEAD]),
            (self.local_sync, [level for level, nodes in counts if nodes == 1]),
            (self.link_sync, [level for level, nodes in counts if nodes > 1]),
        ):
            shift[where] = math.log(factor.value)
            # Levels of several node counts are off together; intervals show `width` of a deviation.
            spread[np.ix_(where, where)] = (factor.deviation / posterior.priors.width) ** 2
        if not spread.any():
            return fit
        parameters, covariance = posterior.parameters + shift, posterior.covariance + spread
        return replace(fit, posterior=replace(posterior, parameters=parameters, covariance=covariance))


def _computation(measured: Cluster, asked: Cluster) -> Factor:
    names = [(c.kind, c.device, *(group.device for group in c.devices)) for c in (measured, asked)]
    before, after = ((c.flops_per_s, c.device_bandwidth_bytes) for c in (measured, asked))
    ratios = [math.log(a / b) for b, a in zip(before, after, strict=True) if b and a]
    # Figures in one file only: a device with a name is still the same, one without may be another.
    known = bool(ratios or asked.device or asked.devices) or before == after
    if known and names[0] == names[1] and not any(ratios):
        return _SAME
    if not ratios:
        raise BadInput(
            f"nothing says how fast the devices of {asked.name} are beside those of {measured.name}",
            hint="add `flops` or `memory_bandwidth`, better both, to both cluster files",
        )
    between = (max(ratios) - min(ratios)) / 2 / _QUANTILE  # the 90% interval spans both ratios
    error = math.hypot(_LEAST_ERROR, between) if len(ratios) > 1 else _ONE_FIGURE
    return Factor(math.exp(-sum(ratios) / len(ratios)), error)


def _sync(measured: int | None, asked: int | None, same_device: bool, same_network: bool) -> Factor:
    if measured == asked and (same_device if asked else same_network):
        return _SAME
    if not measured or not asked:
        return Factor(1.0, _UNKNOWN_LINK)
    ratio = math.log(asked / measured)
    return Factor(math.exp(-ratio), math.hypot(_LINK_ERROR, _LATENCY * ratio))
