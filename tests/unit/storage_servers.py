"""Servers of object storage on the loopback interface: moto's S3 and an emulator of GCS."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3

BUCKET = "runs"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def server(command: list[str], port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server as a child until it answers; end it afterwards."""
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as child:
        try:
            for _ in range(600):
                assert child.poll() is None, log.read_text()
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            yield child
        finally:
            child.terminate()


class S3:
    """A bucket in an S3-compatible server."""

    def __init__(self, port: int, child: subprocess.Popen[bytes]) -> None:
        self.host = f"127.0.0.1:{port}"
        self.child = child
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=f"http://{self.host}",
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        self.client.create_bucket(Bucket=BUCKET)

    def url(self, folder: str, bucket: str = BUCKET) -> str:
        return f"s3://{bucket}/{folder}?endpoint_override={self.host}&scheme=http"

    def names(self, folder: str) -> set[str]:
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{folder}/").get("Contents", [])
        return {item["Key"].removeprefix(f"{folder}/") for item in found} - {""}

    def read(self, folder: str, name: str) -> bytes:
        return bytes(self.client.get_object(Bucket=BUCKET, Key=f"{folder}/{name}")["Body"].read())

    def put(self, folder: str, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=f"{folder}/{name}", Body=data)

    @contextlib.contextmanager
    def letting_nobody_in(self) -> Iterator[None]:
        """Ask for keys that it knows; it knows none."""
        self._post("reset-auth", b"0")
        try:
            yield
        finally:
            self._post("reset-auth", b"inf")

    def _post(self, what: str, data: bytes) -> None:
        url = f"http://{self.host}/moto-api/{what}"
        request = urllib.request.Request(url, data, {"Content-Type": "text/plain"})
        urllib.request.urlopen(request).close()

    def deny_writing(self, folder: str) -> None:
        """Let nobody put anything into a folder."""
        rule = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject"}
        rule["Resource"] = f"arn:aws:s3:::{BUCKET}/{folder}/*"
        policy = json.dumps({"Version": "2012-10-17", "Statement": [rule]})
        self.client.put_bucket_policy(Bucket=BUCKET, Policy=policy)

    def allow_all(self) -> None:
        self.client.delete_bucket_policy(Bucket=BUCKET)


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with server(command, port, folder / "moto.log") as child:
        yield S3(port, child)


@contextlib.contextmanager
def gcs_server(folder: Path) -> Iterator[str]:
    """Give what a URL needs to reach it."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("gcp-storage-emulator")), "start", "--in-memory"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--default-bucket", BUCKET]
    with server(command, port, folder / "gcs.log"):
        yield f"endpoint_override=127.0.0.1:{port}&scheme=http"


def be(monkeypatch: Any, **environment: str) -> None:
    """Be this user of S3, and nobody that the machine's own settings name."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**KEYS, **environment}.items():
        monkeypatch.setenv(name, value)
