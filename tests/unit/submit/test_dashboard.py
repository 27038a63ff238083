import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scaler.errors import BadInput, ClusterFailed
from scaler.submit.dashboard import Dashboard


class Answer(BaseHTTPRequestHandler):
    """Answers everything the same."""

    status, text = 200, "<html>"

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that gives (status, text), on the loopback."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")  # the one is set on connecting; both are restored
    status, text = request.param
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Fixed", (Answer,), {"status": status, "text": text}))
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8265", "auto", "ray://head:10001", "http://", "ftp://head:8265"]
)
def test_only_the_url_of_a_dashboard_is_an_address(address: str) -> None:
    with pytest.raises(BadInput) as raised:
        Dashboard(address)
    assert f"--address {address}" in raised.value.message and "http://" in raised.value.hint


def test_no_cluster_is_told_at_once() -> None:
    with pytest.raises(ClusterFailed, match="no Ray cluster answers at http") as raised:
        Dashboard("http://127.0.0.1:1")
    assert "ray start --head" in raised.value.hint


@pytest.mark.parametrize("server", [(200, "<html>"), (404, "nothing here"), (200, "{}")], indirect=True)
def test_another_server_is_no_dashboard(server: str) -> None:
    with pytest.raises(ClusterFailed, match="is not a Ray dashboard"):
        Dashboard(server)


@pytest.mark.parametrize("server", [(401, "Unauthorized: Missing authentication token")], indirect=True)
def test_a_dashboard_with_a_token_names_the_variables(server: str) -> None:
    with pytest.raises(ClusterFailed, match="without its token") as raised:
        Dashboard(server)
    assert all(
        name in raised.value.hint for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    )


@pytest.mark.parametrize("server", [(200, '{"ray_version": "2.60.0"}')], indirect=True)
def test_a_cluster_that_is_lost_later_is_a_clear_failure(server: str) -> None:
    dashboard = Dashboard(server)
    with pytest.raises(ClusterFailed, match="cannot talk to the Ray cluster at"):
        dashboard.details("scaler-1")  # no JobDetails come back
