"""The command line. Data goes to stdout, everything else to stderr."""

import argparse
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from scaler.errors import BadInput, ScalerError

EXIT_CODES = """exit codes:
  0  done
  1  a fault of scaler itself
  2  bad input: workload, cluster file, option or folder
  3  no batch configuration is feasible
  4  interrupted; a usable partial answer is in the run folder
  5  the cluster or the run's storage failed; --resume continues"""


_WORKLOAD_HELP = "digits, mnist, chars, gpt2, resnet50, file.py:name or package.module:name"


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as every other wrong input is reported."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{self.prog}: {message}", hint=f"`{self.prog} --help` lists the options")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""

    def command() -> int | None:
        options = _parser().parse_args(arguments)
        code: int | None = options.run(options)
        return code

    return exit_code(command)


def exit_code(command: Callable[[], int | None]) -> int:
    """Run a command; print what goes wrong as one message with a hint, and return the exit code."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        return command() or 0
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
    _add_submit(commands)
    _add_plan(commands)
    _add_recommend(commands)
    _add_regimes(commands)
    _add_report(commands)
    _add_export(commands)
    _add_fit(commands)
    return parser


def _add_question(commands: Any, name: str, purpose: str, cluster: str) -> argparse.ArgumentParser:
    """Add a command that asks about a workload on a cluster."""
    parser = _add_workload(commands, name, purpose)
    parser.add_argument("--cluster", required=True, metavar="FILE", help=cluster)
    _add_memory_limits(parser)
    return parser


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """Add what to choose by, and what the answer may not exceed."""
    choice = parser.add_argument_group("what to choose by")
    choice.add_argument(
        "--objective",
        metavar="NAME",
        help="time (to target, the default), cost, examples or throughput",
    )
    choice.add_argument("--max-time", metavar="TIME", help="to the target, such as 2h")
    choice.add_argument("--max-cost", metavar="COST", help="of a run to the target, in the price's currency")
    choice.add_argument("--max-memory", metavar="SIZE", help="of one device, such as 16GiB")
    choice.add_argument("--max-workers", metavar="N", help="devices used")
    choice.add_argument(
        "--max-efficiency-loss",
        metavar="SHARE",
        help="share of the examples that a smaller batch would not need (with throughput: 0.1)",
    )


def _add_workload(commands: Any, name: str, purpose: str) -> argparse.ArgumentParser:
    """Add a command that takes a workload."""
    parser = _add_command(commands, name, purpose)
    parser.add_argument("workload", metavar="WORKLOAD", help=_WORKLOAD_HELP)
    return parser


def _add_command(commands: Any, name: str, purpose: str) -> argparse.ArgumentParser:
    """Add a command whose help lists the exit codes."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        allow_abbrev=False,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _add_out(parser: argparse.ArgumentParser, folder: str, resume: str) -> None:
    """Add the run folder, and what to do if there is a run in it."""
    parser.add_argument(
        "--out",
        default=folder,
        metavar="RUN",
        help=f"run folder: a path, s3://bucket/run or gs://bucket/run (default: {folder})",
    )
    _add_again(parser, resume, "out folder")


def _add_again(parser: argparse.ArgumentParser, resume: str, folder: str) -> None:
    """Add what to do if there is a run already."""
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help=resume)
    again.add_argument("--force", action="store_true", help=f"overwrite the run in the {folder}")


def _add_tune(commands: Any) -> None:
    tune = _add_question(
        commands, "tune", "measure, fit, decide, report: the main job", "cluster description (cluster/*.yaml)"
    )
    _add_choice(tune)
    _add_sweep(tune)
    _add_out(tune, "RUN", "continue the run in the out folder")
    tune.add_argument(
        "--budget",
        metavar="TIME",
        help="bound on measuring: 20m, '3 device-hours', or 5%% of a training run (default: none)",
    )
    tune.add_argument(
        "--from-checkpoint",
        metavar="FILE",
        help="branch this state instead of training to the target",
    )
    tune.add_argument(
        "--zero",
        default=0,
        metavar="STAGE",
        help="DeepSpeed ZeRO stage, 0 to 3; auto compares them (default: 0)",
    )
    tune.add_argument("--seeds", type=int, default=3, metavar="N", help="trials per batch and rate")
    tune.add_argument("--address", metavar="ADDRESS", help="Ray cluster (default: RAY_ADDRESS, or start one)")
    tune.add_argument("--local", action="store_true", help="one worker in this process, without Ray")
    tune.add_argument("--json", action="store_true", help="print the batch configuration as JSON")
    tune.set_defaults(run=_command("tune"))


def _add_submit(commands: Any) -> None:
    submit = _add_command(commands, "submit", "tune as a job on a Ray cluster, and fetch its run folder")
    submit.add_argument("launch", metavar="LAUNCH.yaml", help="such as launch/digits.yaml")
    submit.add_argument(
        "--address",
        default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"),
        metavar="URL",
        help="the cluster's dashboard (default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)",
    )
    submit.add_argument("--out", metavar="RUN", help="run folder here (default: the launch's storage_path)")
    _add_again(submit, "continue the run in the run folder", "run folder")
    submit.add_argument("--follow", metavar="JOB", help="follow this job of the launch, and submit nothing")
    submit.add_argument("--json", action="store_true", help="print the batch configuration as JSON")
    submit.set_defaults(run=_command("submit"))


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
    plan.set_defaults(run=_command("plan"))


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
    for name, purpose, data in (
        ("recommend", "decide again from what a run measured, for its cluster or others", "configuration"),
        ("explain", "say why the answer is what it is, and what would change it", "explanation"),
    ):
        parser = _add_command(commands, name, purpose)
        parser.add_argument("folder", metavar="RUN", help="run folder")
        parser.add_argument(
            "--cluster",
            metavar="FILE",
            action="append",
            help="another cluster; several times for several, each gets its file in the run folder",
        )
        _add_memory_limits(parser)
        _add_choice(parser)
        _add_sweep(parser)
        parser.add_argument("--json", action="store_true", help=f"print the {data} as JSON")
        parser.set_defaults(run=_command(name))


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
    regimes.set_defaults(run=_command("regimes"))


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="write a run's HTML page again", allow_abbrev=False)
    report.add_argument("folder", metavar="RUN", help="run folder")
    report.add_argument("--tensorboard", metavar="DIR", help="write event files of TensorBoard too, there")
    report.set_defaults(run=_command("report"))


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export", help="write the answer for the tool that trains with it", allow_abbrev=False
    )
    export.add_argument("folder", metavar="RUN", help="run folder, or a batch-config*.yaml")
    export.add_argument(
        "--to",
        required=True,
        metavar="NAME",
        help="deepspeed, ray, accelerate, lightning, hugging-face, torchrun, slurm, kuberay, kuberay-cluster "
        "or ray-launcher",
    )
    export.add_argument(
        "--workers", type=int, metavar="N", help="the answer of that worker count (default: the one to use)"
    )
    export.add_argument("--out", metavar="FILE", help="write it there (default: stdout)")
    export.add_argument(
        "--script", default="train.py", metavar="FILE", help="what a launcher starts (default: train.py)"
    )
    export.add_argument("--image", metavar="NAME", help="KubeRay's container (default: Ray's own)")
    export.set_defaults(run=_command("export"))


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
        "fit_step_time",
    )
    _add_table(
        what,
        "steps",
        "examples to target at other batches, and the critical batch",
        "KNOWN has the columns global_batch, seed and examples (until the target, in any unit of "
        "data), a row for each run, and may have reached (0: the run ended before the target). ASKED has "
        "global_batch, and may have n_seeds (fresh runs whose mean is predicted).",
        "fit_steps",
    )
    _add_table(
        what,
        "learning-rate",
        "the best learning rate at other batches, and how it grows",
        "KNOWN has the columns global_batch, learning_rate and loss (less is better; empty, nan "
        "or inf: diverged), a row for each run, and may have seed. ASKED has global_batch.",
        "fit_learning_rate",
    )


def _add_table(what: Any, name: str, purpose: str, columns: str, command: str) -> None:
    """Add a fit of one table that predicts the rows of another."""
    fit = what.add_parser(name, help=purpose, allow_abbrev=False, description=columns)
    fit.add_argument("known", metavar="KNOWN.csv", help="what was measured, a row for each run")
    fit.add_argument("--at", required=True, metavar="ASKED.csv", help="what to predict")
    fit.add_argument("--json", action="store_true", help="print the predictions as JSON")
    fit.set_defaults(run=_command(command))


def _command(name: str) -> Callable[[argparse.Namespace], int | None]:
    """Give a command's function, which is imported when it is called: help and errors need none of it."""

    def run(options: argparse.Namespace) -> int | None:
        from scaler import commands

        code: int | None = getattr(commands, name)(options)
        return code

    return run


def _no_command(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.version:
        from scaler import __version__

        print(f"scaler {__version__}")
    else:
        parser.print_help()


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
