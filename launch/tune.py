"""Tune from a launch file, on a Ray cluster: ray job submit --working-dir . -- python launch/tune.py ..."""

import argparse
import sys

from scaler.cli import exit_code


def arguments() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--launch", required=True, metavar="FILE", help="such as launch/digits.yaml")
    parser.add_argument("--resume", action="store_true", help="continue the run in its storage path")
    parser.add_argument("--force", action="store_true", help="overwrite the run in its storage path")
    parser.add_argument("--json", action="store_true", help="print the batch configuration as JSON")
    return parser


def main() -> None:
    """Read the launch file and run it."""
    options = arguments().parse_args()

    from scaler import LaunchConfig
    from scaler.commands import run_launch

    run_launch(LaunchConfig.load(options.launch), options.resume, options.force, options.json)


if __name__ == "__main__":
    sys.exit(exit_code(main))
