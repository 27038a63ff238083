"""`scaler submit` and `ray job submit` as a user runs them, against a Ray head that these tests start."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests

from scaler.decide.config import BatchConfig
from scaler.records import WorkloadRecord
from scaler.runs import RunFolder

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef0123456789abcdef"

LAUNCH = """\
workload: train.py:workload
cluster: {name: here, workers: 1, kind: cpu}
runtime: local
seeds: 1
plan: {micro_batch: 16, workers: 1}
"""
TRAIN = """\
import dataclasses
import plane  # beside this file
workload = plane.workload
"""


@dataclass(frozen=True)
class Head:
    """A Ray head on the loopback, and the environment of those who talk to it."""

    address: str
    env: dict[str, str]

    def run(self, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(arguments, cwd=cwd, env=self.env, capture_output=True, text=True, timeout=150)

    def submit(self, launch: str, *options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return self.run([*self.submitting(launch), *options], cwd)

    def submitting(self, launch: str) -> list[str]:
        return [sys.executable, "-m", "scaler", "submit", launch, "--address", self.address]


def free_port() -> int:
    """A port outside those that Ray gives its workers."""
    while True:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port: int = found.getsockname()[1]
        if not 10_000 <= port < 20_000:
            return port


def start_head(folder: Path, **extra: str) -> Iterator[Head]:
    """Start a head as a child, and end it and all its processes by their ids."""
    for name in ("home", "ray"):
        (folder / name).mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {
        "HOME": str(folder / "home"),
        "PATH": f"{BIN}{os.pathsep}{env['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "GLOO_SOCKET_IFNAME": "lo",
        **extra,
    }
    dashboard, client, agent = free_port(), free_port(), free_port()
    command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--port=0"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=4", "--num-gpus=0"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--temp-dir={folder / 'ray'}", "--resources", '{"scaler_mock": 2}']
    command += [f"--object-store-memory={80 * 2**20}"]
    address = f"http://127.0.0.1:{dashboard}"
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(address, process, folder / "head.log")
        yield Head(address, env)
    finally:
        # By itself the head waits half a minute for its workers.
        ended = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for each in ended:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.terminate()
        for each in psutil.wait_procs(ended, timeout=5)[1]:
            each.kill()
        process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + 90
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            requests.get(f"{address}/api/version", timeout=5)
            return
        except requests.RequestException:
            time.sleep(0.2)
    pytest.fail(f"the head did not start:\n{log.read_text()}")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # pytest's own folders have names that are too long for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield from start_head(Path(folder))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a launch file with a workload beside it, which imports a module beside itself."""
    folder = tmp_path_factory.mktemp("user")
    write(folder / "project", "train.py", TRAIN)
    shutil.copy(Path(__file__).parent / "questions.py", folder / "project" / "plane.py")
    mock = "cluster: {name: two, workers: 2, kind: mock, device_memory: 64MiB}"
    launch = LAUNCH.replace("cluster: {name: here, workers: 1, kind: cpu}\nruntime: local", mock)
    write(folder / "project", "launch.yaml", launch.replace("workers: 1}", "workers: 2}"))
    return folder


def write(folder: Path, name: str, text: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_workload_beside_its_launch_file_is_tuned_on_the_cluster(head: Head, project: Path) -> None:
    done = head.submit("project/launch.yaml", "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    config = BatchConfig.model_validate(json.loads(done.stdout))
    assert config.chosen.plan.workers == 2 and config.confirmation is not None
    run = RunFolder.open(project / "RUN")
    assert BatchConfig.load(run.path) == config and run.report.is_file()
    (record,) = [record for record in run.records() if isinstance(record, WorkloadRecord)]
    assert record.name == "plane"
    assert "confirmation: done" in done.stderr and "note:" not in done.stderr
    last = [line for line in done.stderr.splitlines() if line]
    assert last[-1] == "next: scaler explain RUN" and "RUN/report.html" in last[-3]
    assert sorted(path.name for path in project.iterdir()) == ["RUN", "project"]


def test_the_fetched_run_is_sent_along_to_be_continued(head: Head, project: Path) -> None:
    before = (project / "RUN" / "records.jsonl").read_bytes()
    again = head.submit("project/launch.yaml", cwd=project)
    assert again.returncode == 2 and "--resume continues" in again.stderr
    done = head.submit("project/launch.yaml", "--resume", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "Train plane on 2 workers" in done.stdout
    assert (project / "RUN" / "records.jsonl").read_bytes() == before


def test_a_storage_path_of_the_cluster_is_left_there(head: Head, project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "RUN", tmp_path / "shared")
    text = (project / "project" / "launch.yaml").read_text() + f"storage_path: {tmp_path / 'shared'}\n"
    write(project / "project", "shared.yaml", text)
    done = head.submit("project/shared.yaml", "--resume", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "Train plane on 2 workers" in done.stdout
    assert f"configuration: {tmp_path / 'shared' / 'batch-config.yaml'}" in done.stderr


def test_a_failing_workload_gives_its_message_its_code_and_its_records(head: Head, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / "questions.py", tmp_path / "plane.py")
    broken = "workload = dataclasses.replace(workload, metric=lambda net, batch: 1 / 0)\n"
    write(tmp_path, "train.py", TRAIN + broken)
    write(tmp_path, "launch.yaml", LAUNCH)
    done = head.submit("launch.yaml", "--out", "runs/BROKEN", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "metric() raised ZeroDivisionError" in done.stderr and "train.py:4" in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.endswith("run folder: runs/BROKEN\n")
    assert RunFolder.open(tmp_path / "runs" / "BROKEN").records()


def test_a_workload_that_the_cluster_cannot_import_gives_2(head: Head, tmp_path: Path) -> None:
    write(tmp_path, "train.py", "import not_on_the_cluster\n")
    write(tmp_path, "launch.yaml", LAUNCH)
    done = head.submit("launch.yaml", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "No module named 'not_on_the_cluster'" in done.stderr and "train.py:1" in done.stderr
    assert not (tmp_path / "RUN").exists() and "run folder:" not in done.stderr


def test_a_job_goes_on_unfollowed_and_its_death_is_told(head: Head, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / "questions.py", tmp_path / "plane.py")
    dies = """
def metric(net, batch):
    import os, signal, time
    time.sleep(4)
    os.kill(os.getpid(), signal.SIGKILL)
workload = dataclasses.replace(workload, metric=metric)
"""
    write(tmp_path, "train.py", TRAIN + dies)
    write(tmp_path, "launch.yaml", LAUNCH)
    process = subprocess.Popen(
        head.submitting("launch.yaml"),
        cwd=tmp_path,
        env=head.env,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("workload: done"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 4, rest
    (job,) = {word.strip(",") for word in rest.replace("`", " ").split() if word.startswith("scaler-")}
    assert "goes on" in rest and f"--follow {job}" in rest and "ray job stop" in rest
    assert not (tmp_path / "RUN").exists()

    done = head.submit("launch.yaml", "--follow", job, cwd=tmp_path)
    assert done.returncode == 5, done.stderr
    assert f"{job} was killed by SIGKILL" in done.stderr and "Traceback" not in done.stderr
    assert "--resume` continues" in done.stderr
    assert RunFolder.open(tmp_path / "RUN").records()


def test_a_job_that_is_not_there_is_bad_input(head: Head, tmp_path: Path) -> None:
    write(tmp_path, "launch.yaml", LAUNCH.replace("train.py:workload", "digits"))
    done = head.submit("launch.yaml", "--follow", "nix", cwd=tmp_path)
    assert done.returncode == 2 and f"there is no job nix at {head.address}" in done.stderr


def test_ray_job_submit_runs_the_launch_entry(head: Head, tmp_path: Path) -> None:
    launch = write(
        tmp_path,
        "launch.yaml",
        f"workload: digits\ncluster: {ROOT / 'cluster' / 'mock-2.yaml'}\nstorage_path: {tmp_path / 'RUN'}\n"
        "seeds: 1\nplan: {micro_batch: 64, workers: 2}\n",
    )
    command = ["ray", "job", "submit", "--address", head.address, "--working-dir", str(ROOT), "--"]
    done = head.run([*command, "python", "launch/tune.py", "--launch", launch], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Train digits on 2 workers" in done.stdout
    run = RunFolder.open(tmp_path / "RUN")
    assert BatchConfig.load(run.path).confirmation is not None and run.report.is_file()


@pytest.mark.slow
def test_a_dashboard_with_a_token_lets_only_its_holder_in(tmp_path: Path) -> None:
    write(tmp_path, "launch.yaml", LAUNCH.replace("train.py:workload", "digits"))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        for head in start_head(Path(folder), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN):
            told = {}
            for name, token in (
                ("none", {}),
                ("wrong", {"RAY_AUTH_TOKEN": TOKEN[::-1]}),
                ("right", {"RAY_AUTH_TOKEN": TOKEN}),
            ):
                env = {key: value for key, value in head.env.items() if key != "RAY_AUTH_TOKEN"} | token
                done = Head(head.address, env).submit("launch.yaml", "--follow", "nix", cwd=tmp_path)
                told[name] = (done.returncode, done.stderr)
    for name in ("none", "wrong"):
        code, stderr = told[name]
        assert code == 5 and "without its token" in stderr and "Traceback" not in stderr, stderr
        assert "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH" in stderr
    assert told["right"][0] == 2 and "there is no job nix" in told["right"][1], told["right"]
