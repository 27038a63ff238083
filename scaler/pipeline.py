"""tune() and compare_regimes(): the whole flow on one page."""

import contextlib
from collections.abc import Iterator

from scaler.answers import decide_run, write_answer
from scaler.decide.config import BatchConfig
from scaler.decide.confirm import with_confirmation
from scaler.errors import BadInput, Interrupted, ScalerError
from scaler.fit.regimes import RegimesFit, fit_regimes
from scaler.launch import LaunchConfig
from scaler.measure.evidence import Evidence, Notice, Progress
from scaler.measure.stages import confirm, measure, measure_plans
from scaler.measure.warmup import measure_warmup
from scaler.probe.regimes import RegimesRequest, probe_regimes
from scaler.records import RegimesRecord
from scaler.report.regime_answer import render_regimes
from scaler.runs import RunFolder
from scaler.runtime.protocol import Runtime, Task
from scaler.workload import Workload, load_workload

REGIMES_BUDGET_S = 60.0


def tune(
    launch: LaunchConfig,
    *,
    workload: Workload | None = None,
    runtime: Runtime | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> BatchConfig:
    """Measure, fit, decide, report; then train the answer once and put predicted beside observed.

    Everything is written to `launch.storage_path`: launch.yaml, records.jsonl, batch-config.yaml and
    report.html. `workload` replaces the address in the launch; `runtime` the one the launch names.

    Raises:
        BadInput: the workload, the cluster or the out folder is wrong.
        NothingFeasible: no batch configuration fits.
        ClusterFailed: the workers or the storage are lost; `resume` continues.
        Interrupted: stopped by the keyboard; the answer so far is written.
    """
    workload = workload or load_workload(launch.workload)
    with _opened_run(launch, resume, force) as run:
        try:
            with runtime or open_runtime(launch, workload) as ranks:
                evidence = Evidence(ranks, run, launch.budget_s, progress, notice)
                measure(evidence, workload, launch, ranks.workers)
                config = decide_run(run, launch.cluster, launch)
                write_answer(run, config)
                measure_warmup(evidence, workload, config.chosen)
                config = decide_run(run, launch.cluster, launch, launch.sweep)
                if config.sweep and launch.cluster.kind == "mock":
                    plans = [point.plan for point in config.sweep if point.plan is not None]
                    measure_plans(evidence, plans)
                    config = decide_run(run, launch.cluster, launch, launch.sweep)
                confirm(Evidence(ranks, run, None, progress), workload, config.chosen)
        except KeyboardInterrupt:
            raise _interrupted(run, launch) from None
        config = with_confirmation(config, run.records())
        write_answer(run, config)
    return config


def compare_regimes(
    launch: LaunchConfig,
    *,
    workload: Workload | None = None,
    runtime: Runtime | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> RegimesFit:
    """Train with batch size 1, mini-batches and the full batch, and show them side by side.

    launch.yaml, records.jsonl and regimes.html are written to `launch.storage_path`. It takes about the
    launch's budget, by default a minute.

    Raises:
        BadInput: the workload, the cluster or the out folder is wrong, or the budget too short.
        ClusterFailed: the workers or the storage are lost.
    """
    workload = workload or load_workload(launch.workload)
    task = Task(probe_regimes, RegimesRequest(launch.budget_s or REGIMES_BUDGET_S))
    with _opened_run(launch, resume, force) as run:
        with runtime or open_runtime(launch, workload) as ranks:
            (record,) = Evidence(ranks, run, None, progress).ask("regimes", [task])
        assert isinstance(record, RegimesRecord)
        run.write(run.regimes_report, render_regimes(record))
    return fit_regimes(record)


def open_runtime(launch: LaunchConfig, workload: Workload) -> Runtime:
    """Open the runtime that the launch names."""
    if launch.runtime == "local":
        from scaler.runtime.local import LocalRuntime

        return LocalRuntime(launch.cluster, workload)
    from scaler.runtime.ray import RayRuntime

    return RayRuntime(launch.cluster, workload, launch.address, launch.env)


@contextlib.contextmanager
def _opened_run(launch: LaunchConfig, resume: bool, force: bool) -> Iterator[RunFolder]:
    """Open the launch's run folder, which can then be written to; a failure leaves its trace there."""
    path = launch.storage_path
    with RunFolder.open(path) if resume else RunFolder.create(path, force) as run:
        if resume:
            _check_question(run, launch)
            run.drop_cut_line()
        else:
            run.write(run.launch, launch.to_yaml())
        run.require_storage()
        try:
            yield run
        except ScalerError as error:
            if notes := getattr(error, "__notes__", []):
                run.write(run.fault_log, "\n".join(notes))
            raise


def _check_question(run: RunFolder, launch: LaunchConfig) -> None:
    """Refuse to continue a run that asks something else."""
    before = LaunchConfig.load(run.launch)
    # What does not change a question may change on resuming.
    free = {"budget", "address", "env", "storage_path", "runtime", "sweep", "objective", "limits"}
    changed = [
        name
        for name in LaunchConfig.model_fields
        if name not in free and getattr(before, name) != getattr(launch, name)
    ]
    if changed:
        raise BadInput(
            f"{launch.storage_path} was made with another {', '.join(changed)}",
            hint=f"resume with what {run.where(run.launch)} says, or use another out folder",
        )


def _interrupted(run: RunFolder, launch: LaunchConfig) -> Interrupted:
    records = run.records()
    try:
        write_answer(run, decide_run(run, launch.cluster, launch))
        state = f"the answer from {len(records)} records so far is in {run.where(run.batch_config)}"
    except ScalerError:
        state = f"{len(records)} records are kept, too few for an answer"
    return Interrupted(f"interrupted: {state}", hint="the same command with --resume continues")
