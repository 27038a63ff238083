"""The answer where no run to the target fits the budget: the largest batch whose branches do not lose."""

from scaler.cluster import Cluster
from scaler.decide.choose import reference_answer
from scaler.decide.config import Answer, Bound
from scaler.decide.epochs import turned
from scaler.decide.fits import Fits
from scaler.decide.plans import feasible_plan
from scaler.fit.branching import TOLERATED, BranchingFit, BranchResult
from scaler.fit.step_time import shape_of
from scaler.stats import Estimate, product
from scaler.units import format_count
from scaler.workload import Reference

_METHOD = "time per example x examples for the same loss, over the reference's; log half-widths in squares"


def branched_answer(
    fits: Fits, branching: BranchingFit, cluster: Cluster, workers: int, reference: Reference
) -> tuple[Answer | None, str]:
    """Give a worker count the largest batch that does not lose, without a time to target; or say why not."""
    best = branching.best
    chosen = Reference(best.global_batch, best.learning_rate, reference.warmup_examples)
    found, why_not = reference_answer(fits, cluster, workers, chosen)
    if found is None:
        return None, why_not
    relative = _relative_time(fits, best, cluster, found, reference)
    bound, bound_reason = _bound(branching)
    reasons = {
        "global_batch": _global_batch(branching),
        "learning_rate": _learning_rate(best, reference),
        "bound_by": bound_reason,
        "time_to_target": "no run to the target fits the budget; with a longer one it is trained to, and "
        "learning rates are tried",
    }
    if relative is not None:
        reasons["relative_time"] = (
            f"against a global batch of {reference.global_batch} on the same workers; {_METHOD}"
        )
    update = {"relative_time": relative, "bound_by": bound, "reasons": found.reasons | reasons}
    return found.model_copy(update=update), ""


def branching_notes(branching: BranchingFit) -> list[str]:
    """Say what the branches could not tell."""
    notes = []
    if branching.critical_batch is None:
        least = branching.critical_at_least
        text = f"at least {format_count(least)} examples" if least else "not identifiable"
        notes.append(f"critical batch: {text}, by branches of {branching.examples:,} examples")
    undecided = [str(r.global_batch) for r in branching.results if r.verdict == "undecided"]
    if undecided:
        notes.append(
            f"global batch {', '.join(undecided)}: whether it loses is not settled by "
            f"{branching.results[0].seeds} data orders; more --seeds or a longer --budget tell"
        )
    if branching.rewarm_examples:
        notes.append(
            f"the checkpoint holds no optimizer state: the rate was warmed up again over the first "
            f"{branching.rewarm_examples:,} examples of every branch"
        )
    return notes


def _relative_time(
    fits: Fits, best: BranchResult, cluster: Cluster, found: Answer, reference: Reference
) -> Estimate | None:
    """Estimate time for the same loss over the reference's; None for itself, or where that does not fit."""
    plan = feasible_plan(
        reference.global_batch, found.plan.workers, fits.memory, cluster, found.plan.zero_stage
    )
    if best.slowdown is None or plan is None or fits.step_time is None:
        return None
    step_s = fits.step_time.predict(shape_of(plan, cluster.nodes_of(plan.workers)))
    example_s = product(found.step_time_s, turned(step_s, 1.0), "").scaled(
        plan.global_batch / found.plan.global_batch
    )
    # Fewer examples than the reference's are its rate's doing, and pass: none of the batch's own.
    slowdown = best.slowdown.model_copy(
        update={
            name: None if (end := getattr(best.slowdown, name)) is None else max(1.0, end)
            for name in ("value", "low", "high")
        }
    )
    return product(example_s, slowdown, _METHOD)


def _bound(branching: BranchingFit) -> tuple[Bound, str]:
    best, losing = branching.best, branching.losing
    if losing is not None:
        between = f"{best.global_batch} does not lose and {losing.global_batch} does"
        return "critical batch", f"the critical batch at this moment of training: {between}"
    if best.verdict == "reference":
        return (
            "no evidence",
            "missing evidence: no larger batch is shown to keep up, the reference is kept",
        )
    return "largest batch measured", "the largest batch shown to keep up: larger ones may as well"


def _global_batch(branching: BranchingFit) -> str:
    best = branching.best
    tried = ", ".join(format_count(r.global_batch) for r in branching.results)
    start = (
        "from the checkpoint"
        if branching.start_examples is None
        else (f"from a state at {branching.start_examples:,} examples")
    )
    text = f"the largest of {tried} that does not lose over {branching.examples:,} examples {start}"
    if best.difference is None:
        return f"{text}: only the reference's own"
    return (
        f"{text}: its training loss differs by {best.difference.value:+.2g} from the reference's, and up to "
        f"{branching.tolerance:.2g} is tolerated ({TOLERATED:g} x its examples, or the spread of data orders)"
    )


def _learning_rate(best: BranchResult, reference: Reference) -> str:
    growth = best.global_batch / reference.global_batch
    if growth == 1:
        return f"the reference's, {reference.learning_rate:g}"
    factor = best.learning_rate / reference.learning_rate
    rule = "linear in" if best.rate_rule == "linear" else "the square root of"
    return (
        f"the reference's, {reference.learning_rate:g}, x {format_count(factor)}: {rule} the batch's growth "
        f"of {format_count(growth)}; no other rate was tried"
    )
