"""From records to a BatchConfig."""

from collections.abc import Sequence

from scaler.batch import SMALL_DATASET_EXAMPLES, BatchPlan
from scaler.cluster import Cluster
from scaler.decide.choose import Option, answer, options, reference_answer, untried_option
from scaler.decide.config import Answer, BatchConfig, Findings, RuleOfThumb
from scaler.decide.confirm import compare, compare_launch
from scaler.decide.epochs import epoch_costs
from scaler.decide.fits import Fits, fit_all, workload_record
from scaler.decide.long_runs import branched_answer, branching_notes
from scaler.decide.rules import rules_of_thumb
from scaler.decide.spread import with_spread
from scaler.errors import NothingFeasible
from scaler.fit.noise import NoiseFit, fit_noise
from scaler.fit.optimizer import optimizer_of
from scaler.fit.powers import fit_powers
from scaler.fit.rate_fit import RateFit
from scaler.fit.rate_rules import RateRule, rate_rules
from scaler.fit.speeds import with_measured_speeds
from scaler.records import (
    ConfirmationRecord,
    MemoryRecord,
    NoiseRecord,
    PowersRecord,
    PredictionRecord,
    Record,
    ThroughputRecord,
    WorkloadRecord,
)
from scaler.stats import Estimate
from scaler.workload import Reference


def decide(
    records: Sequence[Record],
    cluster: Cluster,
    zero_stage: int = 0,
    pinned: BatchPlan | None = None,
) -> BatchConfig:
    """Choose the batch configuration for every worker count of the cluster.

    Raises:
        BadInput: the records do not even hold the sizes of the workload.
        NothingFeasible: no worker count has an answer; says why for each.
    """
    sizes = workload_record(records)
    reference = Reference(
        sizes.reference_global_batch, sizes.reference_learning_rate, sizes.reference_warmup_examples
    )
    runs = [r for r in records if isinstance(r, ThroughputRecord) and not r.held_out]
    cluster = with_measured_speeds(cluster, runs)
    fits = fit_all(records, cluster, zero_stage)
    answers: list[Answer] = []
    infeasible: dict[int, str] = {}
    ranked: dict[int, list[Option]] = {}
    for workers in [pinned.workers] if pinned else cluster.worker_counts:
        ranked[workers], why = options(fits, cluster, workers, zero_stage, pinned)
        if ranked[workers]:
            answers.append(answer(fits, cluster, ranked[workers], reference, pinned))
            continue
        if fits.branching is not None and pinned is None:
            kept, why_not = branched_answer(fits, fits.branching, cluster, workers, zero_stage, reference)
        else:
            kept, why_not = reference_answer(fits, cluster, workers, zero_stage, reference, pinned)
        if kept is not None:
            answers.append(kept)
        else:
            infeasible[workers] = why or why_not
    if not answers:
        faults = [f"  - {workers} workers: {why}" for workers, why in infeasible.items()]
        raise NothingFeasible(
            "\n".join([f"no batch configuration for {cluster.name}:", *faults]),
            hint="a longer --budget measures more; more device memory or another ZeRO stage fits more",
        )
    answers = [with_spread(found, records, sizes) for found in answers]
    best = min(answers, key=_speed)
    return BatchConfig(
        workload=sizes.name,
        cluster=cluster,
        chosen_workers=best.plan.workers,
        answers=tuple(answers),
        infeasible=infeasible,
        findings=_findings(records, fits, sizes),
        epochs=epoch_costs(fits, cluster, best.plan),
        rules_of_thumb=_rules_of_thumb(fits, cluster, ranked[best.plan.workers]) if not pinned else (),
        branching=fits.branching if best.time_to_target_s is None else None,
        records=len(records),
        versions=records[-1].environment.versions,
    )


def with_confirmation(config: BatchConfig, records: Sequence[Record]) -> BatchConfig:
    """Add predicted against observed, where the chosen configuration was trained."""
    chosen = config.chosen
    confirmations = [
        r
        for r in records
        if isinstance(r, ConfirmationRecord)
        and (r.plan, r.learning_rate) == (chosen.plan, chosen.learning_rate)
    ]
    peaks = [r for r in records if isinstance(r, MemoryRecord) and r.held_out and r.plan == chosen.plan]
    runs = [r for r in records if isinstance(r, ThroughputRecord) and r.held_out and r.plan == chosen.plan]
    peak = peaks[-1] if peaks else None
    if confirmations:
        confirmation = compare(chosen, confirmations[-1], peak)
    elif runs:
        confirmation = compare_launch(chosen, runs[-1], peak)
    else:
        return config
    return config.model_copy(update={"confirmation": confirmation, "records": len(records)})


def _speed(found: Answer) -> float:
    """Order answers by time to target, or by throughput where none has one."""
    time_s = found.time_to_target_s
    return time_s.value if time_s is not None else 1e12 / found.samples_per_s.value


def _rules_of_thumb(fits: Fits, cluster: Cluster, ranked: list[Option]) -> tuple[RuleOfThumb, ...]:
    """Hold the rules against the ranked options; of small data against the full batch, tried or not."""
    if not ranked:
        return ()
    plan, full = ranked[0].plan, fits.train_examples
    small = full <= SMALL_DATASET_EXAMPLES
    untried = untried_option(fits, cluster, full, plan.workers, plan.zero_stage) if small else None
    return rules_of_thumb(ranked, full, untried)


def _rate_rules(fits: Fits, sizes: WorkloadRecord, noise: Estimate | None) -> tuple[RateRule, ...]:
    """Hold the rules against the measurement, where more than one batch reached the target."""
    if fits.convergence is None or len(fits.reached) < 2:
        return ()
    reference = (sizes.reference_global_batch, sizes.reference_learning_rate)
    clear = noise.value if noise is not None and noise.is_identified else None
    optimizer = optimizer_of([sizes])
    return rate_rules(fits.convergence.rates, fits.reached, reference, optimizer, clear)


def _noise_notes(noise: NoiseFit) -> list[str]:
    """Say which noise scales are not known, and why."""
    if noise.steps + noise.left_out_steps == 0:
        return ["gradient noise scale: not measured"]
    hidden = [name for name, scale in noise.groups.items() if scale is None]
    notes = [f"gradient noise scale of {name}: not identifiable" for name in hidden]
    if noise.scale is None:
        notes = [f"gradient noise scale: not identifiable from {noise.steps} steps, |G|^2 may be 0"]
    if noise.left_out_steps:
        notes.append(
            f"gradient noise: {noise.left_out_steps} steps left out, their gradients were not finite"
        )
    return notes


def _unknown_growth(rates: RateFit | None) -> str:
    return "; ".join(rates.unidentified()) if rates else "no trial reached the target"


def _findings(records: Sequence[Record], fits: Fits, sizes: WorkloadRecord) -> Findings:
    noise = fit_noise(r for r in records if isinstance(r, NoiseRecord))
    rates = fits.convergence.rates if fits.convergence else None
    steps = fits.convergence.steps if fits.convergence else None
    exponent = rates.exponent() if rates else None
    critical = steps.critical_batch() if steps else None
    if fits.branching is not None and critical is None:
        critical = fits.branching.critical_batch
    predictions = [r.prediction for r in records if isinstance(r, PredictionRecord)]
    notes = [
        f"memory {'is uncertain' if prediction.curves else 'could not be predicted, only measured'}: {note}"
        for prediction in predictions
        for note in prediction.notes
    ]
    notes += _noise_notes(noise)
    if fits.branching is not None:
        notes += branching_notes(fits.branching)
    elif critical is None:
        notes.append("critical batch: not identifiable, examples to target have not bent over these batches")
    if exponent is None:
        notes.append(f"learning-rate exponent: {_unknown_growth(rates)}")
    notes += [
        f"global batch {batch}: no learning rate tried reached the target"
        for batch in fits.tried
        if batch not in fits.reached
    ]
    return Findings(
        train_examples=sizes.train_examples,
        parameters=sizes.parameters,
        noise_scale=noise.scale,
        noise_scale_groups={name: scale for name, scale in noise.groups.items() if scale is not None},
        noise_scale_preconditioned=noise.preconditioned,
        critical_batch=critical,
        learning_rate_exponent=exponent,
        learning_rate_saturates=rates.saturates() if rates else None,
        learning_rate_rules=_rate_rules(fits, sizes, noise.scale),
        step_overhead_s=fits.step_time.overhead_s if fits.step_time else None,
        seconds_per_example=fits.step_time.per_example_s if fits.step_time else None,
        powers_of_two=fit_powers(r for r in records if isinstance(r, PowersRecord)),
        notes=tuple(notes),
    )
