"""A folder in object storage, s3:// or gs://, through pyarrow."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from scaler.errors import BadInput, ClusterFailed, ScalerError, nearest


class _Service(NamedTuple):
    options: tuple[str, ...]
    """That a URL may have: some of pyarrow's."""
    credentials: str
    """Where they come from."""


_GCS = _Service(
    ("scheme", "endpoint_override"),
    "GOOGLE_APPLICATION_CREDENTIALS (a file), or `gcloud auth application-default login`",
)
_S3 = _Service(
    ("region", "scheme", "endpoint_override", "tls_ca_file_path"),
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws",
)
_SERVICES = {"s3": _S3, "gs": _GCS, "gcs": _GCS}
# pyarrow's own patience with a server that does not answer is 100 s for S3 and 15 minutes for GCS. One of GCS
# that takes a connection and then says nothing is given up after 120 s, whatever pyarrow is told.
_TIMEOUT_S = 5
_ATTEMPTS = 3
_CHUNK_BYTES = 8 * 2**20

_REFUSALS = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "INVALID_SIGNATURE",
    "MISSING_AUTHENTICATION_TOKEN",
    "SIGNATURE_DOES_NOT_MATCH",
    "ExpiredToken",
    "token has expired",
    "HTTP status 401",
    "HTTP status 403",
    "HTTP status code: 401",
    "HTTP status code: 403",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "OAuth2 access token",
)
"""What pyarrow says of AWS and Google that refuse."""


def is_url(path: str | Path) -> bool:
    """Whether a path is of object storage."""
    return "://" in str(path)


def split_name(file: str) -> tuple[str, str]:
    """Give the folder and the name of a file at a URL."""
    url = urlsplit(file)
    folder, _, name = url.path.rpartition("/")
    return url._replace(path=folder).geturl(), name


def inside(folder: str | Path, name: str) -> str:
    """Name a file of a folder, which may be a URL with options."""
    if not is_url(folder):
        return str(Path(folder) / name)
    url = urlsplit(str(folder))
    return url._replace(path=f"{url.path.rstrip('/')}/{name}").geturl()


class Storage:
    """A folder at a URL such as s3://bucket/run or gs://bucket/run?endpoint_override=HOST:PORT&scheme=http.

    Raises (and so does every method):
        BadInput: the URL is wrong, there is no such bucket, or no permission.
        ClusterFailed: the storage does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        parts, options = urlsplit(url), _checked(url)
        self._service = _SERVICES[parts.scheme]
        self._bucket = parts.netloc.rpartition("@")[2]
        self._root = f"{self._bucket}{parts.path.rstrip('/')}"
        with self._talking():
            self._files = self._connect(options, parts.username == "anonymous")

    def names(self) -> set[str]:
        """List what lies directly in the folder; empty where there is no folder."""
        from pyarrow.fs import FileSelector, FileType

        with self._talking():
            found = self._files.get_file_info(FileSelector(self._root, allow_not_found=True))
            if not found and self._files.get_file_info(self._bucket).type == FileType.NotFound:
                raise FileNotFoundError
        return {info.base_name for info in found} - {""}

    def get(self, name: str, file: Path) -> None:
        """Copy a file of the folder to `file`."""
        place = f"{self._root}/{name}"
        with self._talking(), self._files.open_input_stream(place) as source, file.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK_BYTES)

    def put(self, file: Path, name: str) -> None:
        """Copy `file` into the folder, whole or not at all."""
        place = f"{self._root}/{name}"
        # pyarrow's copy_files would ignore a failure of the last part.
        with self._talking(), file.open("rb") as source, self._files.open_output_stream(place) as target:
            shutil.copyfileobj(source, target, _CHUNK_BYTES)

    def delete(self, name: str) -> None:
        """Remove a file of the folder."""
        with self._talking():
            self._files.delete_file(f"{self._root}/{name}")

    def _connect(self, options: dict[str, str], anonymous: bool) -> Any:
        from pyarrow import fs

        if self._service is _GCS:
            limit = timedelta(seconds=_TIMEOUT_S)
            return fs.GcsFileSystem(anonymous=anonymous, retry_time_limit=limit, **options)
        elsewhere = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if elsewhere and "endpoint_override" not in options:
            url = urlsplit(elsewhere)
            options = {"endpoint_override": url.netloc, "scheme": url.scheme, **options}
        if not options.keys() & {"region", "endpoint_override"}:
            options["region"] = fs.resolve_s3_region(self._bucket)
        return fs.S3FileSystem(
            connect_timeout=_TIMEOUT_S,
            request_timeout=_TIMEOUT_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
            allow_delayed_open=True,  # one request for a small file
            **options,
        )

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """Turn what pyarrow raises, which only its text tells apart, into one clear error."""
        try:
            yield
        except Exception as error:
            raise self._fault(error) from None

    def _fault(self, error: Exception) -> ScalerError:
        text = str(error)
        if isinstance(error, ValueError):
            return BadInput(f"{self.url}: {text}", hint="correct the URL")
        if isinstance(error, FileNotFoundError) or "NO_SUCH_BUCKET" in text or "' not found" in text:
            return BadInput(
                f"there is no bucket {self._bucket} for {self.url}",
                hint="make the bucket first, or give another: --out, or storage_path in the launch file",
            )
        if any(word in text for word in _REFUSALS):
            return BadInput(
                f"no permission for {self.url}: {_short(text)}",
                hint="give credentials that may list, read, write and delete there: "
                + self._service.credentials,
            )
        return ClusterFailed(
            f"the storage of {self.url} does not answer: {_short(text)}",
            hint="check the network, and endpoint_override and scheme in the URL if it has them",
        )


def _checked(url: str) -> dict[str, str]:
    """Give the options of a URL.

    Raises:
        BadInput: another scheme, no bucket, a password, or unknown options.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SERVICES:
        raise BadInput(
            f"cannot keep a run folder at {url}: unknown scheme {parts.scheme}://",
            hint="give a path, s3://bucket/run or gs://bucket/run",
        )
    known, credentials = _SERVICES[parts.scheme]
    if parts.password is not None:
        raise BadInput(
            f"the URL of {parts.hostname} holds a password, which launch.yaml and messages would show",
            hint=f"give credentials by {credentials}",
        )
    if not parts.hostname:
        raise BadInput(f"{url} names no bucket", hint=f"such as {parts.scheme}://bucket/run")
    options = dict(parse_qsl(parts.query))
    if faults := [f"{name}{nearest(name, known)}" for name in options if name not in known]:
        raise BadInput(
            f"{url} has unknown options: {', '.join(faults)}", hint=f"the options are {', '.join(known)}"
        )
    return options


def _short(text: str) -> str:
    """Cut what only a maintainer of the storage would read."""
    return text.partition("(Request ID")[0].partition(" error_info=")[0].partition("; Details:")[0].strip()
