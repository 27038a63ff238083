"""Which questions to ask: memory, throughput, noise, convergence, in that order."""

import contextlib
from collections.abc import Sequence
from functools import partial

from scaler.batch import BatchPlan, candidates
from scaler.cluster import Cluster
from scaler.decide.config import Answer
from scaler.decide.fits import workload_record
from scaler.decide.plans import feasible_plan, largest_passes
from scaler.errors import BadInput, NothingFeasible
from scaler.fit.memory import MemoryFits, memory_for
from scaler.fit.powers import fit_powers
from scaler.fit.speeds import with_measured_speeds
from scaler.launch import LaunchConfig
from scaler.measure.branching import measure_branches, start_of, try_reference, users_start
from scaler.measure.budget import expected_cost, with_run_share
from scaler.measure.evidence import Evidence, plan_task
from scaler.measure.learning_rates import search_learning_rates, trial_limit
from scaler.measure.memory import measure_memory, roomier_stages
from scaler.measure.throughput import measure_throughput
from scaler.probe.convergence import ConvergenceRequest, probe_confirmation
from scaler.probe.memory import MemoryRequest, probe_memory
from scaler.probe.noise import NoiseRequest, probe_noise
from scaler.probe.powers import PowersRequest, probe_powers
from scaler.probe.throughput import ThroughputRequest, probe_throughput
from scaler.probe.workload import WorkloadRequest, probe_workload
from scaler.records import CONFIRMING_SEED, PowersRecord, ThroughputRecord, WorkloadRecord
from scaler.runtime.protocol import Task
from scaler.workload import Workload

_LAUNCHES = 2  # fresh runs of a plan differ by more than steps within one
_SPEED_RUNS = 2  # the second with entries near those that are used
_NOISE_STEPS = 100
_NOISE_PASSES = 8
_SMALLEST_POWER, _LARGEST_POWER = 16, 512
_POWERS_SHARE = 0.05  # of the budget left, beyond which powers of two are not looked into
_NEAR = 0.1


def measure(evidence: Evidence, workload: Workload, launch: LaunchConfig, workers: int) -> None:
    """Take all evidence that the answer needs, on up to `workers` ranks.

    Raises:
        BadInput: the data is smaller than the batch.
        NothingFeasible: the model does not fit the device at micro-batch 1.
    """
    sizes = ask_sizes(evidence)
    evidence.say(expected_cost(launch, workers))
    path = launch.from_checkpoint
    start = users_start(evidence, path) if path is not None else None
    counts = [count for count in launch.cluster.worker_counts if count <= workers]
    batches = global_batches(workload, launch, sizes)
    launch, fits = first_stage(evidence, launch, sizes, counts, batches)
    launch = with_speeds(evidence, launch, fits, batches)
    grain = measure_powers(evidence, fits, sizes)
    if launch.plan is None:
        batches = with_full_devices(batches, launch.cluster, fits, counts, launch.stage, grain)
    times = measure_throughput(evidence, launch, fits, counts, batches)
    if launch.zero_stage == "auto":
        for sharded in roomier_stages(evidence, launch, sizes, batches, fits):
            own = measure_memory(evidence, sharded, sizes, counts[-1:], batches)
            measure_throughput(evidence, sharded, own, counts[-1:], batches)
    launch = with_run_share(evidence, workload, launch, times)
    measure_noise(evidence, workload, fits, counts[-1])
    spread = partial(trial_plan, workload, launch, sizes, fits, workers=counts[-1])
    if path is None:
        first = try_reference(evidence, workload, launch, sizes, spread(workload.reference.global_batch))
        if first is None or first.stop != "deadline":
            search_learning_rates(
                evidence,
                workload,
                launch.seeds,
                sizes,
                {batch: spread(batch) for batch in batches},
                times,
                launch.objective,
            )
        start = start_of(evidence, first)
    if start is not None:
        measure_branches(evidence, workload, launch, sizes, start, spread, counts[-1])


def first_stage(
    evidence: Evidence,
    launch: LaunchConfig,
    sizes: WorkloadRecord,
    counts: Sequence[int],
    batches: Sequence[int],
) -> tuple[LaunchConfig, MemoryFits]:
    """Measure memory at the launch's ZeRO stage; of `auto`, at the first that fits.

    Raises:
        NothingFeasible: micro-batch 1 does not fit.
    """
    if launch.zero_stage == "auto" and counts[-1] > 1:
        for tried in (launch, *(launch.model_copy(update={"zero_stage": stage}) for stage in (1, 2))):
            with contextlib.suppress(NothingFeasible):
                return tried, measure_memory(evidence, tried, sizes, counts, batches)
        launch = launch.model_copy(update={"zero_stage": 3})
    return launch, measure_memory(evidence, launch, sizes, counts, batches)


def ask_sizes(evidence: Evidence) -> WorkloadRecord:
    """Ask for the sizes of data and model.

    Raises:
        WorkloadError, BadInput: a function of the workload raises, or returns what it should not.
    """
    for record in evidence.ask("workload", [Task(probe_workload, WorkloadRequest())]):
        if isinstance(record, WorkloadRecord):
            return record
    raise BadInput("the budget ended before anything was measured", hint="give a longer --budget")


def global_batches(workload: Workload, launch: LaunchConfig, sizes: WorkloadRecord) -> list[int]:
    """List the global batches to try: the pinned plan's, or the candidates for this data set.

    Raises:
        BadInput: the data is smaller than the batch.
    """
    if launch.plan is None:
        return candidates(
            sizes.train_examples, workload.reference.global_batch, smallest=launch.cluster.min_workers
        )
    if launch.plan.global_batch > sizes.train_examples:
        raise BadInput(
            f"the plan takes {launch.plan.arithmetic()} examples a step, and the training data has "
            f"{sizes.train_examples}",
            hint="pin a smaller plan, or use more data",
        )
    return [launch.plan.global_batch]


def with_speeds(
    evidence: Evidence, launch: LaunchConfig, fits: MemoryFits, batches: Sequence[int]
) -> LaunchConfig:
    """Time unequal devices on one large batch, then on it divided anew: passes are to end together."""
    runs: list[ThroughputRecord] = []
    for seed in range(_SPEED_RUNS if launch.cluster.devices and launch.plan is None else 0):
        cluster = launch.cluster
        plans = [
            feasible_plan(b, cluster.max_workers, fits, cluster, launch.stage) for b in reversed(batches)
        ]
        plan = next((plan for plan in plans if plan is not None), None)
        if plan is None:
            break
        found = evidence.ask("throughput", [plan_task(probe_throughput, ThroughputRequest(plan, seed=seed))])
        runs = [record for record in found if isinstance(record, ThroughputRecord)] or runs
        launch = launch.model_copy(update={"cluster": with_measured_speeds(cluster, runs)})
    return launch


def measure_powers(evidence: Evidence, fits: MemoryFits, sizes: WorkloadRecord) -> int:
    """Hold a power of two against its neighbours on one worker; give what sizes had better be multiples of.

    Without room for twice the smallest power of interest nothing is asked.
    """
    fit = memory_for(fits, 1)
    most = min(fit.largest_measured, sizes.train_examples) if fit is not None else 0
    power = min(2 ** max(0, (most // 2).bit_length() - 1), _LARGEST_POWER)
    request = PowersRequest(power)
    task = Task(probe_powers, request)
    dear = request.time_limit_s > _POWERS_SHARE * evidence.left_s() and not evidence.knows(task)
    if power < _SMALLEST_POWER or dear:
        return 1
    found = evidence.ask("throughput", [task])
    judged = fit_powers(record for record in found if isinstance(record, PowersRecord))
    return judged.grain if judged is not None else 1


def with_full_devices(
    batches: Sequence[int],
    cluster: Cluster,
    fits: MemoryFits,
    counts: Sequence[int],
    zero_stage: int,
    grain: int,
) -> list[int]:
    """Add the global batches that fill the devices in one pass, of the fewest and the most workers.

    On equal devices their micro-batches are multiples of `grain`. What lies within 10% of another candidate
    adds nothing.
    """
    found = list(batches)
    for workers in (counts[0], counts[-1]):
        limits = largest_passes(workers, fits, cluster, zero_stage)
        full = sum(limit // grain * grain for limit in limits)
        near = any(abs(full - batch) < _NEAR * batch for batch in found)
        if not near and min(batches) < full < max(batches):
            found.append(full)
    return sorted(found)


def measure_plans(evidence: Evidence, plans: Sequence[BatchPlan]) -> None:
    """Measure peak and fresh launches of plans that a sweep chose, so that it rests on measurements."""
    tasks = [plan_task(probe_memory, MemoryRequest(plan)) for plan in dict.fromkeys(plans)]
    for plan in dict.fromkeys(plans):
        tasks += [
            plan_task(probe_throughput, ThroughputRequest(plan, seed=launched))
            for launched in range(_LAUNCHES)
        ]
    for task in tasks:
        evidence.ask("sweep", [task], expected=len(tasks))


def measure_noise(evidence: Evidence, workload: Workload, fits: MemoryFits, workers: int) -> None:
    """Measure gradient noise at the reference, unsharded: on all workers, or in passes on one."""
    fit = memory_for(fits, workers)
    if fit is None:
        return
    batch = workload.reference.global_batch
    # More passes tell more; a pass keeps four examples, for layers that normalise over them.
    accumulation = 1 if workers > 1 else max(2, min(_NOISE_PASSES, batch // 4))
    micro_batch = min(batch // (workers * accumulation), fit.largest_measured)
    if micro_batch >= 1:
        plan = BatchPlan.equal(micro_batch, accumulation, workers)
        request = NoiseRequest(plan, workload.reference.learning_rate, _NOISE_STEPS)
        evidence.ask("noise", [plan_task(probe_noise, request)])


def trial_plan(
    workload: Workload,
    launch: LaunchConfig,
    sizes: WorkloadRecord,
    fits: MemoryFits,
    batch: int,
    workers: int,
) -> BatchPlan | None:
    """Spread a convergence trial over the smallest set of workers that fits.

    Where the spread itself matters (batch statistics, or the workload says so) that is the real plan.
    """
    if workload.spread_matters or sizes.batch_statistics:
        return launch.plan or feasible_plan(batch, workers, fits, launch.cluster, launch.stage)
    single = feasible_plan(batch, 1, fits, launch.cluster, 0)
    return single or feasible_plan(batch, workers, fits, launch.cluster, launch.stage)


def confirm(evidence: Evidence, workload: Workload, answer: Answer) -> None:
    """Train the chosen configuration once, on its real workers, with a seed that no trial had.

    Where no run to the target fits the budget its peak and the step time of one launch are observed.
    """
    if answer.bound_by == "no evidence":
        return
    plan = answer.plan
    if answer.time_to_target_s is None:
        tried = plan_task(probe_throughput, ThroughputRequest(plan, seed=CONFIRMING_SEED))
    else:
        limit = trial_limit(workload, workload_record(evidence.records))
        tried = plan_task(
            probe_confirmation,
            ConvergenceRequest(
                plan, answer.learning_rate, answer.warmup_examples, limit, seed=CONFIRMING_SEED
            ),
        )
    for task in (plan_task(probe_memory, MemoryRequest(plan, seed=CONFIRMING_SEED)), tried):
        evidence.ask("confirmation", [task], expected=2)
