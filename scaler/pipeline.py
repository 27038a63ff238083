"""tune(), recommend() and compare_regimes(): the whole flow on one page."""

from collections.abc import Sequence
from pathlib import Path

from scaler.cluster import Cluster
from scaler.decide.config import BatchConfig
from scaler.decide.confirm import with_confirmation
from scaler.decide.decide import decide
from scaler.decide.limits import Limits
from scaler.decide.sweep import with_sweep
from scaler.errors import BadInput, Interrupted, ScalerError
from scaler.fit.regimes import RegimesFit, fit_regimes
from scaler.launch import LaunchConfig
from scaler.measure.evidence import Evidence, Progress
from scaler.measure.stages import confirm, measure, measure_plans
from scaler.measure.warmup import measure_warmup
from scaler.probe.regimes import RegimesRequest, probe_regimes
from scaler.records import RegimesRecord
from scaler.report.html import render
from scaler.report.regime_answer import render_regimes
from scaler.runs import RunFolder
from scaler.runtime.protocol import Runtime, Task
from scaler.schema import write_atomically
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
) -> BatchConfig:
    """Measure, fit, decide, report; then train the answer once and put predicted beside observed.

    Everything is written to `launch.storage_path`: launch.yaml, records.jsonl, batch-config.yaml and
    report.html. `workload` replaces the address in the launch; `runtime` the one the launch names.

    Raises:
        BadInput: the workload, the cluster or the out folder is wrong.
        NothingFeasible: no batch configuration fits.
        ClusterFailed: the workers are lost; `resume` continues.
        Interrupted: stopped by the keyboard; the answer so far is written.
    """
    workload = workload or load_workload(launch.workload)
    run = _open_run(launch, resume, force)
    try:
        with runtime or open_runtime(launch, workload) as ranks:
            evidence = Evidence(ranks, run, launch.budget_s, progress)
            measure(evidence, workload, launch, ranks.workers)
            config = _decide(run, launch.cluster, launch, launch.sweep)
            _write(run, config)
            measure_warmup(evidence, workload, config.chosen)
            config = _decide(run, launch.cluster, launch, launch.sweep)
            if config.sweep and launch.cluster.kind == "mock":
                plans = [point.plan for point in config.sweep if point.plan is not None]
                measure_plans(evidence, plans)
                config = _decide(run, launch.cluster, launch, launch.sweep)
            confirm(Evidence(ranks, run, None, progress), workload, config.chosen)
    except KeyboardInterrupt:
        raise _interrupted(run, launch) from None
    except ScalerError as error:
        _keep_trace(run, error)
        raise
    config = with_confirmation(config, run.records())
    _write(run, config)
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
        ClusterFailed: the workers are lost.
    """
    workload = workload or load_workload(launch.workload)
    run = _open_run(launch, resume, force)
    task = Task(probe_regimes, RegimesRequest(launch.budget_s or REGIMES_BUDGET_S))
    try:
        with runtime or open_runtime(launch, workload) as ranks:
            (record,) = Evidence(ranks, run, None, progress).ask("regimes", [task])
    except ScalerError as error:
        _keep_trace(run, error)
        raise
    assert isinstance(record, RegimesRecord)
    write_atomically(run.regimes_report, render_regimes(record))
    return fit_regimes(record)


def recommend(
    run: str | Path,
    cluster: Cluster | None = None,
    sweep: Sequence[int] | None = None,
    objective: str | None = None,
    limits: Limits | None = None,
) -> BatchConfig:
    """Decide again from what a run measured, for its own cluster or another.

    Step times are scaled to other devices of the same kind by the figures in the cluster files. `sweep`:
    memories of one device, in bytes, to decide for as well; by default the run's, as `objective` and
    `limits`.

    Raises:
        BadInput: there is no run, or the cluster's devices are of another kind or cannot be compared.
        NothingFeasible: no worker count of the cluster has an answer, or none within the limits.
    """
    folder = RunFolder.open(run)
    launch = LaunchConfig.load(folder.launch)
    cluster = cluster or launch.cluster
    if cluster.kind != launch.cluster.kind:
        raise BadInput(
            f"the run was measured on {launch.cluster.kind} devices and {cluster.name} has {cluster.kind} "
            "devices: step times do not carry over",
            hint=f"`scaler tune {launch.workload} --cluster FILE --out OTHER` measures there",
        )
    launch = launch.model_copy(
        update={"objective": objective or launch.objective, "limits": limits or launch.limits}
    )
    return _decide(folder, cluster, launch, launch.sweep if sweep is None else sweep)


def run_cluster(run: str | Path) -> Cluster:
    """Give the cluster that a run was measured on.

    Raises:
        BadInput: there is no run.
    """
    return LaunchConfig.load(RunFolder.open(run).launch).cluster


def report(run: str | Path) -> Path:
    """Write the pages of a run again, report.html and regimes.html; returns the path of the main one.

    Raises:
        BadInput: there is no run, or nothing was measured yet.
    """
    folder = RunFolder.open(run)
    records = folder.records()
    compared = [record for record in records if isinstance(record, RegimesRecord)]
    if compared:
        write_atomically(folder.regimes_report, render_regimes(compared[-1]))
    if compared and len(compared) == len(records):
        return folder.regimes_report
    _write(folder, recommend(run))
    return folder.report


def open_runtime(launch: LaunchConfig, workload: Workload) -> Runtime:
    """Open the runtime that the launch names."""
    if launch.runtime == "local":
        from scaler.runtime.local import LocalRuntime

        return LocalRuntime(launch.cluster, workload)
    from scaler.runtime.ray import RayRuntime

    return RayRuntime(launch.cluster, workload, launch.address, launch.env)


def _open_run(launch: LaunchConfig, resume: bool, force: bool) -> RunFolder:
    if not resume:
        run = RunFolder.create(launch.storage_path, force)
        write_atomically(run.launch, launch.to_yaml())
        return run
    run = RunFolder.open(launch.storage_path)
    before = LaunchConfig.load(run.launch)
    # What does not change a question may change on resuming.
    free = {"budget_s", "address", "env", "storage_path", "runtime", "sweep", "objective", "limits"}
    changed = [
        name
        for name in LaunchConfig.model_fields
        if name not in free and getattr(before, name) != getattr(launch, name)
    ]
    if changed:
        raise BadInput(
            f"{launch.storage_path} was made with another {', '.join(changed)}",
            hint=f"resume with what {run.launch} says, or use another out folder",
        )
    run.drop_cut_line()
    return run


def _decide(run: RunFolder, cluster: Cluster, launch: LaunchConfig, sweep: Sequence[int] = ()) -> BatchConfig:
    records = run.records()
    config = decide(
        records,
        cluster,
        launch.zero_stage,
        launch.plan,
        launch.objective,
        launch.limits,
        measured_on=launch.cluster,
    )
    return with_sweep(with_confirmation(config, records), records, sweep, launch.zero_stage)


def _write(run: RunFolder, config: BatchConfig) -> None:
    records = run.records()
    write_atomically(run.batch_config, config.to_yaml())
    write_atomically(run.report, render(config, records))


def _keep_trace(run: RunFolder, error: ScalerError) -> None:
    if notes := getattr(error, "__notes__", []):
        run.fault_log.write_text("\n".join(notes), encoding="utf-8")


def _interrupted(run: RunFolder, launch: LaunchConfig) -> Interrupted:
    records = run.records()
    try:
        _write(run, _decide(run, launch.cluster, launch))
        state = f"the answer from {len(records)} records so far is in {run.batch_config}"
    except ScalerError:
        state = f"{len(records)} records are kept, too few for an answer"
    return Interrupted(f"interrupted: {state}", hint="the same command with --resume continues")
