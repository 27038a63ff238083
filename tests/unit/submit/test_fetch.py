from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.errors import BadInput, ClusterFailed
from scaler.runs import FILES, RunFolder
from scaler.submit.fetch import fetch, log_folder, put_in_place

JOB = SimpleNamespace(submission_id="scaler-1", driver_node_id="node")


class Served:
    """A dashboard that serves these files of the job; `broken` ends in the middle."""

    def __init__(self, files: dict[str, bytes], broken: str | None = None) -> None:
        self.files = {f"{log_folder('scaler-1')}/{name}": content for name, content in files.items()}
        self.broken = broken

    def log_files(self, node: str, pattern: str) -> set[str]:
        return set(self.files)

    def log_file(self, node: str, name: str):
        yield self.files[name][:3]
        if self.broken and name.endswith(self.broken):
            raise ClusterFailed("the head is gone")
        yield self.files[name][3:]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


@given(files=st.dictionaries(st.sampled_from(FILES), st.binary(max_size=20)))
def test_files_arrive_as_they_are(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("here") / "deep" / "RUN"
    assert fetch(Served(files), JOB, RunFolder(out)) is bool(files)
    assert content(out) == files
    assert not files or [path.name for path in out.parent.iterdir()] == ["RUN"]


def test_only_a_runs_files_are_taken(tmp_path: Path) -> None:
    files = {"../../escape.sh": b"x", "/etc/passwd": b"x", "evil.py": b"x", "launch.yaml": b"a: 1"}
    fetch(Served(files), JOB, RunFolder(tmp_path / "RUN"))
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["RUN", "RUN/launch.yaml"]


def test_a_transfer_that_breaks_off_changes_nothing(tmp_path: Path) -> None:
    served = Served({"launch.yaml": b"new", "records.jsonl": b"new lines"}, broken="records.jsonl")
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "launch.yaml").write_bytes(b"old")
    with pytest.raises(ClusterFailed):
        fetch(served, JOB, RunFolder(tmp_path / "RUN"))
    assert content(tmp_path / "RUN") == {"launch.yaml": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["RUN"]


def test_a_new_run_takes_the_place_of_the_old_one_and_leaves_other_files(tmp_path: Path) -> None:
    for folder, names in {
        "new": ["launch.yaml"],
        "out": ["launch.yaml", "report.html", "batch-config-x.yaml"],
    }.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text(folder)
    put_in_place(tmp_path / "new", tmp_path / "out")
    assert content(tmp_path / "out") == {"launch.yaml": b"new", "batch-config-x.yaml": b"out"}


def test_a_job_that_never_ran_left_nothing(tmp_path: Path) -> None:
    pending = SimpleNamespace(submission_id="scaler-1", driver_node_id=None)
    assert not fetch(Served({"launch.yaml": b""}), pending, RunFolder(tmp_path / "RUN"))


def test_an_out_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot write the out folder"):
        fetch(Served({"launch.yaml": b"x"}), JOB, RunFolder(tmp_path / "file" / "RUN"))
