"""A plan for every worker count that keeps the global batch exactly, so that training goes on unchanged."""

from collections.abc import Iterable

from scaler.cluster import Cluster
from scaler.decide.choose import Option
from scaler.decide.config import Answer, KeptBatch
from scaler.decide.plans import split_batch
from scaler.errors import BadInput, NothingFeasible
from scaler.fit.step_time import shape_of


def kept_batches(chosen: Option, cluster: Cluster, answers: Iterable[Answer]) -> tuple[KeptBatch, ...]:
    """Spread the chosen global batch over every worker count that has an answer; none for a single count.

    Rate, warm-up and steps stay as they are; entries are unequal where the batch does not divide.
    """
    answers = list(answers)
    if len(answers) < 2 or chosen.examples is None or chosen.fits.step_time is None:
        return ()
    kept = []
    for own in answers:
        workers, batch = own.plan.workers, chosen.plan.global_batch
        try:
            plan = split_batch(batch, workers, chosen.fits.memory, cluster, chosen.plan.zero_stage)
        except (BadInput, NothingFeasible) as error:
            kept.append(KeptBatch(workers=workers, infeasible=error.message))
            continue
        step_time_s = chosen.fits.step_time.predict(shape_of(plan, cluster.nodes_of(workers)))
        time_s = Option(chosen.fits, plan, chosen.learning_rate, step_time_s, chosen.examples).time_s
        best = own.time_to_target_s
        ratio = time_s.value / best.value if time_s is not None and best is not None else None
        kept.append(
            KeptBatch(
                workers=workers, plan=plan, step_time_s=step_time_s, time_to_target_s=time_s, time_ratio=ratio
            )
        )
    return tuple(kept)
