"""Whichever host or process dies, or stands still: what application and log have afterwards.

Each test is a row of the table in docs/guarantees.md. While it happens two sensors send: `midstream sensor`,
and a plain TCP client that knows what its own TCP has had acknowledged. Both connect again, and send again
what was not acknowledged. Programs that have ended are started again, as systemd does it.
"""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.lab.chaos import judge, power
from tests.lab.chaos.messages import SIZE
from tests.lab.chaos.storm import Survivor, small_disk
from tests.lab.test_daemon import daemon_pid, set_port
from tests.lab.test_log_knows import LINE, kill_all
from tests.lab.test_logger_killed import workers
from tests.lab.triangle import HARDWORKER, LOGGER, PORT, PROGRAM, TOS, command, variant, wait_until

from midstream.cli.log import PENDING
from midstream.daemon.way import SPOOL
from midstream.hardworker import Hardworker
from midstream.hardworker.recording import recorded_dtype
from midstream.lab import Lab, daemons
from midstream.lab import up as lab_up
from midstream.sensor import SENT_DTYPE

RATE = 200  # messages per second of each sensor
OURS, PLAIN = "sensor", "sensor-2"
ADDRESSES = ("10.83.0.11", "10.83.0.12")
ROW = recorded_dtype(SIZE)
STILL = 10.0  # seconds
CLIENT = Path(judge.__file__).with_name("client.py")

Streams = dict[tuple[str, int], list[tuple[int, bytes]]]
"""By a sensor's address and port: sequence and payload of each message, in order."""


class World:
    """All that runs, and what each end has of a test's connections."""

    def __init__(self, lab: Lab, folder: Path, disk: Path) -> None:
        self.lab, self.disk = lab, disk
        self._folder = folder
        self._record, self._database = folder / "record", disk / "log.db"
        logger = {"database": f"sqlite:///{self._database}"}
        self.config = variant(lab, "deaths.toml", logger=logger, daemon={"key": "key"})
        self._options = ("--config", self.config, "--json")
        record = ("--record", self._record, "--resume")
        self.logger = self._survivor("logger", PROGRAM, "logger", *self._options)
        self.application = self._survivor("hardworker", PROGRAM, "hardworker", *self._options, *record)
        self._ports = count(20_000, 100)  # of the plain client, the first of each test
        self._clients: list[Survivor] = []
        self._sent = self._account = self._stop = folder  # of a test
        self._rows = self._connections = 0  # before it

    def _survivor(self, host: str, *argv: str | Path) -> Survivor:
        folder = Path(tempfile.mkdtemp(prefix=f"{host}.", dir=self._folder))
        return Survivor(self.lab, host, folder, lambda _: list(argv))

    @contextmanager
    def sending(self, folder: Path, rate: int = RATE) -> Iterator[None]:
        """Both sensors send meanwhile."""
        self.revive()
        wait_until(lambda: "listening" in list(self.logger.words())[-1][1])
        time.sleep(1)  # until the hardworker's daemon knows it
        wait_until(lambda: self._hardworker().get("spool") == "off")
        self.wait_for(LOGGER)
        self._rows = self._recorded()
        self._connections = max((row["connection"] or 0 for row in self._listed()), default=0)
        self._sent, self._account, self._stop = (folder / name for name in ("sent", "account", "stop"))
        ours = ("--rate", str(rate), "--record", self._sent)
        plain = map(str, (1, HARDWORKER, PORT, TOS, rate, next(self._ports)))
        self._clients = [
            self._survivor(OURS, PROGRAM, "sensor", *self._options, *ours),
            self._survivor(PLAIN, sys.executable, "-P", CLIENT, *plain, self._account, self._stop),
        ]
        try:
            for client in self._clients:
                client.revive()
            self.wait_for_fresh()
            yield
        finally:
            for client in self._clients:
                client.kill()
            self._clients = []

    def revive(self, *, application: bool = True) -> None:
        """Start whatever does not run."""
        for host in (OURS, PLAIN, "logger", "hardworker"):
            if daemons.state(self.lab, host) is None:
                daemons.launch(self.lab, host, key="../key", sensors=2)
        for program in (self.logger, *[self.application] * application, *self._clients):
            program.revive()

    def kill(self) -> None:
        for program in (self.logger, self.application):
            program.kill()

    def wait_for_fresh(self, seconds: float = 20) -> None:
        """Until the application is given a message of each sensor, from now on."""
        now = time.time_ns()

        def heard() -> bool:
            rows = self._recorded_rows(max(self._rows, self._recorded() - 1000))
            return len(set(rows["message"]["sensor"][rows["delivered"] > now].tolist())) == 2

        wait_until(heard, seconds)

    def wait_for(self, destination: str, seconds: float = 20) -> None:
        wait_until(lambda: self._hardworker().get("destination") == destination, seconds)

    def _hardworker(self) -> dict[str, Any]:
        """What its daemon says of itself; nothing while it does not run."""
        return daemons.state(self.lab, "hardworker") or {}

    def end(self) -> None:
        """The sensors end in order, and the log says that it has all."""
        self.stop()
        wait_until(self._is_whole, 60)

    def stop(self) -> None:
        ours, plain = self._clients
        self._stop.touch()
        ours.send(signal.SIGINT)
        assert (ours.result(30), plain.result(30)) == (0, 0)

    def verify(self) -> int:
        """The exit code of `midstream log verify`."""
        ended = command(self.lab, "logger", "log", "verify", *self._options)
        assert "Traceback" not in ended.err, ended.err
        return ended.code

    def has_settled(self) -> bool:
        """Is nothing on its way any more? The log may name a hole, or numbers that are missing."""
        found = self._hardworker()
        if found.get("spool") != "off" or found["held"]["pending"]:
            return False
        return self._has_told() and not self.spooled() and self.verify() != PENDING

    def _is_whole(self) -> bool:
        told = [row["held_state"] != "open" for row in self._listed() if self._is_ours(row["connection"])]
        return all(told) and self._has_told() and self.verify() == 0

    def _has_told(self) -> bool:
        """Has the hardworker's daemon told the logger how each connection ended?"""
        found = self._hardworker()
        return bool(found) and not found["held"]["untold_ends"]

    def _listed(self) -> list[dict[str, Any]]:
        listed = command(self.lab, "logger", "log", "list", *self._options)
        return list(json.loads(listed.out)) if listed.code == 0 else []

    def _is_ours(self, connection: int | None) -> bool:
        return connection is None or connection > self._connections

    def logged(self) -> Streams:
        """The log's messages of this test."""
        query = (
            "SELECT sensor, port, sequence, payload FROM messages JOIN connections ON connection_id = id "
            "WHERE id > ? ORDER BY id, sequence"
        )
        found: Streams = defaultdict(list)
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as opened:
            for sensor, port, sequence, payload in opened.execute(query, (self._connections,)):
                found[sensor, port].append((sequence, payload))
        return found

    def spooled(self) -> set[bytes]:
        """Messages that are committed in the spool, without what the ring had retained: parts of streams."""
        path = daemons.folder(self.lab, "hardworker") / "spool.db"
        database = f"file:{path}?mode=ro"
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(database, uri=True)) as opened:
            query = (
                "SELECT payload FROM messages JOIN connections ON connection_id = id WHERE framing = 'fixed'"
            )
            return {payload for (payload,) in opened.execute(query)}
        return set()  # it has not begun

    def delivered(self) -> Streams:
        """The application's."""
        found: Streams = defaultdict(list)
        for row in self._recorded_rows(self._rows)["message"]:
            peer = ADDRESSES[row["sensor"]], int(row["port"])
            found[peer].append((int(row["offset"]) // SIZE, row["payload"].tobytes()))
        return found

    def _recorded(self) -> int:
        return self._record.stat().st_size // ROW.itemsize if self._record.exists() else 0

    def _recorded_rows(self, first: int) -> np.ndarray:
        rows = self._recorded() - first
        return np.fromfile(self._record, ROW, rows, offset=first * ROW.itemsize) if rows else np.empty(0, ROW)

    def assert_logged(self) -> Streams:
        """Each connection once, from its first message on; all that was acknowledged or sent at last."""
        found = self.logged()
        for peer, messages in found.items():
            assert [sequence for sequence, _ in messages] == list(range(len(messages))), peer
        ours = [payload for peer, stream in found.items() if peer[0] == ADDRESSES[0] for _, payload in stream]
        sent = np.fromfile(self._sent, SENT_DTYPE)["sequence"].tolist()
        assert {int.from_bytes(payload[:8], "little") for payload in ours} == set(sent)
        reached = 0
        for connection in judge.account([self._account]):
            logged = len(found.get((ADDRESSES[1], connection.port), ()))
            assert logged >= connection.acknowledged // SIZE, connection
            assert connection.first <= reached, f"messages {reached} to {connection.first} are missing"
            reached = max(reached, connection.first + logged)
        return found

    def assert_all_is_there(self) -> Streams:
        """And the application has the same."""
        found = self.assert_logged()
        delivered = self.delivered()
        assert delivered == found
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("deaths")
    tables: dict[str, Any] = {"data": {"size": SIZE, "freq": RATE}, "sensor": {"reconnect": 20.0}}
    with small_disk(folder / "disk", "256m") as disk:
        lab = lab_up(run_dir=folder / "lab", sensors=2, bare=True, **tables | LINE)
        daemons.start(lab, key="../key", sensors=2)
        world = World(lab, folder, disk)
        try:
            yield world
        finally:
            world.kill()
        for host in (OURS, PLAIN, "logger", "hardworker"):
            assert "Traceback" not in (daemons.folder(lab, host) / "daemon.log").read_text(), host


@pytest.mark.slow
def test_the_loggers_worker_is_killed(world: World, tmp_path: Path) -> None:
    with world.sending(tmp_path):
        for pid in workers(world.logger.pid):
            os.kill(pid, signal.SIGKILL)
        world.wait_for_fresh()
        world.end()
    assert len(world.assert_all_is_there()) == 2, "no connection ends"


@pytest.mark.slow
def test_the_loggers_processes_are_killed(world: World, tmp_path: Path) -> None:
    with world.sending(tmp_path):
        kill_all(world.logger.pid)
        world.wait_for(SPOOL)
        world.wait_for_fresh()
        world.revive()
        world.wait_for(LOGGER)
        world.wait_for_fresh()
        world.end()
    assert len(world.assert_all_is_there()) >= 4


@pytest.mark.slow
def test_the_loggers_host_loses_power(world: World, tmp_path: Path) -> None:
    with world.sending(tmp_path):
        power.cut(world.lab, "logger")
        world.wait_for(SPOOL)
        world.wait_for_fresh()
        power.switch_on(world.lab, "logger")
        world.revive()
        world.wait_for(LOGGER)
        world.wait_for_fresh()
        world.end()
    assert len(world.assert_all_is_there()) >= 4


@pytest.mark.slow
def test_the_application_is_killed(world: World, tmp_path: Path) -> None:
    with world.sending(tmp_path):
        for _ in range(2):
            world.application.kill()
            time.sleep(0.2)
            world.revive()
            world.wait_for_fresh()
        world.end()
    assert len(world.assert_all_is_there()) == 2, "no connection ends"


@pytest.mark.slow
def test_the_hardworkers_daemon_is_killed(world: World, tmp_path: Path) -> None:
    with world.sending(tmp_path):
        os.kill(daemon_pid("hardworker"), signal.SIGKILL)
        world.wait_for_fresh(5)
        world.revive()
        world.wait_for_fresh(5)
        wait_until(lambda: daemons.state(world.lab, "hardworker") is not None)
        world.end()
    assert len(world.assert_all_is_there()) == 2, "no connection ends"


@pytest.mark.slow
@pytest.mark.parametrize("host", ["hardworker", "logger", PLAIN])
def test_a_daemon_stands_still(world: World, tmp_path: Path, host: str) -> None:
    with world.sending(tmp_path):
        pid = daemon_pid(host)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(STILL)
        finally:
            os.kill(pid, signal.SIGCONT)
        world.wait_for_fresh(5)
        world.end()
    assert len(world.assert_all_is_there()) == 2, "no connection ends"


@pytest.mark.slow
def test_the_spool_is_killed(world: World, tmp_path: Path) -> None:
    with world.sending(tmp_path):
        kill_all(world.logger.pid)
        world.wait_for(SPOOL)
        world.wait_for_fresh()
        time.sleep(1)
        kill_all(int((daemons.folder(world.lab, "hardworker") / "spool.pid").read_text()))
        world.wait_for_fresh()
        world.revive()
        world.wait_for(LOGGER)
        world.wait_for_fresh()
        world.end()
    world.assert_all_is_there()


@pytest.mark.slow
def test_the_hardworkers_host_loses_power(world: World, tmp_path: Path) -> None:
    """What was in the ring the next application gets from the logger, and goes on."""
    since = datetime.now(UTC)
    with world.sending(tmp_path):
        power.cut(world.lab, "hardworker")
        power.switch_on(world.lab, "hardworker")
        world.revive(application=False)
        world.wait_for(LOGGER)
        wait_until(lambda: len(world.logged()) >= 4)
        time.sleep(1)
        world.end()
    found = world.assert_logged()
    for peer, messages in world.delivered().items():
        assert messages == found[peer][: len(messages)], "before it died"
    assert_replayed(world, since)


def assert_replayed(world: World, since: datetime) -> None:
    """A new application gets what is in the log, once."""
    expected = Counter(
        (peer[0], sequence, payload)
        for peer, stream in world.logged().items()
        for sequence, payload in stream
    )
    assert world.lab.call("hardworker", replayed, world.config, since, expected.total()) == expected


def replayed(config: Path, since: datetime, messages: int) -> Counter[tuple[str, int, bytes]]:
    """What an application is given that asks for the past: so many, and then nothing more."""
    with Hardworker(config) as hardworker:
        found = Counter(
            (message.sensor, message.sequence, message.payload)
            for message in islice(hardworker.replay(since), messages)
        )
        assert len(hardworker.read()) == 0
    return found


@pytest.mark.slow
def test_the_sensors_cables_are_out(world: World, tmp_path: Path) -> None:
    with world.sending(tmp_path):
        for host in (OURS, PLAIN):
            set_port(world.lab, host, "disabled")
        try:
            time.sleep(1)
        finally:
            for host in (OURS, PLAIN):
                set_port(world.lab, host, "forwarding")
        world.wait_for_fresh()
        world.end()
    assert len(world.assert_all_is_there()) == 2, "no connection ends"


@pytest.mark.slow
def test_the_sensors_hosts_lose_power(world: World, tmp_path: Path) -> None:
    with world.sending(tmp_path):
        for host in (OURS, PLAIN):
            set_port(world.lab, host, "disabled")
        time.sleep(0.1)
        acknowledged = {host: world.lab.call(host, bytes_acknowledged) for host in (OURS, PLAIN)}
        for host in (OURS, PLAIN):
            power.cut(world.lab, host)
            power.switch_on(world.lab, host)
        world.revive()
        world.wait_for_fresh()
        world.stop()
        wait_until(lambda: world.verify() == 0)
    found = world.logged()
    assert found == world.delivered()
    assert len(found) == 4, "each has connected twice"
    for host, address in zip((OURS, PLAIN), ADDRESSES, strict=True):
        first = next(messages for peer, messages in found.items() if peer[0] == address)
        assert [sequence for sequence, _ in first] == list(range(len(first)))
        assert len(first) >= acknowledged[host] // SIZE > 0


def bytes_acknowledged() -> int:
    """What the peer of this host's connection has acknowledged."""
    said = subprocess.run(
        ["ss", "-tin", "dport", str(PORT)], capture_output=True, text=True, check=True
    ).stdout
    (count,) = re.findall(r"bytes_acked:(\d+)", said)
    return int(count) - 1  # the SYN


@pytest.mark.slow
def test_the_loggers_disk_is_full(world: World, tmp_path: Path) -> None:
    with world.sending(
        tmp_path, rate=1000
    ):  # the logger's kernel takes a mebibyte before anybody has to wait
        free, ballast = os.statvfs(world.disk), world.disk / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
        try:
            world.wait_for(SPOOL)
            world.wait_for_fresh()
        finally:
            ballast.unlink()
        world.wait_for(LOGGER)
        world.wait_for_fresh()
        world.end()
    assert len(world.assert_all_is_there()) >= 4


@pytest.mark.slow
def test_the_hardworkers_host_loses_power_while_the_logger_is_off(world: World, tmp_path: Path) -> None:
    """Two hosts are dead: there is what the spool has committed, and all that comes afterwards."""
    since = datetime.now(UTC)
    with world.sending(tmp_path):
        power.cut(world.lab, "logger")
        world.wait_for(SPOOL)
        wait_until(lambda: len(world.spooled()) > RATE)
        power.cut(world.lab, "hardworker")
        committed = world.spooled()
        for host in ("hardworker", "logger"):
            power.switch_on(world.lab, host)
        world.revive(application=False)
        world.wait_for(LOGGER)
        time.sleep(1)
        world.stop()
        wait_until(world.has_settled, 60)
    found = world.logged()
    assert committed and committed <= {payload for stream in found.values() for _, payload in stream}
    assert_replayed(world, since)
