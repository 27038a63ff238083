"""Folders in object storage, on real servers: what is put comes back, and what goes wrong is said at once."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from storage_servers import BUCKET, S3, be, gcs_server, s3_server

from scaler.errors import BadInput, ClusterFailed, ScalerError
from scaler.storage import Storage, inside, is_url, split_name


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with gcs_server(tmp_path_factory.mktemp("gcs")) as options:
        yield options


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch)


@pytest.fixture(params=["s3", "gcs"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3").url("deep/run"))
    return f"gs://anonymous@{BUCKET}/deep/run?{request.getfixturevalue('gcs')}"


def test_what_is_put_comes_back(url: str, tmp_path: Path) -> None:
    storage, file, again = Storage(url), tmp_path / "file", tmp_path / "again"
    assert storage.names() == set()
    for data in (b"first", b"", bytes(range(256)) * 2**16):  # the last in several parts
        file.write_bytes(data)
        storage.put(file, "records.jsonl")
        storage.get("records.jsonl", again)
        assert again.read_bytes() == data
    storage.put(file, "launch.yaml")
    assert storage.names() == {"records.jsonl", "launch.yaml"}
    storage.delete("records.jsonl")
    assert Storage(url).names() == {"launch.yaml"}


def test_the_usual_variable_names_the_server(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put("elsewhere", "a", b"a")
    be(monkeypatch, AWS_ENDPOINT_URL=f"http://{s3.host}")
    assert Storage(f"s3://{BUCKET}/elsewhere").names() == {"a"}


def fault(url: str, file: Path) -> ScalerError:
    """List, then put: what a run does first."""
    file.write_text("x", encoding="utf-8")
    with pytest.raises(ScalerError) as raised:
        storage = Storage(url)
        storage.names()
        storage.put(file, "launch.yaml")
    assert raised.value.hint and "\n" not in raised.value.message
    return raised.value


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("hdfs://host/run", "unknown scheme hdfs://"),
        ("s3:///run", "names no bucket"),
        ("s3://bucket/run?endpoint=here", "endpoint; did you mean 'endpoint_override'?"),
        ("gs://bucket/run?region=here", "unknown options: region"),
        ("s3://bucket/run?region=x&scheme=ftp", "Invalid S3 connection scheme"),
    ],
)
def test_a_wrong_url_is_named(url: str, says: str, tmp_path: Path) -> None:
    error = fault(url, tmp_path / "file")
    assert isinstance(error, BadInput) and says in error.message


def test_a_secret_in_a_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    error = fault("s3://key:hunter2@bucket/run", tmp_path / "file")
    assert isinstance(error, BadInput) and "hunter2" not in str(error) and "AWS_ACCESS_KEY_ID" in error.hint


def test_a_bucket_that_is_not_there(s3: S3, gcs: str, tmp_path: Path) -> None:
    for url in (s3.url("run", bucket="absent"), f"gcs://anonymous@absent/run?{gcs}"):
        error = fault(url, tmp_path / "file")
        assert isinstance(error, BadInput) and "there is no bucket absent" in error.message


def test_keys_that_are_not_known(s3: S3, tmp_path: Path) -> None:
    with s3.letting_nobody_in():
        error = fault(s3.url("run"), tmp_path / "file")
    assert isinstance(error, BadInput) and error.message.startswith("no permission for s3://runs/run")
    assert "AWS_ACCESS_KEY_ID" in error.hint


def test_a_folder_that_may_not_be_written(s3: S3, tmp_path: Path) -> None:
    s3.deny_writing("theirs")
    error = fault(s3.url("theirs"), tmp_path / "file")
    s3.allow_all()
    assert isinstance(error, BadInput) and "no permission" in error.message


def test_google_without_credentials(gcs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    error = fault(f"gs://{BUCKET}/run?{gcs}", tmp_path / "file")
    assert isinstance(error, BadInput) and "GOOGLE_APPLICATION_CREDENTIALS" in error.hint


@pytest.mark.timeout(90)  # pyarrow itself waits 100 s for a deaf S3
@pytest.mark.parametrize(("scheme", "listens"), [("s3", False), ("s3", True), ("gs", False)])
def test_a_server_that_does_not_answer_is_not_waited_for_long(
    scheme: str, listens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scaler.storage._TIMEOUT_S", 1)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        if listens:
            deaf.listen()
        place = f"endpoint_override=127.0.0.1:{deaf.getsockname()[1]}&scheme=http"
        error = fault(f"{scheme}://anonymous@bucket/run?{place}", tmp_path / "file")
    assert isinstance(error, ClusterFailed) and "does not answer" in error.message


def test_names_in_urls() -> None:
    assert not is_url("RUN") and not is_url(Path("/nfs/RUN")) and is_url("s3://bucket/run")
    assert inside("RUN", "report.html") == "RUN/report.html"
    url = inside("s3://bucket/run/?scheme=http", "report.html")
    assert url == "s3://bucket/run/report.html?scheme=http"
    assert split_name(url) == ("s3://bucket/run?scheme=http", "report.html")
