"""A database that takes nothing for a while: the sensors wait, nothing is lost, and everybody can see it."""

import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from tests.database import servers
from tests.support.site import SIZE, Serving, Site, Workers, verify, wait_until

from midstream.errors import StoreError
from midstream.logger import Logger
from midstream.sensor import Sensor, numbered_messages


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    return Workers(monkeypatch)


@contextmanager
def sending(site: Site, *, messages: int, rate: float) -> Iterator[Sensor]:
    """A sensor that sends inside the block; when that has ended, all that it sent is stored once."""
    with Sensor(site.config) as sensor:
        thread = threading.Thread(
            target=sensor.run, args=(numbered_messages(SIZE, messages),), kwargs={"rate": rate}
        )
        thread.start()
        try:
            yield sensor
        finally:
            thread.join(60)
    wait_until(lambda: site.query("SELECT count(closed_ns) FROM connections") == [(1,)], 60)
    assert sensor.summary.messages == messages
    assert verify(site)[sensor.summary.sensor, sensor.summary.port] == sensor.summary.digest


def fill(path: Path) -> None:
    """Write until there is no room any more."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def waits(caplog: pytest.LogCaptureFixture, reason: str) -> None:
    wait_until(lambda: reason in caplog.text)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGQUIT])
def test_a_postgresql_server_that_is_stopped_and_started(
    tmp_path: Path, postgres: servers.Postgres, caplog: pytest.LogCaptureFixture, sign: signal.Signals
) -> None:
    """SIGINT: in order; SIGQUIT: at once, with recovery at the next start."""
    site = Site(tmp_path, postgres.new_database(f"stopped{int(sign)}"))
    with Serving(site.config) as serving, sending(site, messages=4000, rate=2000):
        site.wait_for("SELECT count(*) > 100 FROM messages", [(True,)])
        postgres.stop(sign)
        try:
            waits(caplog, "logger: waiting")
            time.sleep(0.3)
        finally:
            postgres.start()
        waits(caplog, "logger: goes on")
    assert serving.summary.waits == 1
    assert (serving.summary.messages, serving.summary.restarts) == (4000, 0)


@pytest.mark.slow
def test_a_postgresql_server_that_does_not_answer(
    tmp_path: Path, postgres: servers.Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connections stay, and nothing comes over them."""
    site = Site(tmp_path, postgres.new_database("frozen"))
    with Serving(site.config) as serving, sending(site, messages=4000, rate=2000):
        site.wait_for("SELECT count(*) > 100 FROM messages", [(True,)])
        with postgres.frozen():
            waits(caplog, "logger: waiting: the database has not answered for 5 s")
            time.sleep(1)
        waits(caplog, "logger: goes on")
    assert (serving.summary.messages, serving.summary.waits, serving.summary.restarts) == (4000, 1, 0)


@pytest.mark.slow
def test_a_logger_is_stopped_while_its_server_does_not_answer(
    tmp_path: Path, postgres: servers.Postgres
) -> None:
    """It does not hang, and says how much is lost."""
    site = Site(tmp_path, postgres.new_database("frozen_end"))
    with Serving(site.config) as serving, site.connect() as client:
        client.sendall(bytes(SIZE))
        site.wait_for("SELECT count(*) FROM messages", [(1,)])
        with postgres.frozen():
            client.sendall(bytes(SIZE) * 3)
            serving.stop()
    assert isinstance(serving.error, StoreError)
    assert f"Up to {3 * SIZE} received bytes were not stored" in str(serving.error)


@pytest.mark.slow
def test_a_server_that_is_not_there_at_the_start_is_waited_for(
    tmp_path: Path, postgres: servers.Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path, postgres.new_database("late"))
    postgres.stop()
    try:
        with Serving(site.config):
            waits(caplog, "logger: waiting")
            with pytest.raises(ConnectionRefusedError):
                site.connect()
            postgres.start()
            waits(caplog, "logger: goes on")
            with sending(site, messages=100, rate=0):
                pass
    finally:
        postgres.start()
    assert "refused" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql+psycopg://midstream@127.0.0.1:{port}/nowhere", 'database "nowhere" does not exist'),
        ("postgresql+psycopg://nobody:secret@127.0.0.1:{port}/postgres", 'role "nobody" does not exist'),
    ],
)
def test_a_wrong_name_is_no_reason_to_wait(
    tmp_path: Path, postgres: servers.Postgres, url: str, reason: str
) -> None:
    site = Site(tmp_path, url.format(port=postgres.port))
    with pytest.raises(StoreError, match=reason) as caught, Logger(site.config):
        pass
    assert "secret" not in str(caught.value)


def test_a_locked_database_makes_the_sensor_wait(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with Serving(site.config) as serving, sending(site, messages=200, rate=2000):
        site.wait_for("SELECT count(*) > 10 FROM messages", [(True,)])
        with closing(sqlite3.connect(site.folder / "midstream.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waits(caplog, "locked")
            other.execute("ROLLBACK")
    assert serving.summary.messages == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts a small disk")
def test_a_full_disk_makes_the_sensor_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", small], check=True)
    try:
        site = Site(tmp_path, f"sqlite:///{small}/midstream.db")
        filler = small / "filler"
        with Serving(site.config) as serving, sending(site, messages=3000, rate=3000):
            site.wait_for("SELECT count(*) > 10 FROM messages", [(True,)])
            fill(filler)
            waits(caplog, "make room")
            with pytest.raises(TimeoutError):  # nobody is let in whose data could not be stored
                socket.create_connection((site.address, site.port), timeout=2)
            # It tries again and again meanwhile, and says nothing.
            filler.unlink()
            waits(caplog, "goes on")
        assert (serving.summary.messages, serving.summary.waits) == (3000, 1)
        assert [caplog.text.count(words) for words in ("logger: waiting", "logger: goes on")] == [1, 1]
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


@pytest.mark.slow
def test_a_database_that_is_damaged_while_the_logger_runs(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so and waits. With another database in its place it goes on where the kernel's bytes begin."""
    database = site.folder / "midstream.db"
    with Serving(site.config) as serving, Sensor(site.config) as sensor:
        for message in numbered_messages(SIZE, 50):
            sensor.send(message)
        site.wait_for("SELECT count(*) FROM messages", [(50,)])
        for file in site.folder.glob("midstream.db*"):
            file.write_bytes(b"no database" * 1000)
        for message in numbered_messages(SIZE, 50):
            sensor.send(message)
        waits(caplog, "not a database")
        for file in site.folder.glob("midstream.db*"):
            file.unlink()
        waits(caplog, "goes on")
        sensor.close()
        assert sensor.summary.clean
    assert serving.summary.messages == 100
    assert database.exists()
    assert site.query("SELECT min(sequence), max(sequence), min(stream_offset) FROM messages") == [
        (50, 99, 50 * SIZE)
    ]


@pytest.mark.slow
def test_a_stop_while_nothing_can_be_stored_tells_what_is_lost(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Serving(site.config) as serving, site.connect() as client:
        client.sendall(bytes(SIZE))
        site.wait_for("SELECT count(*) FROM messages", [(1,)])
        with closing(sqlite3.connect(site.folder / "midstream.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            client.sendall(bytes(SIZE) * 3)
            time.sleep(0.2)
            serving.stop()
    assert isinstance(serving.error, StoreError)
    assert f"Up to {3 * SIZE} received bytes were not stored" in str(serving.error)


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_named(
    tmp_path: Path, postgres: servers.Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path, postgres.new_database("silent"))
    with Serving(site.config) as serving, sending(site, messages=20_000, rate=2000):
        site.wait_for("SELECT count(*) > 100 FROM messages", [(True,)])
        engine = create_engine(site.url)
        with engine.begin() as other:
            other.execute(text("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE"))
            waits(caplog, "has not answered for 5 s")
        engine.dispose()
        waits(caplog, "goes on")
    assert (serving.summary.messages, serving.summary.waits) == (20_000, 1)
