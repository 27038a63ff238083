"""Tools that find the largest micro-batch on one device, on random mock devices: tries, failures, result.

    pip install 'lightning==2.6.*' 'accelerate==1.15.*' 'batch-finder==0.6.*'
    python benchmarks/batch_finders [--cases N] [--seed S] [--json FILE]

A case is a small network, an optimizer and a byte budget on the CPU. The device counts more than the live
bytes: a share of them, and a second share from some point on. Every tool runs its own code, as installed and
with its own defaults, on one device that lives as long as its search; only the training step is ours, the
same for all. The true size is searched exhaustively: it trains two steps from scratch, and one more example
runs out.

- Lightning: `Tuner.scale_batch_size`, manual optimization (its automatic loop keeps the last step's gradients
  during the forward pass, and would be judged by a step that does not).
- accelerate: `find_executable_batch_size` only goes down, so its user must start above every size that may
  fit: 4,096. Its second row starts at the power of two at or above 4 x the true size, as no user can.
- batch-finder: starts at 512, its default on CUDA; without its memory guide, which reads CUDA or the host.
  It measures forward and backward, without the optimizer.
"""

import argparse
import contextlib
import gc
import io
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from cases import Case, draw_case
from tools import TOOLS, Result, Tool


@dataclass(frozen=True)
class Row:
    case: Case
    tool: str
    result: Result
    seconds: float

    @property
    def of_true_size(self) -> float:
        return self.result.found / self.case.true_size


def table(rows: Sequence[Row]) -> str:
    heads = ("tool", "probes median", "max", "cases with OOM", "most OOM in one", "found/true median", "min")
    lines = ["| " + " | ".join([*heads, "exact", "too big"]) + " |", "|---" * (len(heads) + 2) + "|"]
    for tool in dict.fromkeys(row.tool for row in rows):
        mine = [row for row in rows if row.tool == tool]
        probes, failures = [r.result.probes for r in mine], [r.result.failures for r in mine]
        shares = [row.of_true_size for row in mine]
        cells = [
            tool,
            f"{statistics.median(probes):g}",
            max(probes),
            f"{sum(n > 0 for n in failures)} of {len(mine)}",
            max(failures),
            f"{statistics.median(shares):.3f}",
            f"{min(shares):.3f}",
            sum(share == 1 for share in shares),
            sum(share > 1 for share in shares),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(io.StringIO()):
            yield


def _installed() -> dict[str, Tool]:
    tools = {}
    for tool in TOOLS:
        version = tool.version
        if version is None:
            print(f"skipped {tool.name}: {tool.package} is not installed")
        else:
            print(f"{tool.name}: {tool.package} {version}")
            tools[tool.name] = tool
    return tools


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write a row for every case and tool here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tools = _installed()
    rows: list[Row] = []
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    versions = {tool.package: tool.version for tool in tools.values()}
    gc.collect()
    gc.freeze()  # tools collect after every try: not what was imported
    for number in range(arguments.cases):
        case = draw_case(number, arguments.seed)
        for tool in list(tools.values()):
            start = time.perf_counter()
            try:
                with _quiet():
                    result = tool.find(case)
            except NotImplementedError as error:
                print(f"skipped {tools.pop(tool.name).name}: {error}")
                continue
            rows.append(Row(case, tool.name, result, time.perf_counter() - start))
        print(f"case {number + 1} of {arguments.cases}", end="\r", file=sys.stderr)
    if arguments.json:
        records = [{**asdict(row), "case": _plain(row.case)} for row in rows]
        facts = {"seed": arguments.seed, "torch": torch.__version__, "packages": versions, "rows": records}
        arguments.json.write_text(json.dumps(facts, indent=1))
    print(f"\n{arguments.cases} cases, seed {arguments.seed}, torch {torch.__version__}\n\n{table(rows)}")


def _plain(case: Case) -> dict[str, Any]:
    return {**asdict(case), "concealed": case.concealed.model_dump(mode="json")}


if __name__ == "__main__":
    main()
