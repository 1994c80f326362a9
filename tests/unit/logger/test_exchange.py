"""The logger's process that speaks with hardworkers: who may, and what those can have who may not."""

import resource
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from tests.support.exchanges import KEY, Young, asking, exchanging, send
from tests.support.fake_ring import FakeRing
from tests.support.site import Serving, Site, wait_until

from midstream.config import load
from midstream.errors import ConfigError
from midstream.hardworker import Hardworker
from midstream.logger import Logger
from midstream.logger.admission import Admission, Client


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return exchanging(Site(tmp_path))


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (KEY, 0o640, "mode 0640 lets others read"),
        (b"short", 0o600, "5 bytes are no key"),
        (None, 0, "there is no key"),
    ],
)
def test_a_key_that_is_none(site: Site, content: bytes | None, mode: int, reason: str) -> None:
    path = site.folder / "key"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=reason), Logger(site.config):
        pass


@pytest.mark.slow
def test_a_request_that_is_not_known_is_told_so(site: Site) -> None:
    with Serving(site.config):
        for kind in ("tea", 1, None, ["replay"]):
            with asking(site) as line:
                line.send({"kind": kind})
                assert "does not know the request" in line.receive()[0]["failed"]


def silent(port: int, count: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port), 10) for _ in range(count)]


@pytest.mark.slow
def test_a_client_among_many_silent_ones_gets_its_replay(site: Site) -> None:
    """With few descriptors, of which each of the silent clients wants one; and again after that."""
    port = load(site.config).logger.replay_port
    with few_descriptors(128), Serving(site.config):
        send(site, range(3))
        for _ in range(2):
            others = silent(port, 100)
            with Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker:
                began = time.monotonic()
                assert [found.sequence for found in islice(hardworker.replay(), 3)] == [0, 1, 2]
                assert time.monotonic() - began < 8
            for one in others:
                one.close()


@contextmanager
def few_descriptors(count: int) -> Iterator[None]:
    """For what is started meanwhile; this process itself keeps its limit."""
    prlimit = resource.getrlimit(resource.RLIMIT_NOFILE)
    start = subprocess.Popen

    def limited(command: list[str], **options: Any) -> Any:
        if "midstream.logger.exchange" in command:
            command = ["prlimit", f"--nofile={count}:{count}", *command]
        return start(command, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("midstream.logger.companion.subprocess.Popen", limited)
        yield
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == prlimit


class Admitting(threading.Thread):
    """An admission on loopback whose clients are known when they say a byte, and go when they say another."""

    def __init__(self) -> None:
        super().__init__()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self.listener.getsockname()[1]
        self.most = 0
        self._now = 0
        self._admission = Admission(self.listener, self._serve)
        self._admission._most = 8

    def __enter__(self) -> "Admitting":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.join()
        self.listener.close()

    def run(self) -> None:
        with suppress(OSError):
            self._admission.run()

    def _serve(self, client: Client) -> None:
        self.most = max(self.most, len(self._admission._clients))
        with suppress(OSError):
            if client.socket.recv(1):
                client.known = True
                client.socket.sendall(b"!")
                client.socket.recv(1)


@pytest.mark.slow
def test_strangers_give_way_and_those_who_are_known_do_not() -> None:
    with Admitting() as admitting:
        first = socket.create_connection(("127.0.0.1", admitting.port), 10)
        first.sendall(b"x")
        assert first.recv(1) == b"!"
        others = silent(admitting.port, 40)
        last = socket.create_connection(("127.0.0.1", admitting.port), 10)
        last.sendall(b"x")
        assert last.recv(1) == b"!"
        first.settimeout(0.1)
        with pytest.raises(TimeoutError):
            first.recv(1)  # it is still served
        for one in (first, last, *others):
            one.close()
    assert admitting.most <= 8


def test_the_process_that_answers_is_replaced(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it was its listener that failed: it ends then, and does not stay without one."""
    monkeypatch.setattr("midstream.logger.companion.RESTART_DELAY", 0)
    with Serving(site.config) as serving:
        assert serving.logger._exchange is not None
        process = serving.logger._exchange._process
        first = process._child
        assert first is not None
        first.kill()
        wait_until(lambda: process._child is not first)
        send(site, range(3))
        with Hardworker(site.config, source=Young(FakeRing(1 << 16))) as hardworker:
            assert [found.sequence for found in islice(hardworker.replay(), 3)] == [0, 1, 2]
