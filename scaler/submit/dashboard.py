"""Talk to a Ray cluster's dashboard: submit a job, follow its log, read files that it left."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from scaler.errors import BadInput, ClusterFailed

_ANSWER_TIMEOUT_S = 10.0
_FILE_TIMEOUT_S = 600
_POLL_S = 0.2


class Dashboard:
    """A cluster by its dashboard's address, such as http://127.0.0.1:8265.

    Raises (and so does every method):
        BadInput: the address is no URL, or ray[default] is missing here.
        ClusterFailed: nothing answers there, or it does not let us in.
    """

    def __init__(self, address: str) -> None:
        self.address = _checked(address)
        try:
            import aiohttp  # noqa: F401
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise BadInput(
                f"submitting a job needs ray[default], and it is not all here: {error}",
                hint="pip install 'scaler[submit]'",
            ) from None
        for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env"):
            logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
        with self._talking():
            _require_dashboard(self.address)
            # Ray takes this variable, or RAY_ADDRESS, before the address that it is given.
            os.environ["RAY_API_SERVER_ADDRESS"] = self.address
            self._client = JobSubmissionClient(self.address)

    def submit(self, job: str, command: str, environment: dict[str, Any]) -> None:
        """Start a job that runs the shell command `command`."""
        with self._talking():
            try:
                self._client.submit_job(entrypoint=command, submission_id=job, runtime_env=environment)
            except RuntimeError as error:
                if "exceeds the maximum size" not in str(error):
                    raise
                raise BadInput(
                    f"{environment.get('working_dir')} is too large to send to the cluster",
                    hint="list what the job does not need in its .gitignore or .rayignore",
                ) from None

    def details(self, job: str) -> Any:
        """Give Ray's JobDetails.

        Raises:
            BadInput: there is no such job.
        """
        with self._talking():
            try:
                return self._client.get_job_info(job)
            except RuntimeError as error:
                if "status code 404" not in str(error):
                    raise
                raise BadInput(
                    f"there is no job {job} at {self.address}",
                    hint=f"`ray job list --address {self.address}` lists them",
                ) from None

    def follow(self, job: str, show: Callable[[str], object]) -> Any:
        """Give the job's log to `show` as it grows; returns the JobDetails once it has ended.

        Raises:
            BadInput: there is no such job.
        """

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job):
                show(text)

        self.details(job)
        with self._talking():
            asyncio.run(tail())
        while not (details := self.details(job)).status.is_terminal():
            time.sleep(_POLL_S)
        return details

    def log_files(self, node: str, pattern: str) -> set[str]:
        """Give the names of files below a node's log folder that match."""
        with self._talking():
            reply = self._get("/api/v0/logs", node_id=node, glob=pattern).json()
            return {name for names in reply["data"]["result"].values() for name in names}

    def log_file(self, node: str, name: str) -> Iterator[bytes]:
        """Give a file below a node's log folder in pieces, byte for byte."""
        with self._talking():
            reply = self._get(
                "/api/v0/logs/file", node_id=node, filename=name, lines=-1, timeout=_FILE_TIMEOUT_S
            )
            yield from reply.iter_content(chunk_size=None)

    def _get(self, route: str, **query: Any) -> Any:
        # Ray's own functions for these routes want the port of the GCS as well.
        reply = self._client._do_request("GET", route, params=query, stream=True)
        reply.raise_for_status()
        return reply

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """Turn what Ray, requests and aiohttp raise into one clear error."""
        from aiohttp import ClientError
        from ray.exceptions import AuthenticationError, RayError

        try:
            yield
        except AuthenticationError as error:
            raise ClusterFailed(
                f"the dashboard at {self.address} lets nobody in without its token: "
                f"{str(error).splitlines()[0]}",
                hint="set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH (a file with the "
                "token) to what the cluster was started with",
            ) from None
        except (OSError, RuntimeError, ValueError, ClientError, RayError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ClusterFailed(
                f"cannot talk to the Ray cluster at {self.address}: {lines[-1]}",
                hint="`ray status` on the head node tells whether the cluster is up; the address is its "
                "dashboard's, port 8265 unless it was started with another",
            ) from None


def _checked(address: str) -> str:
    """Only a URL: Ray takes anything else for the address of its GCS, and waits for it."""
    url = urlsplit(address)
    if url.scheme in ("http", "https") and url.hostname:
        return address.rstrip("/")
    host = address.partition("://")[2] or address
    raise BadInput(
        f"--address {address} is not the address of a Ray dashboard",
        hint=f"give its URL, such as http://{host if ':' in host else f'{host}:8265'}",
    )


def _require_dashboard(address: str) -> None:
    """Ask for the version once with a time limit: Ray's client waits forever."""
    import requests

    try:
        reply = requests.get(f"{address}/api/version", timeout=_ANSWER_TIMEOUT_S)
        known = reply.status_code in (401, 403) or "ray_version" in reply.json()
    except ValueError:  # no JSON
        known = False
    except requests.RequestException:
        raise ClusterFailed(
            f"no Ray cluster answers at {address}",
            hint="start one with `ray start --head`, or give its dashboard's URL: --address http://HOST:8265",
        ) from None
    if not known:
        raise ClusterFailed(
            f"what answers at {address} is not a Ray dashboard",
            hint="the dashboard's port is 8265 unless the cluster was started with another",
        )
