"""How long `import scaler` and `scaler --help` take, beside `import pydantic`, each in a fresh process.

    python benchmarks/start_up.py [--repeats N]

They take turns, so that all see the same machine. A ratio is the median over turns, with the 90% interval
that resampling turns gives. `import scaler` loads a name when it is first used, so names are timed too.
"""

import argparse
import subprocess
import sys
import time

import numpy as np
from figure import Figure, table

from scaler.stats import Floats, block_bootstrap

NAMES = "BatchPlan, Cluster, LaunchConfig, Workload, recommend"
COMMANDS = {
    "import pydantic": [sys.executable, "-c", "import pydantic"],
    "import scaler": [sys.executable, "-c", "import scaler"],
    "from scaler import ...": [sys.executable, "-c", f"from scaler import {NAMES}"],
    "scaler --help": [sys.executable, "-m", "scaler", "--help"],
}
GOALS = {"import scaler": "under 0.3 s", "from scaler import ...": "", "scaler --help": "under 0.5 s"}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def ratio(times_s: Floats, of: int) -> tuple[float, float, float]:
    def statistic(rows: Floats) -> float:
        return float(np.median(rows[:, of] / rows[:, 0]))

    interval = block_bootstrap(times_s, statistic)
    assert interval is not None
    return statistic(times_s), *interval


def measure(repeats: int = 20) -> list[Figure]:
    for command in COMMANDS.values():
        seconds(command)  # reads the files once
    times_s = np.array([[seconds(command) for command in COMMANDS.values()] for _ in range(repeats)])
    found = []
    for place, (what, goal) in enumerate(GOALS.items(), 1):
        value, low, high = ratio(times_s, place)
        words = (
            f"{np.median(times_s[:, place]):.2f} s, {value:.2f} x `import pydantic` ({low:.2f} to {high:.2f})"
        )
        method = f"medians of {repeats} fresh processes each, in turn; the interpreter's own start included"
        found.append(Figure(f"`{what}`", goal, words, method))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    print(table(measure(parser.parse_args().repeats)))


if __name__ == "__main__":
    main()
