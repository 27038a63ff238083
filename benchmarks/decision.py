"""Decisions scored against what is known exhaustively: what the chosen batch costs over the best one.

    SCALER_DATA=DIR python benchmarks/decision.py [t4 | zeus | digits | mnist ...] [--decisions N]

Regret is the true time to target of the choice over that of the best choice, less 1. A decision sees a few of
the measurements, through the fits of the package. Where they are public, the truth of a batch is the mean of
the runs that the decision did not see.

t4: step times on T4 GPUs (Pollux, OSDI'21 artifact). The cluster is one placement of 5 to 16 GPUs, not timed.
    Known are step times on up to four GPUs: five placements, three micro-batches each.
    Batches that were trained: three runs of each application, to 99% of the best metric that all of them
    reach; each in turn is not known. Between two micro-batches measured times are interpolated.
    All batches: every one with a measured step time from the reference's on. Examples are those until the
    reference's last epoch, by the gradient noise recorded along the runs of the nearest batches; known are
    four batches, evenly apart. So Pollux's law holds here; its model sees the mean noise of the reference's
    run, and fits its own step times to the same rows as ours.
zeus: epochs to target, four to ten runs of every batch, on one V100. Known are two runs of four batches,
    evenly apart, and the time of an epoch; all batches can be chosen. To each of the three hardest targets
    that six batches always reach at least (others are left out), with ten draws of the known runs.
digits, mnist: the search of `scaler tune` on a surrogate of the recorded grid (`surrogate.py`), a step being
    as long as its examples and an overhead, and then the choice among the batches that it reached and those
    between. Intervals of examples to target at the choice are held against ten fresh draws each.
"""

import argparse
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np
from coverage import coverage
from decision_data import Traces, shape, spread, workers, zeus_series
from figure import Figure, table
from learning_rate import GRIDS, grid_file
from step_time import APPS, pollux
from surrogate import Surrogate, SurrogateEvidence

from scaler.batch import BatchPlan
from scaler.fit.convergence import fit_convergence
from scaler.fit.optimizer import optimizer_of
from scaler.fit.step_model import StepShape
from scaler.fit.step_posterior import Rows
from scaler.fit.step_time import fit_step_rows
from scaler.fit.steps import BatchRuns, fit_batch_runs
from scaler.measure.learning_rates import search_learning_rates
from scaler.measure.step_times import GivenTimes
from scaler.workload import load_workload

GOAL = "median at most 3%, mean at most 5%, worst at most 25%"
DRAWS, SEEN = 10, 2  # zeus: draws of what is known; runs of a batch
FRESH, NO_LIMIT = 10, 1e12

Regrets = dict[str, list[float]]
"""By way of choosing."""


def note(found: Regrets, truth: Mapping[int, float], chosen: Mapping[str, int]) -> None:
    best = min(truth.values())
    for name, batch in chosen.items():
        found[name].append(truth[batch] / best - 1)


def figure(what: str, found: Regrets, method: str) -> Figure:
    def words(name: str, regrets: list[float]) -> str:
        text = f"mean {np.mean(regrets):.1%}, worst {max(regrets):.1%}"
        return f"{f'median {np.median(regrets):.1%}, ' if name == 'ours' else name + ': '}{text}"

    n = len(found["ours"])
    return Figure(f"regret, {what}", GOAL, "; ".join(words(*i) for i in found.items()), f"{n:,} {method}")


def t4(folder: Path) -> list[Figure]:
    few: Regrets = defaultdict(list)
    many: Regrets = defaultdict(list)
    for app in APPS:
        traces = Traces.load(folder / "pollux_t4" / app)
        few_batches(traces, few)
        all_batches(traces, many)
    method = f"decisions ({', '.join(APPS)}; placements of 5 to 16 T4 GPUs); step times known on up to 4 GPUs"
    return [
        figure("T4, batches that were trained", few, f"{method}, two of the three batches' runs"),
        figure("T4, all batches", many, f"{method}, examples at four batches; examples by recorded noise"),
    ]


Steps = dict[tuple[str, int], float]
"""Seconds of a step, by placement and global batch."""


def few_batches(traces: Traces, found: Regrets) -> None:
    examples = traces.trained()
    offered = {p: [b for b in examples if _spans(traces.step_s[p], b / workers(p))] for p in traces.asked}
    offered = {placement: batches for placement, batches in offered.items() if len(batches) > 1}
    step_s, _ = step_times(traces, offered)
    for left_out in examples:
        steps = fit_batch_runs([BatchRuns(b, (e,)) for b, e in examples.items() if b != left_out])
        predicted = {batch: steps.examples(batch).value for batch in examples}
        for p, batches in offered.items():
            truth = {b: examples[b] / b * traces.measured_s(p, b) for b in batches}
            note(found, truth, {"ours": fastest(p, batches, step_s, predicted), **ends(batches)})


def all_batches(traces: Traces, found: Regrets) -> None:
    first = min(traces.runs)
    offered = {
        p: [b for m in sorted(traces.step_s[p]) if (b := workers(p) * m) >= first] for p in traces.asked
    }
    batches = sorted({batch for of in offered.values() for batch in of})
    known = [BatchRuns(b, (traces.examples(b),)) for b in np.geomspace(first, batches[-1], 4).tolist()]
    predicted = fit_batch_runs(known).examples_at(batches, [1] * len(batches))
    ours = {b: e.value for b, e in zip(batches, predicted, strict=True)}
    theirs = {b: traces.pollux_examples(b) for b in batches}
    step_s, their_step_s = step_times(traces, offered)
    for p, of in offered.items():
        truth = {b: traces.examples(b) / b * traces.measured_s(p, b) for b in of}
        chosen = {
            "ours": fastest(p, of, step_s, ours),
            "Pollux's model": fastest(p, of, their_step_s, theirs),
        }
        note(found, truth, chosen | ends(of))


def _spans(sizes: Iterable[int], micro_batch: float) -> bool:
    return min(sizes) <= micro_batch <= 1.01 * max(sizes)


def step_times(traces: Traces, offered: Mapping[str, Sequence[int]]) -> tuple[Steps, Steps]:
    """Predict them by our model, and by Pollux's."""
    known = traces.known()
    keys = [(placement, batch) for placement, batches in offered.items() for batch in batches]
    shapes = [shape(placement, round(batch / workers(placement))) for placement, batch in keys]
    unique = list(dict.fromkeys(shapes))
    ours = dict(zip(unique, (e.value for e in fit_step_rows(known).predict_all(unique)), strict=True))
    theirs = dict(zip(unique, np.exp(pollux(known, unique)).tolist(), strict=True))
    return (
        {key: ours[of] for key, of in zip(keys, shapes, strict=True)},
        {key: theirs[of] for key, of in zip(keys, shapes, strict=True)},
    )


def fastest(placement: str, batches: Sequence[int], step_s: Steps, examples: Mapping[int, float]) -> int:
    return min(batches, key=lambda b: examples[b] / b * step_s[placement, b])


def ends(batches: Sequence[int]) -> dict[str, int]:
    return {"the largest": batches[-1], "the smallest": batches[0]}


def zeus(folder: Path) -> list[Figure]:
    found: Regrets = defaultdict(list)
    series = zeus_series(folder / "zeus")
    for epochs, epoch_s in series:
        for number in range(DRAWS):
            decide_zeus(epochs, epoch_s, Random(number), found)
    method = f"decisions ({len(series)} targets of three workloads x {DRAWS} draws of the known runs)"
    return [figure("Zeus, two runs of four batches known", found, method)]


def decide_zeus(
    epochs: Mapping[int, Sequence[float]], epoch_s: Mapping[int, float], random: Random, found: Regrets
) -> None:
    batches = sorted(epochs)
    seen = {b: random.sample(range(len(epochs[b])), SEEN) for b in spread(batches, 4)}
    runs = {b: tuple(epochs[b][i] for i in of) for b, of in seen.items()}
    fresh = {b: [e for i, e in enumerate(of) if i not in seen.get(b, ())] for b, of in epochs.items()}
    truth = {b: float(np.mean(of)) * epoch_s[b] for b, of in fresh.items()}
    fit = fit_batch_runs([BatchRuns(b, of) for b, of in runs.items()])
    examples = [e.value for e in fit.examples_at(batches, [1] * len(batches))]
    rows = Rows(
        shapes=tuple(StepShape(1, 1, b) for b in runs),
        step_time_s=np.array([epoch_s[b] * b for b in runs]),  # in a unit of its own
        sync_time_s=np.full(len(runs), np.nan),
    )
    fitted = fit_step_rows(rows).predict_all([StepShape(1, 1, b) for b in batches])
    timed = [epoch_s[b] for b in batches]
    few = [e.value / b for e, b in zip(fitted, batches, strict=True)]
    chosen = {
        name: batches[int(np.argmin(np.multiply(examples, times)))]
        for name, times in (("ours", timed), ("ours, epochs of those four timed only", few))
    }
    chosen["the best mean of those four"] = min(runs, key=lambda b: float(np.mean(runs[b])) * epoch_s[b])
    note(found, truth, chosen | ends(batches))


def grid(name: str, decisions: int) -> list[Figure]:
    surrogate, overhead = Surrogate(grid_file(name)), GRIDS[name].overhead_examples
    found: Regrets = defaultdict(list)
    groups = {}
    for number in range(decisions):
        batch, rate, interval = search(name, surrogate, overhead, number)
        per_example = {b: overhead / b + 1 for b in surrogate.batches}
        truth = {b: surrogate.best(b)[1] * per_example[b] for b in surrogate.batches}
        best = min(truth.values())
        found["ours"].append(surrogate.mean(batch, rate) * per_example[batch] / best - 1)
        note(found, truth, {"the same batch at its best rate": batch, **ends(surrogate.batches)})
        random = Random(number)
        fresh = [math.log(surrogate.draw(batch, rate, NO_LIMIT, random)[0]) for _ in range(FRESH)]
        groups[str(number)] = ([interval[0]] * FRESH, [interval[1]] * FRESH, fresh)
    judged = coverage(groups)
    return [
        figure(f"{name}, learning rates searched", found, "searches on a surrogate of the recorded grid"),
        Figure(
            f"{name}: 90% interval of examples to target at the choice",
            "coverage's interval holds 90%",
            f"{judged.inside:.1%} inside ({judged.low:.1%} to {judged.high:.1%})",
            f"{decisions} searches x {FRESH} fresh draws; exact binomial interval, clustered by search",
        ),
    ]


def search(name: str, surrogate: Surrogate, overhead: float, seed: int) -> tuple[int, float, list[float]]:
    """Search once: the batch chosen, its rate, and the logarithms of its interval's ends."""
    workload, evidence = load_workload(name), SurrogateEvidence(surrogate, seed)
    sizes = evidence.sizes(workload)
    plans = {b: BatchPlan.equal(b, 1, 1) for b in surrogate.batches}
    search_learning_rates(evidence, workload, 3, sizes, plans, GivenTimes(lambda batch: overhead + batch))
    fit = fit_convergence(evidence.records, optimizer_of([sizes]))
    assert fit is not None
    offered = [b for b in surrogate.batches if min(fit.runs) <= b <= max(fit.runs)]
    examples = dict(zip(offered, fit.examples_of(offered), strict=True))
    batch = min(offered, key=lambda b: examples[b].value * (overhead / b + 1))
    low, high = examples[batch].low, examples[batch].high
    return batch, fit.learning_rate(batch), np.log([low or math.nan, high or math.nan]).tolist()


def measure(parts: Sequence[str] = ("t4", "zeus", "digits", "mnist"), decisions: int = 120) -> list[Figure]:
    folder, found = Path(os.environ.get("SCALER_DATA", "")), []
    for part in parts:
        own = {"t4": t4, "zeus": zeus}.get(part)
        found += own(folder) if own is not None else grid(part, decisions)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", default=["t4", "zeus", "digits", "mnist"])
    parser.add_argument("--decisions", type=int, default=120, help="of each grid")
    options = parser.parse_args()
    print(table(measure(options.parts, options.decisions)))


if __name__ == "__main__":
    main()
