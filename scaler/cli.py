"""The command line. Data goes to stdout, everything else to stderr."""

import argparse
import json
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from scaler.errors import BadInput, ScalerError

EXIT_CODES = """exit codes:
  0  done
  1  a fault of scaler itself
  2  bad input: workload, cluster file, option or folder
  3  no batch configuration is feasible
  4  interrupted; a usable partial answer is in the run folder
  5  the cluster failed; --resume continues"""


_WORKLOAD_HELP = "digits, mnist, chars, gpt2, resnet50, file.py:name or package.module:name"


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as every other wrong input is reported."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{self.prog}: {message}", hint=f"`{self.prog} --help` lists the options")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""

    def command() -> None:
        options = _parser().parse_args(arguments)
        options.run(options)

    return exit_code(command)


def exit_code(command: Callable[[], None]) -> int:
    """Run a command; print what goes wrong as one message with a hint, and return the exit code."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        command()
    except ScalerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted before anything was measured", file=sys.stderr)
        return 4
    except BrokenPipeError:
        return 0
    except Exception as error:
        with tempfile.NamedTemporaryFile("w", prefix="scaler-fault-", suffix=".log", delete=False) as file:
            file.write(traceback.format_exc())
        print(f"error: a fault of scaler: {type(error).__name__}: {error}", file=sys.stderr)
        print(f"\nhint: the trace is in {file.name}; please report it", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scaler",
        description="Measures which batch configuration to train with, on your model, data and cluster.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.set_defaults(run=lambda options: _no_command(parser, options))
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    _add_tune(commands)
    _add_plan(commands)
    _add_recommend(commands)
    _add_regimes(commands)
    _add_report(commands)
    _add_fit(commands)
    return parser


def _add_question(commands: Any, name: str, purpose: str, cluster: str) -> argparse.ArgumentParser:
    """Add a command that asks about a workload on a cluster."""
    parser = _add_workload(commands, name, purpose)
    parser.add_argument("--cluster", required=True, metavar="FILE", help=cluster)
    _add_memory_limits(parser)
    return parser


def _add_workload(commands: Any, name: str, purpose: str) -> argparse.ArgumentParser:
    """Add a command that takes a workload."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        allow_abbrev=False,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workload", metavar="WORKLOAD", help=_WORKLOAD_HELP)
    return parser


def _add_out(parser: argparse.ArgumentParser, folder: str, resume: str) -> None:
    """Add the run folder, and what to do if there is a run in it."""
    parser.add_argument("--out", default=folder, metavar="RUN", help=f"run folder (default: {folder})")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help=resume)
    again.add_argument("--force", action="store_true", help="overwrite the run in the out folder")


def _add_tune(commands: Any) -> None:
    tune = _add_question(
        commands, "tune", "measure, fit, decide, report: the main job", "cluster description (cluster/*.yaml)"
    )
    _add_sweep(tune)
    _add_out(tune, "RUN", "continue the run in the out folder")
    tune.add_argument("--budget", metavar="TIME", help="bound on measuring, such as 20m (default: none)")
    tune.add_argument(
        "--from-checkpoint",
        metavar="FILE",
        help="branch this state instead of training to the target",
    )
    tune.add_argument("--zero", type=int, default=0, metavar="STAGE", help="DeepSpeed ZeRO stage, 0 to 3")
    tune.add_argument("--seeds", type=int, default=3, metavar="N", help="trials per batch and rate")
    tune.add_argument("--address", metavar="ADDRESS", help="Ray cluster (default: RAY_ADDRESS, or start one)")
    tune.add_argument("--local", action="store_true", help="one worker in this process, without Ray")
    tune.add_argument("--json", action="store_true", help="print the batch configuration as JSON")
    tune.set_defaults(run=_tune)


def _add_plan(commands: Any) -> None:
    plan = _add_question(
        commands,
        "plan",
        "what fits in memory, for every ZeRO stage; no GPU needed",
        "cluster description (cluster/hardware/*.yaml)",
    )
    plan.add_argument(
        "--micro-batch", type=int, nargs="+", default=[], metavar="B", help="ask for the peak at B instead"
    )
    plan.add_argument("--accumulate", action="store_true", help="several passes per optimizer step")
    plan.add_argument(
        "--offload-optimizer", action="store_true", help="with ZeRO, optimizer state in the host's memory"
    )
    plan.add_argument("--json", action="store_true", help="print the plans as JSON")
    plan.set_defaults(run=_plan)


def _add_memory_limits(parser: argparse.ArgumentParser) -> None:
    limits = parser.add_argument_group("device memory, in place of the cluster file's")
    limits.add_argument("--device-memory", metavar="SIZE", help="memory of one device, such as 24GiB")
    limits.add_argument("--reserve", metavar="SIZE", help="device memory left to others, such as 1GiB")
    limits.add_argument("--margin", metavar="SHARE", help="added to a predicted peak (default: 0.05)")


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sweep",
        nargs=2,
        metavar=("device-memory", "SIZES"),
        help="show what the memory of one device buys, such as: --sweep device-memory 8,16,24,40,80GiB",
    )


def _add_recommend(commands: Any) -> None:
    recommend = commands.add_parser(
        "recommend", help="decide again from what a run measured", allow_abbrev=False
    )
    recommend.add_argument("folder", metavar="RUN", help="run folder")
    recommend.add_argument("--cluster", metavar="FILE", help="another cluster of the same devices")
    _add_memory_limits(recommend)
    _add_sweep(recommend)
    recommend.add_argument("--json", action="store_true", help="print the batch configuration as JSON")
    recommend.set_defaults(run=_recommend)


def _add_regimes(commands: Any) -> None:
    regimes = _add_workload(
        commands, "regimes", "batch size 1, mini-batches and the full batch side by side, in pictures"
    )
    regimes.add_argument(
        "--cluster", metavar="FILE", help="train on one of its workers (default: this process, on the CPU)"
    )
    _add_out(regimes, "REGIMES", "use what the out folder holds already")
    regimes.add_argument("--budget", metavar="TIME", help="about how long it takes (default: 1m)")
    regimes.add_argument(
        "--address", metavar="ADDRESS", help="Ray cluster (default: RAY_ADDRESS, or start one)"
    )
    regimes.add_argument("--local", action="store_true", help="in this process, without Ray")
    regimes.add_argument("--json", action="store_true", help="print what was found as JSON")
    regimes.set_defaults(run=_regimes)


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="write a run's HTML page again", allow_abbrev=False)
    report.add_argument("folder", metavar="RUN", help="run folder")
    report.set_defaults(run=_report)


def _add_fit(commands: Any) -> None:
    fit = commands.add_parser("fit", help="predict from measurements of your own", allow_abbrev=False)
    what = fit.add_subparsers(metavar="WHAT", parser_class=_Parser, required=True)
    _add_table(
        what,
        "step-time",
        "step times of other worker counts and batches",
        "KNOWN has the columns nodes, workers, micro_batch, accumulation and step_time_s (the "
        "median step of one run), and may have sync_time_s (seconds of the step not hidden by computation). "
        "ASKED has the first four.",
        _fit_step_time,
    )
    _add_table(
        what,
        "steps",
        "examples to target at other batches, and the critical batch",
        "KNOWN has the columns global_batch, seed and examples (until the target, in any unit of "
        "data), a row for each run, and may have reached (0: the run ended before the target). ASKED has "
        "global_batch, and may have n_seeds (fresh runs whose mean is predicted).",
        _fit_steps,
    )
    _add_table(
        what,
        "learning-rate",
        "the best learning rate at other batches, and how it grows",
        "KNOWN has the columns global_batch, learning_rate and loss (less is better; empty, nan "
        "or inf: diverged), a row for each run, and may have seed. ASKED has global_batch.",
        _fit_learning_rate,
    )


def _add_table(
    what: Any, name: str, purpose: str, columns: str, run: Callable[[argparse.Namespace], None]
) -> None:
    """Add a fit of one table that predicts the rows of another."""
    fit = what.add_parser(name, help=purpose, allow_abbrev=False, description=columns)
    fit.add_argument("known", metavar="KNOWN.csv", help="what was measured, a row for each run")
    fit.add_argument("--at", required=True, metavar="ASKED.csv", help="what to predict")
    fit.add_argument("--json", action="store_true", help="print the predictions as JSON")
    fit.set_defaults(run=run)


def _no_command(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.version:
        from scaler import __version__

        print(f"scaler {__version__}")
    else:
        parser.print_help()


def _limited(cluster: Any, options: argparse.Namespace) -> Any:
    """Put the memory limits of the command line in place of the cluster's."""
    from scaler.cluster import Cluster
    from scaler.schema import parse

    limits = {"device_memory": options.device_memory, "reserve": options.reserve, "margin": options.margin}
    given = {key: value for key, value in limits.items() if value is not None}
    if not given:
        return cluster
    data = cluster.model_dump(mode="json", by_alias=True, exclude_none=True)
    return parse(Cluster, {**data, **given}, "command line")


def _plan(options: argparse.Namespace) -> None:
    from scaler.cluster import Cluster
    from scaler.plan import nothing_fits, plan
    from scaler.report.bill import print_plans
    from scaler.report.progress import TerminalProgress
    from scaler.workload import load_workload

    if bad := [size for size in options.micro_batch if size < 1]:
        raise BadInput(f"--micro-batch {bad[0]}", hint="a micro-batch is a whole number from 1 on")
    cluster = _limited(Cluster.load(options.cluster), options)
    with TerminalProgress() as progress:
        found = plan(
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


def _tune(options: argparse.Namespace) -> None:
    from scaler.cluster import Cluster
    from scaler.decide.sweep import parse_sweep
    from scaler.launch import LaunchConfig
    from scaler.schema import parse

    launch = parse(
        LaunchConfig,
        {
            "workload": options.workload,
            "cluster": _limited(Cluster.load(options.cluster), options),
            "storage_path": options.out,
            "budget": options.budget,
            "from_checkpoint": options.from_checkpoint and str(Path(options.from_checkpoint).absolute()),
            "zero_stage": options.zero,
            "sweep": parse_sweep(options.sweep),
            "seeds": options.seeds,
            "runtime": "local" if options.local else "ray",
            "address": options.address,
        },
        "command line",
    )
    run_launch(launch, resume=options.resume, force=options.force, as_json=options.json)


def run_launch(launch: Any, resume: bool = False, force: bool = False, as_json: bool = False) -> None:
    """Tune with progress on stderr, print the answer, and name the report and the next command."""
    from scaler.pipeline import tune
    from scaler.report.progress import TerminalProgress

    with TerminalProgress() as progress:
        config = tune(launch, resume=resume, force=force, progress=progress)
    _print(config, as_json)
    path = Path(launch.storage_path)
    print(f"\nreport: {path / 'report.html'}\nconfiguration: {path / 'batch-config.yaml'}", file=sys.stderr)
    print(f"next: scaler recommend {path} --cluster FILE", file=sys.stderr)


def _recommend(options: argparse.Namespace) -> None:
    from scaler.cluster import Cluster
    from scaler.decide.sweep import parse_sweep
    from scaler.pipeline import recommend, run_cluster

    cluster = Cluster.load(options.cluster) if options.cluster else run_cluster(options.folder)
    sweep = parse_sweep(options.sweep)
    _print(recommend(options.folder, _limited(cluster, options), sweep), options.json)
    print(f"\nnext: scaler report {options.folder}", file=sys.stderr)


def _regimes(options: argparse.Namespace) -> None:
    from scaler.cluster import Cluster
    from scaler.launch import LaunchConfig
    from scaler.pipeline import compare_regimes
    from scaler.report.progress import TerminalProgress
    from scaler.report.regime_answer import print_regimes, regimes_data
    from scaler.schema import parse

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
    print(f"\nreport: {Path(options.out) / 'regimes.html'}", file=sys.stderr)
    cluster = options.cluster or "FILE"
    print(f"next: scaler tune {options.workload} --cluster {cluster}", file=sys.stderr)


def _report(options: argparse.Namespace) -> None:
    from scaler.pipeline import report

    print(report(options.folder))


def _fit_step_time(options: argparse.Namespace) -> None:
    from scaler.fit.bring import fit_step_time_table
    from scaler.report.brought import print_step_times

    _show_brought(fit_step_time_table(options.known, options.at), options.json, print_step_times)


def _fit_steps(options: argparse.Namespace) -> None:
    from scaler.fit.bring_steps import fit_steps_table
    from scaler.report.brought import print_steps

    _show_brought(fit_steps_table(options.known, options.at), options.json, print_steps)


def _fit_learning_rate(options: argparse.Namespace) -> None:
    from scaler.fit.bring_rates import fit_learning_rate_table
    from scaler.report.brought import print_learning_rates

    _show_brought(fit_learning_rate_table(options.known, options.at), options.json, print_learning_rates)


def _show_brought(answer: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    if as_json:
        print(json.dumps(answer.model_dump(mode="json"), indent=2))
    else:
        show(answer)
    print("\nnext: scaler tune WORKLOAD --cluster FILE measures them itself", file=sys.stderr)


def _print(config: Any, as_json: bool) -> None:
    from scaler.report.terminal import print_answer

    if as_json:
        print(json.dumps(config.to_dict(), indent=2))
    else:
        print_answer(config)


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
