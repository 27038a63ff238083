"""From `ray job submit` on an idle cluster to the first measured step, over the smallest Ray Train job's.

Both are submitted in turn to one head on the loopback, and timed from the start of the `ray job submit`
command. scaler's: `launch/tune.py --launch launch/digits.yaml`, until the first record whose measurement
includes optimizer steps was taken (a memory probe: two steps of the real engine). Ray's: a script with
nothing but a `TorchTrainer` of as many workers, by Ray's own settings, until each made an optimizer step of a
linear layer. One of each goes ahead untimed: a fresh head starts its first workers slowly.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import psutil
import requests
from figure import Figure
from scipy import stats

REPEATS = 6
ROOT = Path(__file__).parents[1]
WITHOUT_STEPS = ("workload", "prediction")  # kinds of records
SMALLEST = """
import sys, time, torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

def train(config):
    net = prepare_model(torch.nn.Linear(1, 1), move_to_device=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    with open(config["path"], "a") as file:
        print(time.time(), file=file)

scaling = ScalingConfig(num_workers=2)
TorchTrainer(train, train_loop_config={"path": sys.argv[1]}, scaling_config=scaling).fit()
"""


def measure() -> list[Figure]:
    pairs = []
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with _head(folder) as ray:
            for repeat in range(REPEATS + 1):
                pairs.append(
                    (
                        _first_record(ray, folder / f"RUN-{repeat}"),
                        _first_step(ray, folder / f"step-{repeat}"),
                    )
                )
                print(f"  {pairs[-1][0]:.1f} s against {pairs[-1][1]:.1f} s", file=sys.stderr)
    ours_s, smallest_s = np.array(pairs[1:]).T
    logs = np.log(ours_s / smallest_s)
    half = stats.t.ppf(0.95, REPEATS - 1) * logs.std(ddof=1) / np.sqrt(REPEATS)
    low, ratio, high = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half])
    return [
        Figure(
            "`ray job submit` to the first measured step, over the smallest Ray Train job's",
            "at most 1.5 x",
            f"{ratio:.2f} x (90% interval {low:.2f} to {high:.2f}): {np.median(ours_s):.1f} s and "
            f"{np.median(smallest_s):.1f} s in the median",
            f"digits on two mock devices; {REPEATS} of each in turn on one idle local head; t interval of "
            "the log ratio of pairs",
        )
    ]


class Ray:
    """A head of this benchmark's own."""

    def __init__(self, address: str, env: dict[str, str]) -> None:
        self.address = address
        self.env = env

    def start(self, folder: Path, *command: str) -> tuple[float, "subprocess.Popen[bytes]"]:
        words = ["ray", "job", "submit", "--address", self.address, "--working-dir", str(folder), "--"]
        started = time.time()
        process = subprocess.Popen(
            [*words, "python", *command], env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return started, process

    def stop_all(self) -> None:
        """Stop every job, and wait until the head has no worker of one."""
        for job in requests.get(f"{self.address}/api/jobs/", timeout=10).json():
            if job["status"] in ("PENDING", "RUNNING"):
                requests.post(f"{self.address}/api/jobs/{job['submission_id']}/stop", timeout=10)
        while any(
            job["status"] in ("PENDING", "RUNNING")
            for job in requests.get(f"{self.address}/api/jobs/", timeout=10).json()
        ):
            time.sleep(0.2)
        time.sleep(3)


def _first_record(ray: Ray, run: Path) -> float:
    """Seconds until the first measured step of scaler's main job."""
    launch = run.with_suffix(".yaml")
    text = (ROOT / "launch" / "digits.yaml").read_text(encoding="utf-8")
    text = text.replace("../cluster", str(ROOT / "cluster")).replace(
        "storage_path: RUN", f"storage_path: {run}"
    )
    launch.write_text(text, encoding="utf-8")
    started, process = ray.start(ROOT, "launch/tune.py", "--launch", str(launch))
    records = run / "records.jsonl"
    while True:
        for line in records.read_text(encoding="utf-8").splitlines() if records.exists() else []:
            record = json.loads(line)
            if record["kind"] not in WITHOUT_STEPS:
                ray.stop_all()
                process.wait()
                return datetime.fromisoformat(record["taken_at"]).timestamp() - started
        assert process.poll() is None, "the job ended before its first step"
        time.sleep(0.1)


def _first_step(ray: Ray, path: Path) -> float:
    """Seconds until every worker of the smallest job made a step."""
    script = path.parent / "script"
    script.mkdir(exist_ok=True)
    (script / "smallest.py").write_text(SMALLEST, encoding="utf-8")
    started, process = ray.start(script, "smallest.py", str(path))
    assert process.wait() == 0
    ray.stop_all()
    return max(float(line) for line in path.read_text().splitlines()) - started


@contextlib.contextmanager
def _head(folder: Path) -> Iterator[Ray]:
    """Start a head on the loopback; end it and all its processes by their ids."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--port=0", "--num-cpus=4"]
    command += ["--num-gpus=0", "--resources", '{"scaler_mock": 2}', f"--temp-dir={folder / 'ray'}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    head = psutil.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline_s = time.monotonic() + 60
        while True:
            with contextlib.suppress(requests.RequestException):
                requests.get(f"{address}/api/version", timeout=5)
                break
            assert time.monotonic() < deadline_s, "the head does not start"
            time.sleep(0.2)
        yield Ray(address, env)
    finally:
        ended = [*head.children(recursive=True), head]
        for process in ended:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(ended, timeout=5)[1]:
            process.kill()
