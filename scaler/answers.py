"""The answer of a run folder: decided, written and reported from its records alone, without torch."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from scaler.cluster import Cluster
from scaler.decide.config import BatchConfig
from scaler.decide.confirm import with_confirmation
from scaler.decide.decide import decide
from scaler.decide.limits import Limits
from scaler.decide.sweep import with_sweep
from scaler.errors import BadInput
from scaler.launch import LaunchConfig
from scaler.records import RegimesRecord
from scaler.report.html import render
from scaler.report.regime_answer import render_regimes
from scaler.runs import RunFolder


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
    with RunFolder.open(run) as folder:
        return decide_again(folder, cluster, sweep, objective, limits)


def decide_again(
    run: RunFolder,
    cluster: Cluster | None = None,
    sweep: Sequence[int] | None = None,
    objective: str | None = None,
    limits: Limits | None = None,
) -> BatchConfig:
    """Do what `recommend` does, of an open run folder."""
    launch = LaunchConfig.load(run.launch)
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
    return decide_run(run, cluster, launch, launch.sweep if sweep is None else sweep)


def report(run: str | Path) -> Path | str:
    """Write the pages of a run again, report.html and regimes.html; returns the path or URL of the main one.

    Raises:
        BadInput: there is no run, or nothing was measured yet.
        ClusterFailed: the storage of the run does not answer.
    """
    with RunFolder.open(run) as folder:
        records = folder.records()
        compared = [record for record in records if isinstance(record, RegimesRecord)]
        if compared:
            folder.write(folder.regimes_report, render_regimes(compared[-1]))
        if compared and len(compared) == len(records):
            return folder.where(folder.regimes_report)
        write_answer(folder, decide_again(folder))
        return folder.where(folder.report)


def decide_run(
    run: RunFolder, cluster: Cluster, launch: LaunchConfig, sweep: Sequence[int] = ()
) -> BatchConfig:
    """Decide from a run's records, for what its launch asks."""
    records = run.records()
    decide_for = partial(
        decide,
        records,
        zero_stage=launch.compared_stage,
        objective=launch.objective,
        limits=launch.limits,
        measured_on=launch.cluster,
    )
    config = with_confirmation(decide_for(cluster, pinned=launch.plan), records)
    return with_sweep(config, decide_for, sweep)


def write_answer(run: RunFolder, config: BatchConfig) -> None:
    """Write batch-config.yaml and report.html."""
    records = run.records()
    run.write(run.batch_config, config.to_yaml())
    run.write(run.report, render(config, records))
