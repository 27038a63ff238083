"""Published rules that carry a learning rate to another batch, held against the measured best rates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scaler.fit.optimizer import Optimizer
from scaler.fit.rate_fit import RateFit
from scaler.schema import Strict
from scaler.stats import Estimate

_MOST_ADAM = 10.0  # times the batch, beyond which Malladi's approximation was not meant to hold


class RuledRate(Strict):
    """What a rule says at one batch, and what following it costs."""

    global_batch: int
    learning_rate: float | None = None
    betas: tuple[float, ...] = ()
    """Where the rule changes them. What that changes was not measured."""
    inside: bool | None = None
    """Whether the rate lies in the measured best rate's 90% interval."""
    cost: Estimate | None = None
    """Examples to target over those of the best rate."""
    not_applicable: str | None = None
    """Why the rule says nothing here."""


class RateRule(Strict):
    """One rule, carried from one batch and rate to every batch measured."""

    rule: str
    formula: str
    from_batch: int
    from_rate: float
    origin: str
    """Where the rate comes from: `reference`, or `measured best` at the reference batch."""
    rates: tuple[RuledRate, ...]


@dataclass(frozen=True)
class _Case:
    """A question to a rule; k is the batch over the one that the rate is known at."""

    batch: int
    from_batch: int
    from_rate: float
    optimizer: Optimizer
    noise_scale: float | None

    @property
    def k(self) -> float:
        return self.batch / self.from_batch


_Said = tuple[float, tuple[float, ...]] | str
"""Rate and betas, or why the rule does not apply."""


def rate_rules(
    fit: RateFit,
    batches: Sequence[int],
    reference: tuple[int, float],
    optimizer: Optimizer,
    noise_scale: float | None,
) -> tuple[RateRule, ...]:
    """Carry the reference's rate, and the best rate at its batch, to `batches` by every rule.

    `reference` is its global batch and learning rate; `noise_scale` is tr(Sigma) / |G|^2 in examples.
    """
    batch, rate = reference
    origins = {"reference": rate, "measured best": fit.best_rate(batch).value}
    return tuple(
        RateRule(
            rule=name,
            formula=formula,
            from_batch=batch,
            from_rate=own,
            origin=origin,
            rates=tuple(
                _ruled(fit, rule(_Case(to, batch, own, optimizer, noise_scale)), to) for to in batches
            ),
        )
        for name, (formula, rule) in _RULES.items()
        for origin, own in origins.items()
    )


def _ruled(fit: RateFit, said: _Said, batch: int) -> RuledRate:
    if isinstance(said, str):
        return RuledRate(global_batch=batch, not_applicable=said)
    rate, betas = said
    best = fit.best_rate(batch)
    assert best.low is not None and best.high is not None
    return RuledRate(
        global_batch=batch,
        learning_rate=rate,
        betas=betas,
        inside=best.low <= rate <= best.high,
        cost=fit.cost(batch, rate),
    )


def _linear(case: _Case) -> _Said:
    return case.from_rate * case.k, ()


def _square_root(case: _Case) -> _Said:
    return case.from_rate * math.sqrt(case.k), ()


def _adascale(case: _Case) -> _Said:
    """r = (s2 + |g|^2) / (s2 / S + |g|^2), with s2 = noise scale x |g|^2 / from_batch and S = k."""
    if not case.optimizer.is_sgd:
        return _only_for("SGD", case.optimizer)
    if case.k < 1:
        return "for larger batches only"
    if case.noise_scale is None:
        return "the noise scale was not measured or is not identifiable"
    noise = case.noise_scale / case.from_batch
    return case.from_rate * (noise + 1) / (noise / case.k + 1), ()


def _adam_square_root(case: _Case) -> _Said:
    if not case.optimizer.is_adam_like:
        return _only_for("Adam-like optimizers", case.optimizer)
    if case.k >= _MOST_ADAM or case.k <= 1 / _MOST_ADAM:
        return f"{case.k:g} x the batch: not within a factor of {_MOST_ADAM:g}"
    gaps = [case.k * (1 - beta) for beta in case.optimizer.betas]
    if max(gaps) >= 1 - 1e-9:
        return f"at {case.k:g} x the batch it asks for a beta of 0 or less"
    return case.from_rate * math.sqrt(case.k), tuple(1 - gap for gap in gaps)


def _token_half_life(case: _Case) -> _Said:
    if not case.optimizer.is_adam_like:
        return _only_for("Adam-like optimizers", case.optimizer)
    first, second = case.optimizer.betas
    return case.from_rate, (first, second**case.k)


def _only_for(what: str, optimizer: Optimizer) -> str:
    is_not = f", not {optimizer.name}" if optimizer.name else "; the optimizer was not recorded"
    return f"for {what}{is_not}"


_RULES = {
    # Goyal et al. 2017, arXiv 1706.02677, section 2.1.
    "linear": ("lr x k", _linear),
    # Krizhevsky 2014, arXiv 1404.5997, section 5.
    "square root": ("lr x sqrt(k)", _square_root),
    # Johnson et al. 2020, arXiv 2007.05105, section 3.
    "AdaScale": ("lr x (s2 + |g|^2) / (s2 / k + |g|^2), from the noise scale", _adascale),
    # Malladi et al. 2022, arXiv 2205.10287, definition 5.2.
    "Adam square root": ("lr x sqrt(k), beta -> 1 - k (1 - beta), eps / sqrt(k)", _adam_square_root),
    # Marek et al. 2025, arXiv 2507.07101, section 3.
    "token half-life": ("lr kept, beta2 -> beta2^k", _token_half_life),
}
