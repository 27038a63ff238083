"""The command line. Data goes to stdout, everything else to stderr."""

import argparse
import json
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
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
    _add_recommend(commands)
    _add_report(commands)
    return parser


def _add_tune(commands: Any) -> None:
    tune = commands.add_parser(
        "tune",
        help="measure, fit, decide, report: the main job",
        allow_abbrev=False,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tune.add_argument(
        "workload", metavar="WORKLOAD", help="digits, mnist, chars, file.py:name or package.module:name"
    )
    tune.add_argument("--cluster", required=True, metavar="FILE", help="cluster description (cluster/*.yaml)")
    tune.add_argument("--out", default="RUN", metavar="RUN", help="run folder (default: RUN)")
    again = tune.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue the run in the out folder")
    again.add_argument("--force", action="store_true", help="overwrite the run in the out folder")
    tune.add_argument("--budget", metavar="TIME", help="bound on measuring, such as 20m (default: none)")
    tune.add_argument("--zero", type=int, default=0, metavar="STAGE", help="DeepSpeed ZeRO stage, 0 to 3")
    tune.add_argument("--seeds", type=int, default=3, metavar="N", help="trials per batch and rate")
    tune.add_argument("--address", metavar="ADDRESS", help="Ray cluster (default: RAY_ADDRESS, or start one)")
    tune.add_argument("--local", action="store_true", help="one worker in this process, without Ray")
    tune.add_argument("--json", action="store_true", help="print the batch configuration as JSON")
    tune.set_defaults(run=_tune)


def _add_recommend(commands: Any) -> None:
    recommend = commands.add_parser(
        "recommend", help="decide again from what a run measured", allow_abbrev=False
    )
    recommend.add_argument("folder", metavar="RUN", help="run folder")
    recommend.add_argument("--cluster", metavar="FILE", help="another cluster of the same devices")
    recommend.add_argument("--json", action="store_true", help="print the batch configuration as JSON")
    recommend.set_defaults(run=_recommend)


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="write a run's HTML page again", allow_abbrev=False)
    report.add_argument("folder", metavar="RUN", help="run folder")
    report.set_defaults(run=_report)


def _no_command(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.version:
        from scaler import __version__

        print(f"scaler {__version__}")
    else:
        parser.print_help()


def _tune(options: argparse.Namespace) -> None:
    from scaler.launch import LaunchConfig
    from scaler.schema import parse

    launch = parse(
        LaunchConfig,
        {
            "workload": options.workload,
            "cluster": options.cluster,
            "storage_path": options.out,
            "budget": options.budget,
            "zero_stage": options.zero,
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
    from scaler.pipeline import recommend

    cluster = Cluster.load(options.cluster) if options.cluster else None
    _print(recommend(options.folder, cluster), options.json)
    print(f"\nnext: scaler report {options.folder}", file=sys.stderr)


def _report(options: argparse.Namespace) -> None:
    from scaler.pipeline import report

    print(report(options.folder))


def _print(config: Any, as_json: bool) -> None:
    from scaler.report.terminal import print_answer

    if as_json:
        print(json.dumps(config.to_dict(), indent=2))
    else:
        print_answer(config)


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
