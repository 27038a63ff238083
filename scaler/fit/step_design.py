"""Which plan to time next: the one that narrows the predictions of all of them most, per second it costs."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from scaler.fit.step_model import Floats, StepShape
from scaler.fit.step_time import StepTimeFit
from scaler.stats import CONFIDENCE


def half_widths(fit: StepTimeFit, shapes: Sequence[StepShape]) -> Floats:
    """Give the half-width of each mean's 90% interval, on the log scale: what more runs would narrow.

    By how much single runs differ is not in it.
    """
    _, slopes, covariance = fit.posterior.log_step(shapes)
    quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, fit.posterior.degrees_of_freedom))
    return np.asarray(quantile * np.sqrt(((slopes @ covariance) * slopes).sum(axis=1)))


def next_shape(fit: StepTimeFit, shapes: Sequence[StepShape], costs_s: Sequence[float] | Floats) -> int:
    """Choose one of `shapes` to run once more, or for the first time.

    A run of shape c lowers the variance of the prediction of t by (g_t V g_c)^2 / (noise^2 + g_c V g_c), with
    V the parameters' covariance and g the derivatives of the logarithm of the step time (sequential
    I-optimality, linear in the parameters: Fedorov, Theory of Optimal Experiments, 1972, chapter 3).
    """
    _, slopes, covariance = fit.posterior.log_step(shapes)
    shared = slopes @ covariance @ slopes.T
    gains = (shared**2).sum(axis=0) / (fit.posterior.noise**2 + np.diag(shared))
    return int(np.argmax(gains / np.asarray(costs_s)))
