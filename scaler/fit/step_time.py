"""The step time of any plan on any worker count, from launches of a few."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from scaler.batch import BatchPlan
from scaler.fit.step_model import Layout, StepShape
from scaler.fit.step_posterior import Posterior, Rows, StepPriors, fit_rows
from scaler.records import ThroughputRecord
from scaler.stats import Estimate, Floats, log_estimate

METHOD = (
    "(accumulation - 1) x compute + (compute^g + sync^g)^(1/g), most likely under priors; "
    "t on the log scale, one fresh run"
)
_FAR = 4  # beyond so many times of what was measured an answer is an extrapolation


@dataclass(frozen=True)
class StepTimeFit:
    """What the runs say of step times; the form of the model is in `step_model`."""

    posterior: Posterior
    shapes: tuple[StepShape, ...]
    """One for each run."""

    @property
    def runs(self) -> int:
        """How many runs it rests on."""
        return len(self.shapes)

    @property
    def largest_workers(self) -> int:
        """The most workers that a run had."""
        return max(shape.workers for shape in self.shapes)

    @property
    def overhead_s(self) -> float:
        """Fixed time of one forward and backward pass, whatever its size: why small batches are slow."""
        return float(np.exp(self.posterior.parameters[Layout.OVERHEAD]))

    @property
    def per_example_s(self) -> float | None:
        """Time of one more example in a pass; None where one micro-batch was measured."""
        if len({shape.micro_batch for shape in self.shapes}) == 1:
            return None
        return float(np.exp(self.posterior.parameters[Layout.PER_EXAMPLE]))

    def predict(self, shape: StepShape) -> Estimate:
        """Predict the median step time of one fresh run."""
        return self.predict_all([shape])[0]

    def predict_all(self, shapes: Sequence[StepShape]) -> list[Estimate]:
        """Predict the median step time of one fresh run of each shape."""
        return [
            Estimate(value=value, low=low, high=high, samples=self.runs, method=METHOD)
            for value, low, high in np.exp(np.transpose(self.posterior.predict(shapes))).tolist()
        ]

    def typical_s(self, nodes: Floats, workers: Floats, micro_batch: Floats, accumulation: Floats) -> Floats:
        """Predict the median step of very many shapes, given as arrays; without intervals."""
        return np.asarray(np.exp(self.posterior.typical(nodes, workers, micro_batch, accumulation)))

    def draw_s(self, shapes: Sequence[StepShape], draws: int, seed: int = 0) -> Floats:
        """Draw what the step times may truly be, all shapes together: [draws, shapes]."""
        return np.asarray(np.exp(self.posterior.draw(shapes, draws, seed)))

    def is_extrapolated(self, shape: StepShape) -> bool:
        """Whether the shape lies beyond 4 x of what was measured."""
        return shape.workers > _FAR * self.largest_workers or shape.micro_batch > _FAR * max(
            known.micro_batch for known in self.shapes
        )

    def unidentified(self, shapes: Iterable[StepShape]) -> list[str]:
        """Say what of the shapes the runs do not tell, so that only the priors do."""
        shapes = list(shapes)
        known, found = self.shapes, []
        several = [shape for shape in known if shape.workers > 1]
        kinds = {shape.nodes > 1 for shape in shapes if shape.workers > 1} - {s.nodes > 1 for s in several}
        sizes = {shape.micro_batch for shape in known}
        if len(sizes) == 1 and {shape.micro_batch for shape in shapes} != sizes:
            found.append(f"one micro-batch was measured ({min(sizes)}): overhead and time an example are one")
        for across in sorted(kinds):
            where = "across nodes" if across else "inside a node"
            found.append(f"no run synchronised {where}: how long that takes is a guess")
        count = self.largest_workers
        others = {shape.workers for shape in shapes} - {1, count}
        if len(several) == len(known) and len({shape.workers for shape in known}) == 1 and others:
            found.append(f"only {count} workers were measured: how synchronisation grows is not known")
        return found


def shape_of(plan: BatchPlan, nodes: int = 1) -> StepShape:
    """Give what a plan's step time depends on; unequal workers end with the largest micro-batch."""
    return StepShape(nodes, plan.workers, plan.micro_batch, plan.accumulation)


def run_median_s(record: ThroughputRecord) -> float:
    """Median step of one run, after its warm-up: the unit of evidence."""
    return float(np.median(record.step_times_s[record.warmup_steps :]))


def fit_step_time(
    records: Iterable[ThroughputRecord], priors: StepPriors | None = None
) -> StepTimeFit | None:
    """Fit the runs of one ZeRO stage; None without runs."""
    runs = list(records)
    if not runs:
        return None
    return fit_step_rows(
        Rows(
            shapes=tuple(shape_of(run.plan, run.nodes) for run in runs),
            step_time_s=np.array([run_median_s(run) for run in runs]),
            sync_time_s=np.array([run_sync_s(run) for run in runs]),
        ),
        priors,
    )


def fit_step_rows(rows: Rows, priors: StepPriors | None = None) -> StepTimeFit:
    """Fit one median a run (at least one)."""
    return StepTimeFit(fit_rows(rows, priors or StepPriors()), rows.shapes)


def run_sync_s(record: ThroughputRecord) -> float:
    """Median of the exposed synchronisation of one run; nan where it was not measured."""
    settled = record.phase_times_s.get("sync", ())[record.warmup_steps :]
    return float(np.median(settled)) if settled else float("nan")


def mean_over_median(records: Iterable[ThroughputRecord]) -> Estimate | None:
    """Give a run's mean over its median step: slow steps make the total longer than steps x median.

    Geometric mean over runs, with the interval of one fresh run; None without runs.
    """
    logs = np.log([np.mean(r.step_times_s[r.warmup_steps :]) / run_median_s(r) for r in records])
    n = len(logs)
    if not n:
        return None
    error = float(logs.std(ddof=1) * np.sqrt(1 + 1 / n)) if n > 1 else None
    return log_estimate(float(logs.mean()), error, n - 1, n, "mean over median step of a run; t")
