from types import SimpleNamespace

import pytest

from scaler.cli import main
from scaler.errors import BadInput, ClusterFailed, Interrupted
from scaler.submit.submit import Finished, _exit_code, submit


def ended(code: int | None, status: str = "FAILED", message: str = "") -> SimpleNamespace:
    return SimpleNamespace(driver_exit_code=code, status=status, message=message, submission_id="scaler-1")


@pytest.mark.parametrize("code", range(6))
def test_a_job_that_ends_by_itself_gives_its_own_exit_code(code: int) -> None:
    assert _exit_code(ended(code), "log", "") == code


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (-9, "killed by SIGKILL, as a node out of memory"),
        (137, "killed by SIGKILL, as a node out of memory"),
        (-15, "killed by SIGTERM;"),
        (139, "killed by SIGSEGV;"),
        (127, "ended with exit code 127"),
        (255, "ended with exit code 255"),
    ],
)
def test_a_job_that_died_says_how_and_its_last_lines(code: int, says: str) -> None:
    with pytest.raises(ClusterFailed, match=says) as raised:
        _exit_code(ended(code), "".join(f"line {n}\n" for n in range(9)), "what to do")
    assert "line 8" in raised.value.message and "line 1" not in raised.value.message
    assert raised.value.exit_code == 5 and raised.value.hint == "what to do"


def test_a_job_that_never_started_gives_rays_reason() -> None:
    with pytest.raises(ClusterFailed) as raised:
        _exit_code(ended(None, message="setup failed:\nno such package"), "log", "")
    assert "without an exit code" in raised.value.message and "no such package" in raised.value.message


def test_a_stopped_job_was_interrupted() -> None:
    with pytest.raises(Interrupted, match="scaler-1 was stopped"):
        _exit_code(ended(None, status="STOPPED"), "log", "")


def test_an_out_folder_beside_a_storage_path_of_the_cluster_is_refused(tmp_path) -> None:
    (tmp_path / "launch.yaml").write_text(
        "workload: digits\ncluster: {workers: 1, kind: cpu}\nstorage_path: /nfs/run\n"
    )
    with pytest.raises(
        BadInput, match="--out RUN: the run folder goes to the launch's storage_path, /nfs/run"
    ):
        submit(tmp_path / "launch.yaml", "http://127.0.0.1:1", out="RUN")


def test_a_wrong_launch_file_is_found_before_the_cluster(tmp_path) -> None:
    (tmp_path / "launch.yaml").write_text("workload: digits\nclustr: x\n")
    with pytest.raises(BadInput, match="did you mean 'cluster'"):
        submit(tmp_path / "launch.yaml", "http://127.0.0.1:1")


@pytest.mark.parametrize("code", [0, 3])
def test_the_command_gives_the_jobs_exit_code(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = Finished(code, "RUN", None)
    monkeypatch.setattr("scaler.submit.submit.submit", lambda *_, **__: finished)
    assert main(["submit", "launch.yaml"]) == code
    assert "run folder: RUN" in capsys.readouterr().err
