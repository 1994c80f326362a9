"""The spool: whom it lets in, how it knows a connection, how it hands back, and what a full one does."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from random import Random

import pytest
from tests.support.program import Program, unacknowledged
from tests.support.site import SIZE, Serving, Site, ThreadWorker, Workers, verify, wait_until

from midstream.config import load as load_config
from midstream.errors import ConfigError
from midstream.logger import Logger, server, spool
from midstream.logger.spool import Backfill
from midstream.logger.syn import first_sequence
from midstream.network import Host, load, write

ROOT = Path(__file__).resolve().parents[3]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, spool=True)


@pytest.fixture
def emptying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the place of what sends the spool to the logger."""
    monkeypatch.setattr(spool, "BACKFILL", "tests.support.emptying")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("spool", [False, True])
def test_the_first_sequence_number_is_that_of_the_sensor(tmp_path: Path, spool: bool) -> None:
    tcp_repair, tcp_repair_queue, tcp_queue_seq, send_queue = 19, 20, 21, 2  # linux/tcp.h
    site = Site(tmp_path, spool=spool)
    expected = []
    with Serving(site.config, spool=spool):
        for _ in range(3):
            with site.connect() as client:
                client.setsockopt(socket.IPPROTO_TCP, tcp_repair, 1)
                client.setsockopt(socket.IPPROTO_TCP, tcp_repair_queue, send_queue)
                sequence = client.getsockopt(socket.IPPROTO_TCP, tcp_queue_seq) & 0xFFFFFFFF
                client.setsockopt(socket.IPPROTO_TCP, tcp_repair, 0)
                expected.append((client.getsockname()[1], sequence, spool))
                client.sendall(bytes(SIZE))
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
    assert site.query("SELECT port, first, spooled FROM connections ORDER BY id") == expected
    assert len({sequence for _, sequence, _ in expected}) == 3


def test_a_syn_that_was_not_kept() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert first_sequence(accepted) is None
    with socket.socket(socket.AF_UNIX) as other:
        assert first_sequence(other) is None


def test_only_sensors_are_let_in_and_a_new_one_without_a_restart(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_start_worker", ThreadWorker)
    monkeypatch.setattr(spool, "READ_PAUSE", 0.0)
    new = ("127.0.0.77", 0)

    def let_in() -> bool:
        with socket.create_connection((site.address, site.port), 10, new) as client:
            client.settimeout(0.3)
            try:
                return client.recv(1) != b""
            except TimeoutError:
                return True
            except ConnectionError:
                return False

    with Serving(site.config, spool=True), site.connect() as known:
        assert not let_in()
        const = site.folder / "const.toml"
        topology = load(const)
        (sensor,) = topology.sensors
        another = Host(IPv4Address(new[0]), "02:00:00:00:00:77")
        write(const, replace(topology, sensors=(sensor, another)), "a test")
        assert let_in()
        known.sendall(bytes(SIZE))
    assert site.query("SELECT sensor FROM connections ORDER BY 1") == [("127.0.0.1",), ("127.0.0.77",)]


class HandingBack(threading.Thread):
    """A spool in a thread, which hands back when it is told to."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.told, self.stopped = threading.Event(), threading.Event()
        self.logger = Logger(site.config, spool=True)

    def __enter__(self) -> "HandingBack":
        self.logger.__enter__()
        self.start()
        return self

    def run(self) -> None:
        self.summary = self.logger.serve(self.stopped.is_set, hand_back=self.told.is_set)

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.join(60)
        self.logger.close()


@pytest.mark.slow
@pytest.mark.usefixtures("emptying")
def test_it_hands_back(site: Site) -> None:
    """Sensors see the end of our side and end theirs; what they send until then is stored."""
    with HandingBack(site) as serving, site.connect() as quick, site.connect() as slow:
        for client in (quick, slow):
            client.sendall(bytes(SIZE) * 10)
        site.wait_for("SELECT count(*) FROM messages", [(20,)])
        serving.told.set()
        for client in (quick, slow):
            assert client.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            site.connect()
        slow.sendall(bytes(SIZE) * 5 + b"half")
        quick.close()
        site.wait_for("SELECT count(*) FROM connections", [(1,)])  # it is sent while another one goes on
        assert serving.is_alive()
        site.wait_for("SELECT count(*) FROM messages", [(15,)])
        assert site.query("SELECT closed_ns FROM connections") == [(None,)]
        slow.close()
        serving.join(30)
        assert not serving.is_alive()
        summary = serving.summary
    assert (summary.connections, summary.messages, summary.resets) == (2, 25, 0)
    assert (summary.unfinished, summary.restarts) == (1, 0)
    assert site.query("SELECT count(*) FROM connections") == [(0,)]


@pytest.mark.slow
def test_the_end_of_a_stream_whose_other_side_ended_before_is_no_reset(site: Site, workers: Workers) -> None:
    """Nor is it if a worker took over meanwhile. A reset is one, as ever."""
    stream = bytes(SIZE) * 100
    with HandingBack(site) as serving, site.connect() as client, site.connect() as other:
        client.sendall(stream)
        other.sendall(stream)
        site.wait_for("SELECT count(*) FROM messages", [(200,)])
        serving.told.set()
        assert client.recv(1) == other.recv(1) == b""
        workers.kill()
        client.shutdown(socket.SHUT_WR)
        other.sendall(stream)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        other.close()
        site.wait_for("SELECT count(closed_ns) FROM connections", [(2,)])
    assert site.query("SELECT reason, reset, bytes FROM connections ORDER BY id") == [
        ("end of stream", False, 100 * SIZE),
        ("Connection reset by peer", True, 200 * SIZE),
    ]
    verify(site)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    return Workers(monkeypatch)


@pytest.mark.slow
def test_a_stop_ends_a_hand_back_and_the_rows_stay(site: Site) -> None:
    with HandingBack(site) as serving, site.connect() as client:
        client.sendall(bytes(SIZE) * 10)
        site.wait_for("SELECT count(*) FROM messages", [(10,)])
        serving.told.set()
        assert client.recv(1) == b""
        client.sendall(bytes(SIZE))
        serving.stopped.set()
        serving.join(30)
        assert not serving.is_alive()
    assert site.query("SELECT count(*) FROM messages") == [(11,)]
    assert site.query("SELECT reason FROM connections") == [("the logger was stopped",)]


@pytest.mark.slow
@pytest.mark.usefixtures("emptying")
def test_a_spool_is_only_drained(site: Site) -> None:
    with Serving(site.config, spool=True), site.connect() as client:
        client.sendall(bytes(SIZE) * 10_000)
    path = site.folder / "midstream.db"
    size = path.stat().st_size
    assert site.query("SELECT count(*) FROM messages") == [(10_000,)]
    with Backfill(load_config(site.config)) as backfill:
        assert backfill.run(lambda: False)
    assert site.query("SELECT count(*) FROM messages") == [(0,)]
    assert path.stat().st_size < size / 2
    path.unlink()
    with Backfill(load_config(site.config)) as backfill:
        assert backfill.run(lambda: False)


def test_no_spool(site: Site) -> None:
    site.config.write_text('[hardworker]\nspool = ""\n')
    with pytest.raises(ConfigError, match=r'hardworker.spool = "".*name a file'):
        Logger(site.config, spool=True)


@pytest.mark.slow
def test_the_command_hands_back_on_sigusr1(site: Site) -> None:
    """There is no logger to which the spool could be sent: it is stopped, and the rows stay."""
    with Program(site) as program:
        program.wait_for("listening")
        client = site.connect()
        client.sendall(bytes(SIZE) * 10)
        program.process.send_signal(signal.SIGUSR1)
        assert client.recv(1) == b""
        client.close()
        site.wait_for("SELECT count(closed_ns) FROM connections", [(1,)])
        assert program.stop() == 0
    assert site.query("SELECT count(*) FROM messages") == [(10,)]


def test_drain_alone_is_refused(site: Site) -> None:
    command = ["midstream", "logger", "--drain", "--config", str(site.config)]
    found = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "--spool" in found.stderr


@pytest.mark.slow
def test_a_full_spool_that_waits_goes_on_when_there_is_room(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "_start_worker", ThreadWorker)
    site.configure(hardworker='spool_size = "1MiB"\nspool_free = 0\nspool_full = "wait"\n')
    stream = os.urandom(SIZE) * 60_000
    with Serving(site.config, spool=True) as serving, site.connect() as client:
        sending = threading.Thread(target=client.sendall, args=(stream,))
        sending.start()
        wait_until(lambda: "the spool is full" in caplog.text)
        ((before,),) = site.query("SELECT count(*) FROM messages")
        time.sleep(0.5)
        assert site.query("SELECT count(*) FROM messages") == [(before,)]
        while sending.is_alive():
            site.execute("DELETE FROM messages WHERE sequence < (SELECT max(sequence) FROM messages)")
            time.sleep(0.05)
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: unacknowledged(client) == 0)

        def more() -> bool:
            site.execute("DELETE FROM messages WHERE sequence < (SELECT max(sequence) FROM messages)")
            return site.query("SELECT count(closed_ns) FROM connections") == [(1,)]

        wait_until(more, 60)
    assert serving.error is None
    assert serving.summary.messages == 60_000
    assert serving.summary.forgotten == 0
    assert site.query("SELECT bytes, reset FROM connections") == [(len(stream), False)]


@pytest.mark.slow
def test_killed_while_it_forgets(site: Site, workers: Workers) -> None:
    """Each message is stored or counted, once, although what was stored first is not there any more."""
    site.configure(hardworker='spool_size = "1MiB"\nspool_free = 0\n')
    random = Random(7)
    with Serving(site.config, spool=True) as serving, site.connect() as busy, site.connect() as silent:
        silent.sendall(bytes(SIZE) * 10)
        for _ in range(5):
            busy.sendall(bytes(SIZE) * 10_000)
            time.sleep(random.random())
            workers.kill()
        for client in (silent, busy):
            client.sendall(bytes(SIZE) * 10)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
    assert serving.error is None
    assert serving.summary.restarts == 5
    assert serving.summary.messages == 50_030
    rows = site.query(
        "SELECT bytes, coalesce(pruned, 0), count(*), min(sequence), max(sequence) "
        "FROM connections JOIN messages ON connection_id = id GROUP BY id ORDER BY bytes"
    )
    assert [size for size, *_ in rows] == [20 * SIZE, 50_010 * SIZE]
    for size, pruned, count, first, last in rows:
        assert (first, last + 1, count) == (pruned, size // SIZE, size // SIZE - pruned)
    ((forgotten,),) = site.query("SELECT messages FROM forgotten")
    assert forgotten == sum(pruned for _, pruned, *_ in rows) > 30_000


@pytest.fixture
def small_disk(site: Site) -> Iterator[Path]:
    folder = site.folder / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48M", "tmpfs", folder], check=True)
    site.url = f"sqlite:///{folder}/spool.db"
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@needs_root
@pytest.mark.slow
def test_sensors_go_on_although_others_fill_the_disk(site: Site, small_disk: Path) -> None:
    """The room that the spool has it uses over and over: fresh messages are worth more than old ones."""
    site.configure(hardworker='spool_free = "16MiB"\n')
    with Serving(site.config, spool=True) as serving, site.connect() as client:
        for _ in range(100):
            client.sendall(bytes(SIZE) * 1000)
        wait_until(lambda: serving.logger.summary.messages == 100_000)
        with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        for _ in range(200):
            client.sendall(bytes(SIZE) * 1000)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert serving.error is None
    ((count, first, last, pruned),) = site.query(
        "SELECT count(*), min(sequence), max(sequence), max(pruned) FROM messages JOIN connections"
    )
    assert (first, last, count) == (pruned, 299_999, 300_000 - pruned)
    assert count > 10_000
    assert site.query("SELECT messages FROM forgotten") == [(pruned,)] == [(serving.summary.forgotten,)]
    assert site.query("PRAGMA integrity_check") == [("ok",)]


def _no_folder(site: Site) -> Callable[[], object]:
    folder = site.folder / "later"
    site.url = f"sqlite:///{folder}/spool.db"
    return folder.mkdir


def _damaged(site: Site) -> Callable[[], object]:
    path = site.folder / "midstream.db"
    path.write_bytes(b"no database" * 1000)
    return path.unlink


def _in_the_way(site: Site) -> Callable[[], object]:
    path = site.folder / "midstream.db"
    path.mkdir()
    return path.rmdir


broken = pytest.mark.parametrize(
    "broken", [_damaged, *(pytest.param(each, marks=pytest.mark.slow) for each in (_no_folder, _in_the_way))]
)


@broken
def test_a_spool_that_cannot_be_opened_does_not_starve_the_application(
    site: Site, monkeypatch: pytest.MonkeyPatch, broken: Callable[[Site], Callable[[], object]]
) -> None:
    """What comes after daemon.stall is forgotten and counted, until the spool can be opened."""
    monkeypatch.setattr(server, "_start_worker", ThreadWorker)
    mend = broken(site)
    site.configure(hardworker="spool_free = 0\n[daemon]\nstall = 1.0\n")
    told: list[str] = []
    with Serving(site.config, spool=True, tell=told.append) as serving:
        wait_until(lambda: serving.lets_in(site))
        assert "What comes is forgotten until then" in told[-1]
        assert site.url in told[-1], "it names the file"
        with site.connect() as client:
            for number in range(1, 101):
                client.sendall(bytes(SIZE) * 1000)
                if number == 50:
                    wait_until(lambda: unacknowledged(client) == 0)
                    wait_until(lambda: serving.logger.summary.forgotten == 50_000)
                    mend()
                    wait_until(lambda: told[-1] == "")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
    assert serving.error is None
    ((forgotten, size),) = site.query("SELECT messages, bytes FROM forgotten")
    assert (serving.summary.forgotten, size) == (forgotten, forgotten * SIZE)
    ((count, first, last),) = site.query("SELECT count(*), min(sequence), max(sequence) FROM messages")
    assert (first, last, count) == (forgotten, 99_999, 100_000 - forgotten)
    assert 50_000 <= forgotten < 100_000


@pytest.mark.slow
@broken
def test_a_spool_that_cannot_be_opened_lets_nobody_in_if_it_is_to_wait(
    site: Site, monkeypatch: pytest.MonkeyPatch, broken: Callable[[Site], Callable[[], object]]
) -> None:
    monkeypatch.setattr(server, "_start_worker", ThreadWorker)
    mend = broken(site)
    site.configure(hardworker='spool_free = 0\nspool_full = "wait"\n[daemon]\nstall = 0.5\n')
    told: list[str] = []
    with Serving(site.config, spool=True, tell=told.append) as serving:
        time.sleep(1.5)
        assert not serving.lets_in(site)
        assert "No sensor is let in" in told[-1]
        assert site.url in told[-1], "it names the file"
        mend()
        wait_until(lambda: serving.lets_in(site))
        with site.connect() as client:
            client.sendall(bytes(SIZE))
    assert serving.error is None
    assert (serving.summary.messages, serving.summary.forgotten) == (1, 0)


@pytest.mark.slow
def test_a_spool_that_takes_nothing_for_a_while(site: Site) -> None:
    """What was stored before, and comes afterwards, is there; between them is a hole with a name."""
    site.configure(hardworker="spool_free = 0\n[daemon]\nstall = 0.5\n")
    told: list[str] = []
    path = site.folder / "midstream.db"
    with Serving(site.config, spool=True, tell=told.append) as serving, site.connect() as client:
        for hole in (1, 2):
            client.sendall(bytes(SIZE) * 1000)
            wait_until(partial(serving.has, messages=1000 * hole))
            with closing(sqlite3.connect(path, isolation_level=None)) as another:
                another.execute("BEGIN IMMEDIATE")
                client.sendall(bytes(SIZE) * 1000)
                wait_until(partial(serving.has, forgotten=1000 * hole))
                assert str(path) in told[-1]
            wait_until(lambda: told[-1] == "")
        client.sendall(bytes(SIZE) * 1000)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert serving.error is None
    assert site.query("SELECT messages FROM forgotten") == [(1000,), (1000,)]
    numbers = [number for (number,) in site.query("SELECT sequence FROM messages ORDER BY 1")]
    assert numbers == [*range(1000), *range(2000, 3000), *range(4000, 5000)]


@pytest.mark.slow
def test_what_a_full_spool_forgets_is_added_to_the_newest_hole(site: Site) -> None:
    """Holes of before have their count."""
    with Serving(site.config, spool=True):
        pass
    for first_ns in (1, 2):
        site.execute(f"INSERT INTO forgotten VALUES ('127.0.0.1', {first_ns}, {first_ns}, 5, 5)")
    site.configure(hardworker='spool_size = "1MiB"\nspool_free = 0\n')
    with Serving(site.config, spool=True) as serving, site.connect() as client:
        client.sendall(bytes(SIZE) * 50_000)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    holes = site.query("SELECT messages FROM forgotten ORDER BY first_ns")
    assert holes == [(5,), (5 + serving.summary.forgotten,)]
