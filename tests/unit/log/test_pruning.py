"""Making room: the oldest go, what went is noted, and the logger is hardly kept waiting."""

import sqlite3
from contextlib import closing

import pytest
from tests.support.logs import LAYOUT, SECOND, START, LogFile, reading

from midstream.errors import StoreError
from midstream.log.verify import verify
from midstream.storage import pruning
from midstream.storage.pruning import Removed, prune
from midstream.storage.sql_log import SqlLog


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "ROWS", 7)
    monkeypatch.setattr(pruning, "PAUSE", 0)


def left(log: LogFile) -> dict[int, int]:
    """The first message that is left of each connection; all of them are right."""
    with SqlLog(log.url) as database:
        assert all(verdict.right for verdict in verify(database, database.connections()))
        return {key: extent.first for key, extent in database.extents().items()}


def test_by_age(log: LogFile) -> None:
    log.add([reading(number) for number in range(30)], layout=LAYOUT)
    log.add([b"x"] * 30, start_ns=START + 15 * SECOND)
    removed = prune(log.url, keep_ns=10 * SECOND, keep_bytes=None, now_ns=START + 30 * SECOND)
    assert removed == Removed(messages=25, bytes=20 * 16 + 5, connections=2, before_ns=START + 20 * SECOND)
    assert left(log) == {1: 20, 2: 5}
    with closing(sqlite3.connect(log.path)) as database:
        assert database.execute("SELECT count(*) FROM readings_data").fetchone() == (10,)
        assert database.execute("SELECT pruned FROM connections").fetchall() == [(20,), (5,)]
    again = prune(log.url, keep_ns=10 * SECOND, keep_bytes=None, now_ns=START + 30 * SECOND)
    assert again.messages == 0


def test_by_size(log: LogFile) -> None:
    """The oldest of all connections, and not more than a 64th of each too much."""
    for number in range(4):
        log.add([bytes(100)] * 640, start_ns=START + number * 320 * SECOND)
    prune(log.url, keep_ns=None, keep_bytes=128_000)
    firsts = left(log)
    kept = sum(640 - first for first in firsts.values()) * 100
    assert 128_000 - 4 * 640 * 100 / 64 <= kept <= 128_000
    assert 1 not in firsts and firsts[4] < firsts.get(3, 640)
    assert prune(log.url, keep_ns=None, keep_bytes=128_000).messages == 0


@pytest.mark.parametrize("framing", ["fixed", "length", "line"])
def test_sizes_count_frames(log: LogFile, framing: str) -> None:
    frame = {"fixed": 0, "length": 4, "line": 1}[framing]
    log.add([b"abcd"] * 10, framing=framing)  # type: ignore[arg-type]
    prune(log.url, keep_ns=None, keep_bytes=5 * (4 + frame))
    assert left(log) == {1: 5}


def test_an_open_connection_keeps_its_last_message(log: LogFile) -> None:
    """The logger goes on behind it."""
    log.add([b"x"] * 30, closed=False)
    log.add([b"x"] * 7, closed=False)
    log.add([b"x"] * 8)
    prune(log.url, keep_ns=0, keep_bytes=None)
    assert left(log) == {1: 29, 2: 6}


def test_a_dry_run_removes_nothing(log: LogFile) -> None:
    log.add([b"x"] * 30)
    assert prune(log.url, keep_ns=0, keep_bytes=None, dry_run=True).messages == 30
    assert left(log) == {1: 0}


def test_nothing_to_do(log: LogFile) -> None:
    log.add([b"x"] * 30)
    assert prune(log.url, keep_ns=None, keep_bytes=30) == Removed()
    assert prune(log.url, keep_ns=None, keep_bytes=None) == Removed()
    assert left(log) == {1: 0}


def test_version_1_is_refused(log: LogFile) -> None:
    log.add([b"x"])
    log.execute("DROP TABLE schema_version")
    with pytest.raises(StoreError, match=r"version 1.*start the logger once"):
        prune(log.url, keep_ns=0, keep_bytes=None)


def test_a_locked_database_is_named(log: LogFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("midstream.storage.opening.LOCK_TIMEOUT", 0.05)
    log.add([b"x"])
    with closing(sqlite3.connect(log.path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"locked.*another program"):
            prune(log.url, keep_ns=0, keep_bytes=None)
    assert left(log) == {1: 0}
