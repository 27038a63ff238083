"""What each command does. Data goes to stdout, everything else to stderr."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from scaler.cluster import Cluster
from scaler.decide.config import BatchConfig
from scaler.decide.limits import Limits
from scaler.decide.sweep import parse_sweep
from scaler.errors import BadInput
from scaler.launch import LaunchConfig
from scaler.report.progress import TerminalProgress
from scaler.runs import RunFolder
from scaler.schema import parse, write_atomically
from scaler.storage import inside, is_url


def plan(options: argparse.Namespace) -> None:
    """Print what fits in memory."""
    from scaler.plan import nothing_fits
    from scaler.plan import plan as plan_memory
    from scaler.report.bill import print_plans
    from scaler.workload import load_workload

    if bad := [size for size in options.micro_batch if size < 1]:
        raise BadInput(f"--micro-batch {bad[0]}", hint="a micro-batch is a whole number from 1 on")
    cluster = _limited(Cluster.load(options.cluster), options)
    with TerminalProgress() as progress:
        found = plan_memory(
            load_workload(options.workload),
            cluster,
            options.micro_batch,
            options.accumulate,
            options.offload_optimizer,
            partial(progress, "memory"),
        )
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        print_plans(found)
    if error := nothing_fits(found):
        raise error
    print(f"\nnext: scaler tune {options.workload} --cluster {options.cluster} measures it", file=sys.stderr)


def tune(options: argparse.Namespace) -> None:
    """Measure, fit, decide and report."""
    launch = parse(
        LaunchConfig,
        {
            "workload": options.workload,
            "cluster": _limited(Cluster.load(options.cluster), options),
            "storage_path": options.out,
            "budget": options.budget,
            "from_checkpoint": options.from_checkpoint and str(Path(options.from_checkpoint).absolute()),
            "zero_stage": options.zero,
            "objective": options.objective,
            "limits": _limits(options),
            "sweep": parse_sweep(options.sweep),
            "seeds": options.seeds,
            "runtime": "local" if options.local else "ray",
            "address": options.address,
        },
        "command line",
    )
    run_launch(launch, resume=options.resume, force=options.force, as_json=options.json)


def run_launch(
    launch: LaunchConfig, resume: bool = False, force: bool = False, as_json: bool = False
) -> None:
    """Tune with progress on stderr, print the answer, and name the report and the next command."""
    from scaler.pipeline import tune as tune_launch

    with TerminalProgress() as progress:
        config = tune_launch(launch, resume=resume, force=force, progress=progress, notice=progress.notice)
    _show_run(config, launch.storage_path, as_json)


def submit(options: argparse.Namespace) -> int:
    """Tune as a job on a Ray cluster; gives the job's exit code."""
    from scaler.submit.submit import submit as submit_launch

    done = submit_launch(
        options.launch,
        options.address,
        out=options.out,
        resume=options.resume,
        force=options.force,
        job=options.follow,
    )
    if done.config is not None and done.run is not None:
        _show_run(done.config, done.run, options.json)
    elif done.run is not None:
        print(f"\nrun folder: {done.run}", file=sys.stderr)
    return done.exit_code


def _show_run(config: BatchConfig, run: str, as_json: bool) -> None:
    _print([config], as_json)
    print(f"\nreport: {inside(run, 'report.html')}", file=sys.stderr)
    print(f"configuration: {inside(run, 'batch-config.yaml')}", file=sys.stderr)
    print(f"next: scaler explain {quote(run)}", file=sys.stderr)


def recommend(options: argparse.Namespace) -> None:
    """Decide again from a run, for its own cluster or each of others, which get a file each."""
    _print(_decided(options), options.json)
    print(f"\nnext: scaler explain {quote(options.folder)}", file=sys.stderr)


def explain(options: argparse.Namespace) -> None:
    """Say why the answer is what it is, and what would change it."""
    from scaler.report.explain import explanation, print_explanation

    found = _decided(options)
    if options.json:
        _print_json([explanation(config) for config in found])
    else:
        for config in found:
            print_explanation(config)
    print(f"\nnext: scaler recommend {quote(options.folder)} --cluster FILE", file=sys.stderr)


def regimes(options: argparse.Namespace) -> None:
    """Train with batch size 1, mini-batches and the full batch, and show them side by side."""
    from scaler.pipeline import compare_regimes
    from scaler.report.regime_answer import print_regimes, regimes_data

    here = Cluster(name="this process", workers=(1, 1), kind="cpu")
    launch = parse(
        LaunchConfig,
        {
            "workload": options.workload,
            "cluster": Cluster.load(options.cluster) if options.cluster else here,
            "storage_path": options.out,
            "budget": options.budget,
            "runtime": "ray" if options.cluster and not options.local else "local",
            "address": options.address,
        },
        "command line",
    )
    with TerminalProgress() as progress:
        found = compare_regimes(launch, resume=options.resume, force=options.force, progress=progress)
    if options.json:
        print(json.dumps(regimes_data(found), indent=2))
    else:
        print_regimes(found)
    print(f"\nreport: {inside(options.out, 'regimes.html')}", file=sys.stderr)
    cluster = options.cluster or "FILE"
    print(f"next: scaler tune {options.workload} --cluster {cluster}", file=sys.stderr)


def report(options: argparse.Namespace) -> None:
    """Write a run's page again, and its event files."""
    from scaler.answers import report as write_report

    print(write_report(options.folder))
    if options.tensorboard is not None:
        from scaler.report.tensorboard import write_events

        with RunFolder.open(options.folder) as run:
            write_events(BatchConfig.load(run.path), run.records(), options.tensorboard)
        print(options.tensorboard)
        print(f"\nnext: tensorboard --logdir {options.tensorboard}", file=sys.stderr)


def export(options: argparse.Namespace) -> None:
    """Write an answer in the form of another tool."""
    from scaler.export.targets import export as export_to
    from scaler.export.targets import find_target

    target = find_target(options.to)
    config = BatchConfig.load(options.folder)
    text = export_to(
        config, options.to, options.workers, _address(options.folder, config), options.script, options.image
    )
    if options.out is None:
        print(text, end="")
    else:
        _write(Path(options.out), text)
    use = target.use.format(file=options.out or "FILE", script=options.script)
    print(f"\nnext: {use}", file=sys.stderr)


def fit_step_time(options: argparse.Namespace) -> None:
    """Predict step times from a table."""
    from scaler.fit.bring import fit_step_time_table
    from scaler.report.brought import print_step_times

    _show_brought(fit_step_time_table(options.known, options.at), options.json, print_step_times)


def fit_steps(options: argparse.Namespace) -> None:
    """Predict examples to target from a table."""
    from scaler.fit.bring_steps import fit_steps_table
    from scaler.report.brought import print_steps

    _show_brought(fit_steps_table(options.known, options.at), options.json, print_steps)


def fit_learning_rate(options: argparse.Namespace) -> None:
    """Predict learning rates from a table."""
    from scaler.fit.bring_rates import fit_learning_rate_table
    from scaler.report.brought import print_learning_rates

    _show_brought(fit_learning_rate_table(options.known, options.at), options.json, print_learning_rates)


def _decided(options: argparse.Namespace) -> list[BatchConfig]:
    """Decide for each cluster asked for, and write a file for each; for the run's own without a file."""
    from scaler.answers import decide_again

    clusters = [Cluster.load(path) for path in options.cluster or []]
    names = [cluster.name for cluster in clusters]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(
            f"two clusters are named {', '.join(twice)}: their answers would overwrite each other",
            hint="give one of them another `name`",
        )
    given, sweep, found = _limits(options), parse_sweep(options.sweep), list[BatchConfig]()
    limits = parse(Limits, given, "command line") if given else None
    with RunFolder.open(options.folder) as run:
        for cluster in clusters or [LaunchConfig.load(run.launch).cluster]:
            limited = _limited(cluster, options)
            config = decide_again(run, limited, sweep, options.objective, limits)
            if clusters:
                plain = re.sub(r"[^A-Za-z0-9._-]+", "-", cluster.name)
                name = f"batch-config-{plain}.yaml"
                run.write(run.path / name, config.to_yaml())
                print(f"configuration: {inside(options.folder, name)}", file=sys.stderr)
            found.append(config)
    return found


def _address(answer: str, config: BatchConfig) -> str:
    """Give the workload's address, or only its name where the answer lies in no run."""
    if is_url(answer):
        with RunFolder.open(answer) as run:
            return LaunchConfig.load(run.launch).workload
    path = Path(answer)
    launch = RunFolder(path.parent if path.is_file() else path).launch
    return LaunchConfig.load(launch).workload if launch.is_file() else config.workload


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise BadInput(
            f"cannot write {path}: {error.strerror}", hint="give a file in a folder you may write to"
        ) from None


def _limited(cluster: Cluster, options: argparse.Namespace) -> Cluster:
    """Put the memory limits of the command line in place of the cluster's."""
    limits = {"device_memory": options.device_memory, "reserve": options.reserve, "margin": options.margin}
    given = {key: value for key, value in limits.items() if value is not None}
    if not given:
        return cluster
    data = cluster.model_dump(mode="json", by_alias=True, exclude_none=True)
    return parse(Cluster, {**data, **given}, "command line")


def _limits(options: argparse.Namespace) -> dict[str, Any]:
    """Gather the limits that were given."""
    names = ("time", "cost", "memory", "workers", "efficiency_loss")
    values = {name: getattr(options, f"max_{name}") for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _show_brought(answer: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    if as_json:
        print(json.dumps(answer.model_dump(mode="json"), indent=2))
    else:
        show(answer)
    print("\nnext: scaler tune WORKLOAD --cluster FILE measures them itself", file=sys.stderr)


def _print_json(items: list[dict[str, Any]]) -> None:
    """Print one as it is, several as a list."""
    print(json.dumps(items[0] if len(items) == 1 else items, indent=2))


def _print(configs: list[BatchConfig], as_json: bool) -> None:
    from scaler.report.terminal import print_answer

    if as_json:
        _print_json([config.to_dict() for config in configs])
        return
    for config in configs:
        print_answer(config)
