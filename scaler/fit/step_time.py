"""Step time of a plan: compute affine in the micro-batch, plus synchronisation."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from scaler.batch import BatchPlan
from scaler.records import ThroughputRecord
from scaler.schema import Strict
from scaler.stats import Estimate, log_estimate

_METHOD = "accumulation x (overhead + per_example x micro_batch) + sync x log2(workers); t on the log scale"

Floats = NDArray[np.float64]


class StepTimeFit(Strict):
    """T = accumulation x (overhead + per_example x micro_batch) + sync x log2(workers).

    The logarithm grows slower than Pollux's linear term (OSDI'21, eq. 9), which runs away with the workers.
    Terms that the runs cannot tell apart are left out; `covariance` is over `terms`.
    """

    terms: tuple[str, ...]
    coefficients_s: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    mean_over_median: Estimate
    """Slow steps make a run's total longer than its steps x their median."""
    log_variance: float
    """Of one fresh run's median around the model: between-run spread and misfit."""
    degrees_of_freedom: int
    runs: int
    largest_workers: int
    largest_micro_batch: int

    def predict(self, plan: BatchPlan) -> Estimate:
        """Predict the median step time of one fresh run."""
        row = np.array([_TERMS[term](plan) for term in self.terms])
        value = float(row @ np.array(self.coefficients_s))
        parameters = float(row @ np.array(self.covariance) @ row) / value**2
        error = float(np.sqrt(self.log_variance + parameters)) if self.degrees_of_freedom else None
        return log_estimate(float(np.log(value)), error, self.degrees_of_freedom, self.runs, _METHOD)

    def is_extrapolated(self, plan: BatchPlan) -> bool:
        """Whether the plan lies beyond 4 x of what was measured."""
        return plan.workers > 4 * self.largest_workers or plan.micro_batch > 4 * self.largest_micro_batch

    @property
    def overhead_s(self) -> float:
        """Fixed time of one forward and backward pass, whatever its size: why small batches are slow."""
        return dict(zip(self.terms, self.coefficients_s, strict=True))["overhead"]

    @property
    def per_example_s(self) -> float:
        """Time of one more example in a pass."""
        return dict(zip(self.terms, self.coefficients_s, strict=True)).get("per_example", 0.0)


_TERMS = {
    "overhead": lambda plan: float(plan.accumulation),
    "per_example": lambda plan: float(plan.accumulation * plan.micro_batch),
    "sync": lambda plan: float(np.log2(plan.workers)),
}


def run_median_s(record: ThroughputRecord) -> float:
    """Median step of one run, after its warm-up: the unit of evidence."""
    return float(np.median(record.step_times_s[record.warmup_steps :]))


def fit_step_time(records: Iterable[ThroughputRecord]) -> StepTimeFit | None:
    """Fit by non-negative least squares on relative error; None without runs."""
    runs = list(records)
    if not runs:
        return None
    medians = np.array([run_median_s(run) for run in runs])
    terms = ["overhead"]
    if len({run.plan.micro_batch for run in runs}) > 1:
        terms.append("per_example")
    if len({run.plan.workers for run in runs}) > 1:
        terms.append("sync")
    rows = np.array([[_TERMS[term](run.plan) for term in terms] for run in runs]) / medians[:, None]
    coefficients, _ = nnls(rows, np.ones(len(runs)))
    if terms[-1] == "sync" and not coefficients[:-1].any():  # a pass always takes time
        terms, rows = terms[:-1], rows[:, :-1]
        coefficients, _ = nnls(rows, np.ones(len(runs)))
    residuals = np.log(rows @ coefficients)
    active = coefficients > 0
    dof = len(runs) - int(active.sum())
    log_variance = float((residuals**2).sum() / dof) if dof > 0 else 0.0
    return StepTimeFit(
        terms=tuple(terms),
        coefficients_s=tuple(map(float, coefficients)),
        covariance=_covariance(rows, active, log_variance),
        mean_over_median=_tail(runs),
        log_variance=log_variance,
        degrees_of_freedom=max(dof, 0),
        runs=len(runs),
        largest_workers=max(run.plan.workers for run in runs),
        largest_micro_batch=max(run.plan.micro_batch for run in runs),
    )


def _tail(runs: list[ThroughputRecord]) -> Estimate:
    """Geometric mean over runs of mean step / median step, with the interval of one fresh run."""
    logs = np.log([np.mean(r.step_times_s[r.warmup_steps :]) / run_median_s(r) for r in runs])
    n = len(logs)
    error = float(logs.std(ddof=1) * np.sqrt(1 + 1 / n)) if n > 1 else None
    return log_estimate(float(logs.mean()), error, n - 1, n, "mean over median step of a run; t")


def _covariance(rows: Floats, active: NDArray[np.bool_], variance: float) -> tuple[tuple[float, ...], ...]:
    """Covariance of the terms that are not held at zero."""
    full = np.zeros((rows.shape[1], rows.shape[1]))
    own = rows[:, active]
    full[np.ix_(active, active)] = variance * np.linalg.pinv(own.T @ own)
    return tuple(tuple(map(float, row)) for row in full)
