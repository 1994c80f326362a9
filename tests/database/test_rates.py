"""Messages a second through the logger into each database: `pytest -m slow -s` shows the figures."""

import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.database import servers
from tests.support import site as sites
from tests.support.site import Serving, Site

CHUNK = 1024  # messages sent in one call


@pytest.fixture(scope="module")
def postgres() -> Iterator[servers.Postgres]:
    """As a user has it: it waits for the disk."""
    with servers.postgres(sync=True) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("connections", [1, 50])
@pytest.mark.parametrize(("size", "count"), [(64, 500 * CHUNK), (1024, 100 * CHUNK)])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "jetstream", "jetstream-1"])
def test_rate(
    kind: str,
    size: int,
    count: int,
    connections: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the first connection to the last FIN of the logger, which says that all is stored."""
    url = ""
    if kind == "postgresql":
        server: servers.Postgres = request.getfixturevalue("postgres")
        url = server.new_database(f"rate{size}x{connections}")
    elif kind.startswith("jetstream"):
        cluster: servers.Nats = request.getfixturevalue("cluster")
        url = cluster.url(f"{kind}{size}x{connections}", replicas=1 if kind.endswith("1") else 3)
        count //= 2
    monkeypatch.setattr(sites, "SIZE", size)
    site = Site(tmp_path, url)
    site.configure(interval=0.1)
    chunk = os.urandom(size * CHUNK)
    before = _cpu()
    with Serving(site.config) as serving:
        started = time.monotonic()
        clients = [site.connect() for _ in range(connections)]
        for _ in range(count // CHUNK // connections):
            for client in clients:
                client.settimeout(60)
                client.sendall(chunk)
        for client in clients:
            client.shutdown(socket.SHUT_WR)
        for client in clients:
            assert client.recv(1) == b""
            client.close()
        seconds = time.monotonic() - started
    summary = serving.summary
    assert summary.messages == count // CHUNK // connections * connections * CHUNK
    cpu = (_cpu() - before) / summary.messages * 1e6
    with capsys.disabled():
        print(
            f"\n{kind}, {size} B, {connections} connections: {summary.messages / seconds:,.0f} messages/s, "
            f"{summary.bytes / seconds / 1e6:.1f} MB/s, {summary.commits} commits, {cpu:.1f} µs of the worker"
        )
    assert summary.waits == 0
    if kind == "sqlite" and size == 64:
        assert summary.messages / seconds > 50_000


def _cpu() -> float:
    """CPU seconds of child processes that have ended: the worker's."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
