"""Gradient noise scale from pairs of squared gradient norms."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import Field

from scaler.records import NoiseRecord, SquaredNorms
from scaler.schema import Strict
from scaler.stats import Estimate, Floats, block_bootstrap
from scaler.units import format_count

_METHOD = "ratio of means; bootstrap in blocks of steps"


class NoiseFit(Strict):
    """The gradient noise scale in examples, and where it comes from. Absent: not identifiable."""

    scale: Estimate | None = None
    groups: dict[str, Estimate | None] = Field(default_factory=dict)
    """Of each group of parameters that has a gradient."""
    preconditioned: Estimate | None = None
    """A diagnostic: the scale of the gradient as an Adam-like optimizer sees it."""
    steps: int = 0
    left_out_steps: int = 0
    """Steps whose gradients were not finite."""
    miscounted_steps: int = 0
    """Steps left out because they had another number of backward passes than stated."""

    def __str__(self) -> str:
        """Say the scales, one a line."""
        lines = {"gradient noise scale": self.scale, **{f"  {n}": scale for n, scale in self.groups.items()}}
        if self.preconditioned is not None:
            lines["  preconditioned (diagnostic)"] = self.preconditioned
        text = "\n".join(f"{name}: {_words(scale)}" for name, scale in lines.items())
        left_out = {
            "gradients that were not finite": self.left_out_steps,
            "another number of backward passes than stated": self.miscounted_steps,
        }
        notes = [f"{number} left out: {why}" for why, number in left_out.items() if number]
        return f"{text}\n({'; '.join([f'{self.steps} steps', *notes])})"


def fit_noise(records: Iterable[NoiseRecord]) -> NoiseFit:
    """Estimate the noise scale of all parameters, of each group, and of the preconditioned gradient."""
    records = list(records)
    groups: dict[str, list[Floats]] = {}
    for record in records:
        for name, norms in record.groups.items():
            groups.setdefault(name, []).append(_parts_of(record, norms))
    return fit_parts(
        _join(
            _parts_of(r, SquaredNorms(small=r.small_squared_norms, big=r.big_squared_norms)) for r in records
        ),
        {name: _join(parts) for name, parts in groups.items()},
        _join(_parts_of(r, r.preconditioned) for r in records if r.preconditioned is not None),
        sum(record.left_out_steps for record in records),
    )


def fit_parts(
    total: Floats,
    groups: Mapping[str, Floats],
    preconditioned: Floats,
    left_out_steps: int,
    miscounted_steps: int = 0,
) -> NoiseFit:
    """Estimate noise scales from rows of `unbiased_parts`. Groups without any gradient are left out."""
    return NoiseFit(
        scale=noise_scale(total),
        groups={name: noise_scale(parts) for name, parts in groups.items() if parts.any()},
        preconditioned=noise_scale(preconditioned),
        steps=len(total),
        left_out_steps=left_out_steps,
        miscounted_steps=miscounted_steps,
    )


def unbiased_parts(
    small: Sequence[float], big: Sequence[float], small_batch: float, global_batch: float
) -> Floats:
    """Give |G|^2 and tr(Sigma) of every step, [steps, 2], each unbiased (McCandlish et al. 2018, A.1).

    From squared norms of the gradient over `small_batch` and over `global_batch` examples.
    """
    g_small, g_big = np.asarray(small, dtype=float), np.asarray(big, dtype=float)
    squared_gradient = (global_batch * g_big - small_batch * g_small) / (global_batch - small_batch)
    trace = (g_small - g_big) / (1 / small_batch - 1 / global_batch)
    return np.stack([squared_gradient, trace], axis=1)


def noise_scale(parts: Floats) -> Estimate | None:
    """Estimate B_simple = tr(Sigma) / |G|^2 in examples (McCandlish et al. 2018, arXiv 1812.06162).

    `parts` are rows of `unbiased_parts`: numerator and denominator are averaged over steps before the
    division. The interval is that of |G|^2 / tr(Sigma), which has no pole where |G|^2 may be 0, turned over.
    None, "not identifiable", while its lower end is not positive, and under eight steps.
    """
    if len(parts) == 0 or parts.mean(axis=0).min() <= 0:
        return None
    found = block_bootstrap(parts, _signal_to_noise, expanded=True)
    if found is None or not found[0] > 0:
        return None
    return Estimate(
        value=1 / _signal_to_noise(parts),
        low=1 / found[1],
        high=1 / found[0],
        samples=len(parts),
        method=_METHOD,
    )


def _signal_to_noise(parts: Floats) -> float:
    squared_gradient, trace = parts.mean(axis=0)
    return float(squared_gradient / trace)


def _parts_of(record: NoiseRecord, norms: SquaredNorms) -> Floats:
    return unbiased_parts(norms.small, norms.big, record.small_batch, float(record.plan.global_batch))


def _join(parts: Iterable[Floats]) -> Floats:
    return np.concatenate([np.empty((0, 2)), *parts])


def _words(scale: Estimate | None) -> str:
    if scale is None:
        return "not identifiable"
    low, high = (format_count(bound) for bound in (scale.low or 0.0, scale.high or 0.0))
    return f"{format_count(scale.value)} examples (90% interval {low} to {high})"
