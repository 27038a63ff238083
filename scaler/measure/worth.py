"""What a measurement is worth: how much better the choice is expected to be for knowing its outcome."""

import numpy as np
from scipy import stats

from scaler.stats import Floats

_STRATA = 64
_NORMAL = stats.norm.ppf((np.arange(_STRATA) + 0.5) / _STRATA)


def worth(log_scores: Floats, signals: Floats, noise: Floats) -> Floats:
    """Expect by how much (log score, the least is best) each question betters the choice: [questions].

    `log_scores` are draws of what the options truly give [draws, options], `signals` of what a question asks
    about [draws, questions], and `noise` the standard deviations that its answers have around that. The
    knowledge gradient for correlated beliefs (Frazier, Powell and Dayanik 2009, INFORMS J. Computing 21(4)),
    with the draws' covariances: after the answer the options' means lie on lines in a normal number.
    """
    means = log_scores.mean(axis=0)
    apart = signals - signals.mean(axis=0)
    covariance = (log_scores - means).T @ apart / len(log_scores)
    deviation = np.sqrt((apart**2).mean(axis=0) + noise**2)
    slopes = np.divide(covariance, deviation, out=np.zeros_like(covariance), where=deviation > 0)
    lines = means[:, None, None] + slopes[:, :, None] * _NORMAL
    return np.asarray(np.maximum(means.min() - lines.min(axis=0).mean(axis=1), 0.0))
