"""What the fits say of the workload, whatever the cluster."""

from collections.abc import Sequence

from scaler.decide.config import Findings
from scaler.decide.fits import Fits
from scaler.decide.long_runs import branching_notes
from scaler.fit.noise import NoiseFit, fit_noise
from scaler.fit.optimizer import optimizer_of
from scaler.fit.powers import fit_powers
from scaler.fit.rate_fit import RateFit
from scaler.fit.rate_rules import RateRule, rate_rules
from scaler.records import NoiseRecord, PowersRecord, PredictionRecord, Record, WorkloadRecord
from scaler.stats import Estimate


def findings(records: Sequence[Record], fits: Fits, sizes: WorkloadRecord) -> Findings:
    """Gather what the fits say, and note what could not be measured or identified."""
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
        max_grad_norm=sizes.max_grad_norm,
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
