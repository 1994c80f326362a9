"""Whatever is wrong when the logger starts or runs: what it has acknowledged is stored."""

import errno
import os
import resource
import select
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.support.program import Program, unacknowledged, untaken
from tests.support.site import SIZE, Serving, Site, ThreadWorker, verify, wait_until

from midstream.errors import NetworkError
from midstream.logger import channel, server
from midstream.logger.companion import Companion
from midstream.logger.holder import Child


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["logger", "spool"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return Site(tmp_path, spool=request.param)


def is_refused(site: Site) -> bool:
    with suppress(ConnectionRefusedError), site.connect():
        return False
    return True


@contextmanager
def full_disk(site: Site) -> Iterator[Callable[[], None]]:
    """The database is to be made on a disk without room. Called, it gets some."""
    small = site.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", small], check=True)
    try:
        filler = small / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        site.url = f"sqlite:///{small}/midstream.db"
        site.configure()
        yield filler.unlink
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


@contextmanager
def locked(site: Site) -> Iterator[Callable[[], None]]:
    with closing(sqlite3.connect(site.folder / "midstream.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield other.rollback


@contextmanager
def missing(site: Site) -> Iterator[Callable[[], None]]:
    """The folder, as that of a disk that is not mounted."""
    folder = site.folder / "disk"
    site.url = f"sqlite:///{folder}/midstream.db"
    site.configure()
    yield folder.mkdir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        pytest.param(
            full_disk,
            "make room",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts a small disk"),
        ),
        (locked, "locked"),
        (missing, "its folder must exist"),
    ],
)
def test_nobody_is_let_in_before_the_database_is_open(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: Callable[[Site], AbstractContextManager[Callable[[], None]]],
    reason: str,
) -> None:
    monkeypatch.setattr(server, "_start_worker", ThreadWorker)
    with trouble(site) as mend:
        with Serving(site.config, spool=site.spool) as serving:
            assert is_refused(site)
            time.sleep(0.5)
            mend()
            wait_until(lambda: not is_refused(site))
            with site.connect() as client:
                client.sendall(bytes(SIZE) * 100)
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
        assert serving.error is None
        verify(site)
        assert site.query("SELECT count(*) FROM messages") == [(100,)]
    assert (
        caplog.text.count("logger: waiting: ")
        == caplog.text.count("goes on")
        == caplog.text.count(reason)
        == 1
    )


@pytest.mark.slow
def test_a_stop_while_nobody_was_let_in_loses_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_start_worker", ThreadWorker)
    with locked(site), Serving(site.config, spool=site.spool) as serving:
        assert is_refused(site)
        serving.stop()
    assert serving.error is None


class Refusing:
    """Starts the logger's workers, or as often as told raises an error, or kills them at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.errors: list[OSError] = []
        self.kills = 0
        self.workers: list[Child] = []
        start = server._start_worker

        def refuse_or_start(channel: socket.socket) -> Child:
            if self.errors:
                raise self.errors.pop()
            worker = start(channel)
            self.workers.append(worker)
            if self.kills:
                self.kills -= 1
                worker.kill()
            return worker

        monkeypatch.setattr(server, "_start_worker", refuse_or_start)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Refusing:
    return Refusing(monkeypatch)


@pytest.mark.slow
def test_a_worker_that_is_killed_while_it_opens_the_database(
    site: Site, refusing: Refusing, caplog: pytest.LogCaptureFixture
) -> None:
    refusing.kills = 1
    serving = Serving(site.config, spool=site.spool)
    with serving:
        assert is_refused(site)
        wait_until(lambda: not is_refused(site))
        with site.connect() as client:
            client.sendall(bytes(SIZE) * 10)
            site.wait_for("SELECT count(*) FROM messages", [(10,)])
            refusing.kills = 1
            refusing.workers[-1].kill()
            client.sendall(bytes(SIZE) * 10)
            site.wait_for("SELECT count(*) FROM messages", [(20,)])
    verify(site)
    assert caplog.text.count("killed by SIGKILL") == 2  # once each time
    assert serving.error is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [errno.EAGAIN, *(pytest.param(each, marks=pytest.mark.slow) for each in (errno.ENOMEM, errno.EMFILE))],
)
def test_no_process_can_be_started_for_a_while(
    site: Site, refusing: Refusing, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    refusing.errors = [OSError(number, os.strerror(number)) for _ in range(2)]
    serving = Serving(site.config, spool=site.spool)
    with serving:
        wait_until(lambda: not is_refused(site))
        with site.connect() as client:
            client.sendall(bytes(SIZE) * 10)
            site.wait_for("SELECT count(*) FROM messages", [(10,)])
            refusing.errors = [OSError(number, os.strerror(number)) for _ in range(3)]
            refusing.workers[-1].kill()
            client.sendall(bytes(SIZE) * 10)
            site.wait_for("SELECT count(*) FROM messages", [(20,)])
    verify(site)
    assert caplog.text.count(f"cannot be started: {os.strerror(number)}") == 2
    assert serving.error is None


@pytest.mark.slow
def test_a_stop_while_no_process_can_be_started_tells_what_is_lost(
    site: Site, refusing: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("midstream.logger.holder.STOP_PATIENCE", 0.5)
    with Serving(site.config, spool=site.spool) as serving, site.connect() as client:
        client.sendall(bytes(SIZE))
        wait_until(lambda: serving.logger.summary.messages == 1)
        wait_until(lambda: untaken(client) == 0)
        refusing.errors = [OSError(errno.EAGAIN, "no process") for _ in range(100)]
        refusing.workers[-1].kill()
        wait_until(lambda: len(refusing.errors) < 100)
        client.sendall(bytes(SIZE) * 3)
        wait_until(lambda: unacknowledged(client) == 0)
        serving.stop()
    assert "no process" in str(serving.error)
    assert f"Up to {3 * SIZE} received bytes were not stored, of 1 connections" in str(serving.error)


@pytest.fixture(params=[True, pytest.param(False, marks=pytest.mark.slow)], ids=["filters", "no filters"])
def filters(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some kernels let only the privileged attach one to a socket, and the logger is not."""

    def refuse(sock: socket.socket) -> None:
        raise PermissionError

    if not request.param:
        monkeypatch.setattr("midstream.logger.door.deafen", refuse)
        monkeypatch.setattr("midstream.logger.peer.deafen", refuse)


def test_a_stop_in_the_middle_of_a_flood_stores_all_that_was_acknowledged(
    site: Site, filters: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_start_worker", ThreadWorker)
    sent = 0
    with Serving(site.config, spool=site.spool) as serving, site.connect() as client:
        client.setblocking(False)
        stopping = threading.Thread(target=serving.stop)
        deadline = time.monotonic() + 0.3
        with suppress(OSError):
            while True:
                if select.select([client], [client], [], 0.01)[0] and client.recv(1) == b"":
                    break
                with suppress(BlockingIOError):
                    sent += client.send(bytes(SIZE) * 100)
                if time.monotonic() > deadline and stopping.ident is None:
                    stopping.start()
        stopping.join()
        acknowledged = sent - unacknowledged(client)
    assert serving.error is None
    ((stored, reset, reason),) = site.query("SELECT bytes, reset, reason FROM connections")
    assert acknowledged <= stored <= sent
    assert stored > 100 * SIZE
    assert (reset, reason) == (0, "the logger was stopped")


@pytest.mark.slow
def test_a_stop_ends_though_sensors_connect_again_at_once(
    site: Site, filters: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_start_worker", ThreadWorker)
    over = threading.Event()

    def connect_again() -> None:
        while not over.is_set():
            with suppress(OSError), site.connect() as client:
                while True:
                    client.sendall(bytes(SIZE))
                    time.sleep(0.001)
            time.sleep(0.001)

    with Serving(site.config, spool=site.spool) as serving:
        sensor = threading.Thread(target=connect_again)
        sensor.start()
        try:
            site.wait_for("SELECT count(*) > 10 FROM messages", [(True,)])
            began = time.monotonic()
            serving.stop()
            took = time.monotonic() - began
        finally:
            over.set()
            sensor.join()
    assert serving.error is None
    assert took < 5


def test_a_companion_that_cannot_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = subprocess.Popen
    refusals = [OSError(errno.EAGAIN, "no process")] * 2

    def refuse_or_start(*arguments: object, **options: object) -> object:
        if refusals:
            raise refusals.pop()
        return start(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", refuse_or_start)
    monkeypatch.setattr("midstream.logger.companion.RESTART_DELAY", 0.0)
    companion = Companion("json.tool", {"a": 1})
    try:
        for _ in range(3):
            companion.keep()
            time.sleep(0.01)
        assert refusals == [] and companion._child is not None
    finally:
        companion.close()
    assert caplog.text.count("json.tool cannot be started: no process") == 1


def sensors(site: Site, count: int) -> list[socket.socket]:
    """So many that begin to connect."""
    clients = [socket.socket() for _ in range(count)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex((site.address, site.port))
    return clients


def send(clients: list[socket.socket]) -> list[socket.socket]:
    """Three messages from each that believes to be connected: these."""
    poll = select.poll()
    for client in clients:
        poll.register(client, select.POLLOUT)
    able = {number for number, _ in poll.poll(100)}
    sending = [client for client in clients if client.fileno() in able]
    for client in sending:
        client.sendall(bytes(SIZE) * 3)
    return sending


def acknowledged(clients: list[socket.socket]) -> int:
    """Messages of three that each has sent."""
    return sum(3 * SIZE - unacknowledged(client) for client in clients) // SIZE


@pytest.mark.slow
def test_more_sensors_than_descriptors(site: Site) -> None:
    """Those for whom there is none are not let in, and not acknowledged, until others have ended."""
    with Program(site, files=64) as logger, ExitStack() as undo:
        logger.wait_for("listening")
        clients = sensors(site, 80)
        for client in clients:
            undo.callback(client.close)
        sending = send(clients)
        logger.wait_for("no more sensors are let in")
        site.wait_for("SELECT count(*) >= 30 FROM messages", [(1,)])
        time.sleep(0.2)
        first = [client for client in sending if not unacknowledged(client)]
        assert 10 <= len(first) <= 40
        assert site.query("SELECT count(*) FROM messages") == [(3 * len(first),)]
        for client in first:
            client.shutdown(socket.SHUT_WR)
        site.wait_for(f"SELECT count(*) > {len(first)} FROM connections", [(1,)])
        assert logger.stop() == 0
        assert logger.count("no more sensors") == 1
        others = [client for client in sending if client not in first]
        assert site.query("SELECT count(*) FROM messages") == [(3 * len(first) + acknowledged(others),)]
    verify(site)


@pytest.mark.slow
def test_a_limit_that_becomes_smaller_while_sensors_connect(site: Site) -> None:
    with Program(site) as logger, ExitStack() as undo:
        logger.wait_for("listening")
        pid = logger.process.pid
        used = len(os.listdir(f"/proc/{pid}/fd"))
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 2, hard))
        clients = sensors(site, 5)
        for client in clients:
            undo.callback(client.close)
        assert len(send(clients)) == 5
        site.wait_for("SELECT count(*) FROM messages", [(6,)])
        wait_until(lambda: acknowledged(clients) == 15)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
        site.wait_for("SELECT count(*) FROM messages", [(15,)])
        assert logger.stop() == 0
        assert logger.count("cannot be accepted: Too many open files") == 1
    verify(site)


def test_too_few_descriptors_to_begin_with(site: Site) -> None:
    with Program(site, files=40) as logger:
        assert logger.process.wait(30) == NetworkError.exit_code
        wait_until(lambda: logger.count("may have 40 files open") == 1)


def test_started_twice(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same port the second ends; on another one both store in the same file."""
    monkeypatch.setattr(server, "_start_worker", ThreadWorker)
    (site.folder / "other").mkdir()
    other = Site(site.folder / "other", site.url, spool=site.spool)
    with (
        Serving(site.config, spool=site.spool),
        pytest.raises(NetworkError, match="already in use"),
        Serving(site.config, spool=site.spool),
    ):
        pass
    with (
        Serving(site.config, spool=site.spool),
        Serving(other.config, spool=site.spool),
        site.connect() as one,
        other.connect() as two,
    ):
        for _ in range(20):
            one.sendall(bytes(SIZE) * 10)
            two.sendall(bytes(SIZE) * 10)
        for client in (one, two):
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
    verify(site)
    assert site.query("SELECT count(*) FROM messages GROUP BY connection_id") == [(200,), (200,)]


def test_descriptors_that_have_no_room_are_noticed_and_none_is_left_open() -> None:
    ours, theirs = channel.pair()
    with ours, theirs:
        channel.send(ours, {"connections": []}, [ours] * 5)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.open(os.devnull, os.O_RDONLY)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, hard))
        try:
            with pytest.raises(channel.CutOffError, match="LimitNOFILE"):
                channel.receive(theirs)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert os.open(os.devnull, os.O_RDONLY) == free
        os.close(free)


def test_too_many_descriptors_on_their_way_are_sent_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_start_worker", ThreadWorker)
    send_message = channel.send
    refusals = [OSError(errno.ETOOMANYREFS, "Too many references")] * 3

    def refuse_or_send(*arguments: Any) -> None:
        if refusals and len(arguments) > 2:
            raise refusals.pop()
        send_message(*arguments)

    monkeypatch.setattr(channel, "send", refuse_or_send)
    with Serving(site.config, spool=site.spool), site.connect() as client:
        client.sendall(bytes(SIZE))
        site.wait_for("SELECT count(*) FROM messages", [(1,)])
    assert refusals == []
