"""The backfill into real databases, while sender, receiver and database are killed at any moment."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from tests.database import servers
from tests.support.exchanges import exchanging
from tests.support.site import SIZE, Site, wait_until
from tests.support.spools import Receiving, batch, contents, drain, ended, opening, payloads, spool, streams

from midstream.config import Config, load
from midstream.log.messages import LogReader
from midstream.log.selection import Selection
from midstream.log.verify import verify
from midstream.logger.spooled import spool_state
from midstream.storage.databases import open_log, open_store
from midstream.storage.store import ConnectionRow
from midstream.told import Forgotten

CONNECTIONS, MESSAGES = 6, 1000
DATABASES = ["sqlite", "postgresql", "jetstream"]


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of the kind that the test is for."""
    match request.param:
        case "sqlite":
            return f"sqlite:///{tmp_path}/midstream.db"
        case "postgresql":
            server: servers.Postgres = request.getfixturevalue("postgres")
            return server.new_database(f"backfill{time.monotonic_ns()}")
    url = request.getfixturevalue("cluster").url(f"backfill{time.monotonic_ns()}")
    servers.patient(url).close()
    return str(url)


def configured(folder: Path, url: str, rate: str) -> Config:
    folder.mkdir(exist_ok=True)
    return load(exchanging(Site(folder, url), f'backfill_rate = "{rate}"\n').config)


def fill(config: Config, connections: int = CONNECTIONS, messages: int = MESSAGES) -> dict[object, object]:
    """A spool with so much in it, of which the logger began every other connection; and what is to come."""
    expected: dict[object, object] = {}
    some = payloads(messages)
    with spool(config) as store, open_store(config, streams(config)) as own:
        for number in range(connections):
            row = opening(number, first=number)
            begun = messages // 3 if number % 2 else 0
            if begun:
                before = ConnectionRow(f"bb.{number}", row.sensor, row.port, row.opened_ns, row.first)
                own.write(batch(before, some[:begun]))
                own.write(ended(before, begun * SIZE))
            start = max(0, begun - 100)
            store.write(batch(row, some[start:], sequence=start, offset=start * SIZE))
            store.write(ended(row, messages * SIZE + 3, unfinished=b"abc"))
            expected[row.sensor, row.port, row.opened_ns] = some
    return expected


def check(config: Config, expected: dict[object, object]) -> None:
    """Each message once and in order, and the log says so itself."""
    found = contents(config.database_url)
    assert {key: [row[4] for row in rows] for key, (_, rows) in found.items()} == expected
    for facts, rows in found.values():
        assert [row[0] for row in rows] == [*range(len(rows))]
        assert (facts[1], facts[5]) == (len(rows) * SIZE + 3, b"abc")
    with open_log(config.database_url) as log:
        for verdict in verify(log, log.connections()):
            assert verdict.faults == []
    assert not spool_state(Path(str(config.spool_path)))


@pytest.mark.parametrize("database", DATABASES, indirect=True)
def test_it_comes_into_every_database(database: str, tmp_path: Path) -> None:
    config = configured(tmp_path, database, "1GiB")
    expected = fill(config)
    with spool(config) as store:
        store.note_forgotten([Forgotten("10.83.0.11", 1, 2, 3, 4)])
    with Receiving(config):
        drain(config)
    check(config, expected)
    with open_log(database) as log:
        assert all(connection.spooled for connection in log.connections())
        stored = [message.payload for piece in LogReader(log, Selection()).read() for message in piece]
        assert len(stored) == CONNECTIONS * MESSAGES


@pytest.mark.parametrize("database", DATABASES, indirect=True)
def test_what_comes_again_changes_nothing(database: str, tmp_path: Path) -> None:
    """As if the logger's answer to the end had been lost."""
    config = configured(tmp_path, database, "1GiB")
    for _ in range(2):
        expected = fill(config, connections=1, messages=10)
        with Receiving(config):
            drain(config)
        check(config, expected)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_its_fields_are_columns_too(database: str, tmp_path: Path) -> None:
    config = configured(tmp_path, database, "1GiB")
    with config.path.open("a") as file:
        file.write('[[data.field]]\nname = "number"\ntype = "u32"\n')
    config = load(config.path)
    with spool(config) as store:
        row = opening(1, first=1)
        store.write(batch(row, payloads(100)))
        store.write(ended(row, 100 * SIZE))
    with Receiving(config):
        drain(config)
    with open_log(database) as log:
        (connection,) = log.connections()
        assert log.readings(connection, ["number"], 0, 99) == {number: (number,) for number in range(100)}


# who dies


class Processes:
    """The sender and the receiver as processes, each started again when it has died."""

    def __init__(self, config: Config) -> None:
        settings = {"config": config.model_dump_json(), "path": str(config.path), "size": SIZE}
        self._settings = json.dumps(settings)
        self._listener = Receiving(config).listener
        self._running: dict[str, subprocess.Popen[str]] = {}

    def start(self) -> None:
        """Those that do not run."""
        for name in ("exchange", "backfill"):
            found = self._running.get(name)
            if found is None or found.poll() is not None:
                self._running[name] = self._start(name)

    def kill(self, name: str) -> None:
        self._running[name].kill()
        self._running[name].wait()

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        self._listener.close()

    def _start(self, name: str) -> subprocess.Popen[str]:
        if old := self._running.get(name):
            assert old.stdin is not None
            old.stdin.close()
        passed = self._listener.fileno()
        command = [sys.executable, "-m", f"midstream.logger.{name}", str(passed)]  # who sends needs none
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=(passed,), text=True
        )
        assert process.stdin is not None
        process.stdin.write(f"{self._settings}\n")
        process.stdin.flush()
        return process


@contextmanager
def running(config: Config) -> Iterator[Processes]:
    # The sender asks const.toml for the logger, which is 127.0.0.1 there.
    processes = Processes(config)
    processes.start()
    try:
        yield processes
    finally:
        processes.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "database",
    ["sqlite", *(pytest.param(name, marks=pytest.mark.slow) for name in DATABASES[1:])],
    indirect=True,
)
@pytest.mark.parametrize(
    ("kills", "messages"), [(3, MESSAGES), pytest.param(20, 6000, marks=pytest.mark.slow)]
)
def test_sender_and_receiver_are_killed_again_and_again(
    database: str, tmp_path: Path, kills: int, messages: int
) -> None:
    """Each time amid its work: a while after the spool has become smaller."""
    config = configured(tmp_path, database, "128KiB")
    expected = fill(config, messages=messages)
    dice = random.Random(7)
    path = Path(str(config.spool_path))
    with running(config) as processes:
        for _ in range(kills):
            wait_until(partial(_has_less, path, spool_state(path).messages), 60)
            time.sleep(dice.uniform(0, 0.1))
            processes.kill(dice.choice(["exchange", "backfill"]))
            processes.start()
        assert spool_state(path), "the last kill was amid the work"
        wait_until(lambda: not spool_state(path), 60)
    check(config, expected)


def _has_less(path: Path, messages: int) -> bool:
    return spool_state(path).messages < messages


@pytest.mark.slow
def test_the_database_is_stopped_amid(postgres: servers.Postgres, tmp_path: Path) -> None:
    config = configured(tmp_path, postgres.new_database(f"stopped{time.monotonic_ns()}"), "256KiB")
    expected = fill(config, messages=2_000)
    path = Path(str(config.spool_path))
    with running(config):
        for sign in (signal.SIGQUIT, signal.SIGINT):
            wait_until(partial(_has_less, path, spool_state(path).messages - 1000), 60)
            postgres.stop(sign)
            time.sleep(0.5)
            postgres.start()
        wait_until(lambda: not spool_state(path), 60)
    check(config, expected)
