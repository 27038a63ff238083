"""Measure the figures in README.md again: `make bench`, or `python benchmarks/run.py [demo ...]`."""

import importlib
import os
import platform
import sys

from figure import table

BENCHMARKS = (
    "demo",
    "task_cost",
    "first_step",
    "measuring_overhead",
    "prediction",
    "allocator",
    "step_time",
    "emulated",
    "steps",
    "learning_rate",
    "decision",
    "search_cost",
    "recommend_scale",
    "start_up",
)
NEED_DATA = ("measuring_overhead", "step_time", "steps", "decision")


def main(names: list[str]) -> None:
    figures = []
    for name in names or BENCHMARKS:
        if name in NEED_DATA and "SCALER_DATA" not in os.environ:
            print(f"skipping {name}: set SCALER_DATA to the folder of its data", file=sys.stderr)
            continue
        print(f"running {name} ...", file=sys.stderr)
        figures += importlib.import_module(name).measure()
        machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    print(f"{machine}, Python {platform.python_version()}\n")
    print(table(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
