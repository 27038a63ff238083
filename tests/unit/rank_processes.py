"""Several processes of one script, each a rank."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Ended(NamedTuple):
    code: int
    """As a rank may leave gloo's threads behind, torch can abort at the very end."""
    output: str
    in_time: bool


def run_ranks(script: str | Path, folder: Path, world: int, timeout_s: float, **env: str) -> list[Ended]:
    """Run `script FOLDER RANK WORLD` once for each rank at the same time; who takes too long is killed."""
    own = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **env}
    logs = [folder / f"output-{world}-{number}.log" for number in range(world)]
    processes = []
    for number, log in enumerate(logs):
        with log.open("w") as output:
            command = [sys.executable, str(script), str(folder), str(number), str(world)]
            processes.append(subprocess.Popen(command, env=own, stdout=output, stderr=subprocess.STDOUT))
    try:
        in_time = [_ends(process, timeout_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        Ended(process.wait(), log.read_text(), ended)
        for process, log, ended in zip(processes, logs, in_time, strict=True)
    ]


def saved_by_ranks(folder: Path, outputs: Sequence[str]) -> list[Any]:
    """Load what each rank saved as rank-N.pt; where one saved nothing, what it printed tells why."""
    missing = [n for n in range(len(outputs)) if not (folder / f"rank-{n}.pt").exists()]
    assert not missing, outputs[missing[0]]
    return [torch.load(folder / f"rank-{number}.pt") for number in range(len(outputs))]


def _ends(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    try:
        process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return False
    return True
