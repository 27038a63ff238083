import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from scaler.cluster import Cluster
from scaler.errors import BadInput
from scaler.launch import LaunchConfig
from scaler.runs import RunFolder
from scaler.submit.ship import STAGED, comes_back, ship, working_folder

HERE = Cluster(name="here", workers=1, kind="cpu")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a workload in a folder of its own, and another workload elsewhere."""
    for folder in ("project/src", "elsewhere", "staging"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "project/src/train.py").touch()
    (tmp_path / "elsewhere/other.py").touch()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.mark.parametrize(
    ("storage_path", "back"),
    [("RUN", True), ("runs/a", True), ("/nfs/run", False), ("s3://bucket/run", False)],
)
def test_a_relative_storage_path_lies_with_the_job(storage_path: str, back: bool) -> None:
    assert comes_back(storage_path) is back


@pytest.mark.parametrize(
    ("workload", "folder", "address"),
    [
        ("digits", None, "digits"),
        ("src/train.py:workload", "project", "src/train.py:workload"),
        ("../project/src/train.py:make", "project", "src/train.py:make"),
        ("../elsewhere/other.py:workload", "elsewhere", "other.py:workload"),
        ("src.train:workload", "project", "src.train:workload"),
        ("installed.package:workload", None, "installed.package:workload"),
    ],
)
def test_the_job_works_in_the_folder_of_the_workload(
    workload: str, folder: str | None, address: str, project: Path
) -> None:
    assert working_folder(workload) == (folder and project.parent / folder, address)


@pytest.mark.parametrize(
    ("workload", "says"),
    [
        ("digts", "did you mean 'digits'"),
        ("src/tran.py:workload", "did you mean"),
        ("nix", "unknown workload"),
    ],
)
def test_a_workload_that_is_not_there_is_found_before_anything_is_sent(
    workload: str, says: str, project: Path
) -> None:
    with pytest.raises(BadInput) as raised:
        working_folder(workload)
    assert says in raised.value.message and raised.value.hint


def test_a_job_takes_its_launch_this_scaler_and_the_run_to_continue(project: Path) -> None:
    launch = LaunchConfig(workload="src/train.py:workload", cluster=HERE, address="auto")
    (project / "EARLIER").mkdir()
    run = RunFolder(project / "EARLIER")
    run.records_file.write_text("{}\n")
    (run.path / "notes.txt").touch()
    staging = project.parent / "staging"
    environment = ship(launch, staging, run)
    assert environment["working_dir"] == str(project)
    package, dist_info, staged = map(Path, environment["py_modules"])
    assert (package / "job.py").is_file() and package.name == "scaler"
    (found,) = metadata.distributions(name="scaler", path=[str(dist_info.parent)])
    assert found.version == metadata.version("scaler") and found.requires == metadata.requires("scaler")
    assert staged.name == STAGED
    assert LaunchConfig.load(staged / "launch.yaml") == launch.model_copy(update={"address": None})
    versions = json.loads((staged / "versions.json").read_text())
    assert versions["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert [path.name for path in (staged / "run").iterdir()] == ["records.jsonl"]


def test_run_folders_stay_at_home_and_the_package_stays_whole(project: Path) -> None:
    for name in ("RUN", "report"):  # the package has a folder of that name, and patterns hold for it too
        (project / name).mkdir()
        (project / name / "records.jsonl").touch()
    launch = LaunchConfig(workload="src/train.py:workload", cluster=HERE)
    assert ship(launch, project.parent / "staging", None)["excludes"] == ["__pycache__/", "/RUN/"]
