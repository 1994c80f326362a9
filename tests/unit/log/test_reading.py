"""Reading a log: every message once, in order of time, without disturbing whoever writes."""

import os
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.logs import LAYOUT, SECOND, START, LogFile, reading

from midstream.errors import ConfigError, StoreError
from midstream.log import messages as messages_module
from midstream.log.conditions import condition
from midstream.log.messages import LogReader
from midstream.log.selection import Selection, moment
from midstream.storage import sql_log
from midstream.storage.formats import StreamFormat
from midstream.storage.sql_log import SqlLog


def read(log: LogFile, selection: Selection | None = None) -> list[tuple[int, int]]:
    """Connection and sequence of what is read."""
    with SqlLog(log.url) as database:
        reader = LogReader(database, selection or Selection())
        return [(message.connection.id, message.sequence) for piece in reader.read() for message in piece]


def test_connections_are_merged_in_order_of_time(log: LogFile) -> None:
    log.add([b"a"] * 3)
    log.add([b"b"] * 3, start_ns=START + SECOND // 2)
    log.add([])
    log.add([b"d"], start_ns=START + 10 * SECOND)
    assert read(log) == [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2), (4, 0)]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 50), max_size=12), max_size=5), st.integers(1, 5), st.integers(1, 6))
def test_every_message_is_read_once(
    tmp_path_factory: pytest.TempPathFactory, times: list[list[int]], rows: int, ahead: int
) -> None:
    """Also where clocks were set back, and with pieces of any size; in order of time where they were not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sql_log, "MAX_ROWS", rows)
        patch.setattr(messages_module, "MAX_WAITING", ahead)
        log = LogFile(tmp_path_factory.mktemp("log") / "log.db")
        for connection in times:
            log.add([b"x"] * len(connection), times=[START + time for time in connection])
        with SqlLog(log.url) as database:
            found = [message for piece in LogReader(database, Selection()).read() for message in piece]
        log.close()
    expected = [(key, number) for key, each in enumerate(times, 1) for number in range(len(each))]
    assert sorted((message.connection.id, message.sequence) for message in found) == expected
    for key in range(1, len(times) + 1):
        sequences = [message.sequence for message in found if message.connection.id == key]
        assert sequences == sorted(sequences)
    if all(each == sorted(each) for each in times):
        received = [message.received_ns for message in found]
        assert received == sorted(received)


def test_long_messages_are_read_few_at_a_time(log: LogFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_log, "MAX_BYTES", 1000)
    log.add([bytes(600)] * 5)
    with SqlLog(log.url) as database:
        (connection,) = database.connections()
        pieces = []
        position = 0
        while position < 5:
            piece, position = database.piece(connection, position, 5)
            pieces.append(len(piece))
    assert pieces == [2, 2, 1]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(sensors=("10.83.0.12",)), [(2, 0), (2, 1)]),
        (Selection(connections=(1,)), [(1, 0), (1, 1), (1, 2)]),
        (Selection(since_ns=START + SECOND), [(1, 1), (1, 2), (2, 1)]),
        (Selection(until_ns=START + SECOND), [(1, 0), (2, 0)]),
        (Selection(since_ns=START + 3 * SECOND), []),
        (Selection(conditions=(condition("temperature>20.1"),)), [(1, 1), (1, 2)]),
        (Selection(conditions=(condition("armed=true"), condition("position_0<=1"))), [(1, 1)]),
        (Selection(conditions=(condition("tag == 616263"),)), [(1, 0), (1, 1), (1, 2)]),
        (Selection(conditions=(condition('tag="616263"'),)), [(1, 0), (1, 1), (1, 2)]),
        (Selection(conditions=(condition("speed>=3"),)), [(2, 1)]),
        (Selection(conditions=(condition("gps.lat=48.5"),)), [(2, 0)]),
        (Selection(conditions=(condition("wheels.1!=7"),)), [(2, 0)]),
    ],
)
def test_what_is_selected(log: LogFile, selection: Selection, expected: list[tuple[int, int]]) -> None:
    log.add([reading(number) for number in range(3)], layout=LAYOUT)
    lines = [
        b'{"speed": 2, "gps": {"lat": 48.5}, "wheels": [1, 2]}',
        b'{"speed": 3, "gps": "none"}',
        b"$GPGGA",
    ]
    log.add(lines[:2], framing="line", sensor="10.83.0.12")
    assert sorted(read(log, selection)) == expected


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        (
            Selection(sensors=("10.83.0.99",)),
            r"--sensor 10\.83\.0\.99: not in the log; there are 10\.83\.0\.11",
        ),
        (Selection(connections=(7,)), r"--connection 7: not in the log; there are 1"),
        (
            Selection(conditions=(condition("temperatur>1"),)),
            r"temperatur>1: no such field; there are temperature,",
        ),
    ],
)
def test_what_is_not_there(log: LogFile, selection: Selection, says: str) -> None:
    log.add([reading(1)], layout=LAYOUT)
    with pytest.raises(ConfigError, match=says):
        read(log, selection)


def test_no_fields_at_all(log: LogFile) -> None:
    log.add([b"1234"])
    with pytest.raises(
        ConfigError, match=r"no such field; the messages were stored without \[\[data.field\]\]"
    ):
        read(log, Selection(conditions=(condition("x>1"),)))


@pytest.mark.parametrize("text", ["temperature", ">3", "x>[1]", "", "a b>3"])
def test_comparisons_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--where"):
        condition(text)


def test_times() -> None:
    now = datetime(2026, 11, 25, 16, 0, tzinfo=UTC)
    expected = int(now.timestamp()) * SECOND
    assert moment("now", "--since", now) == expected
    assert moment("-10m", "--since", now) == expected - 600 * SECOND
    assert moment("-1.5h", "--since", now) == expected - 5400 * SECOND
    assert moment("2026-11-25T17:00:00.000001+01:00", "--since", now) == expected + 1000
    for wrong in ("10m", "-10", "yesterday", "-999999999w", "2026-13-01"):
        with pytest.raises(ConfigError, match=rf"--since {wrong}|--since {wrong[1:]}"):
            moment(wrong, "--since", now)


def test_following_sees_what_comes(log: LogFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages_module, "POLL", 0.001)
    log.add([b"a"], closed=False)
    found: list[tuple[int, int]] = []
    with SqlLog(log.url) as database:
        pieces = LogReader(database, Selection()).follow(lambda: len(found) == 4)
        for piece in pieces:
            found += [(message.connection.id, message.sequence) for message in piece]
            if len(found) == 1:
                log.execute("INSERT INTO messages VALUES (1, 1, 5, x'62', 1, 0), (1, 2, 6, x'63', 2, 0)")
                log.add([b"d"])
    assert sorted(found) == [(1, 0), (1, 1), (1, 2), (2, 0)]


def test_a_reader_that_has_stopped_holds_nothing(log: LogFile) -> None:
    """SQLite can put its log back into the file, and start it anew, between any two pieces."""
    log.add([b"x"] * 10, closed=False)
    with SqlLog(log.url) as database:
        pieces = LogReader(database, Selection()).read()
        next(pieces)
        log.add([b"y"] * 100)
        with closing(sqlite3.connect(log.path)) as other:
            busy, pages, moved = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert (busy, pages, moved) == (0, 0, 0)


def test_a_writer_is_never_kept_waiting(log: LogFile) -> None:
    log.add([b"x"] * 10, closed=False)
    with (
        SqlLog(log.url) as database,
        database.transaction() as held,
        closing(sqlite3.connect(log.path)) as writer,
    ):
        held.exec_driver_sql("SELECT count(*) FROM messages").all()
        writer.execute("PRAGMA busy_timeout = 0")
        writer.execute("INSERT INTO messages VALUES (1, 10, 5, x'62', 10, 0)")
        writer.commit()


def test_nothing_can_be_written(log: LogFile) -> None:
    log.add([b"x"])
    with (
        SqlLog(log.url) as database,
        pytest.raises(StoreError, match="readonly"),
        database.transaction() as opened,
    ):
        opened.exec_driver_sql("DELETE FROM messages")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone who may not write")
def test_who_may_not_write_in_the_folder_can_read(log: LogFile, open_folder: Path) -> None:
    log.add([b"x"])
    log.close()
    assert log.path.parent == open_folder
    results: list[object] = []

    def as_nobody() -> None:
        pid = os.fork()
        if not pid:
            try:
                os.setresuid(65534, 65534, 65534)
                with SqlLog(log.url) as database:
                    os._exit(0 if len(database.connections()) == 1 else 2)
            finally:
                os._exit(1)
        results.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    as_nobody()
    assert results == [0]
    assert threading.active_count() == 1


def test_a_database_of_version_1(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(
            "CREATE TABLE connections (id INTEGER PRIMARY KEY, sensor VARCHAR(15), port INTEGER, "
            "opened_ns BIGINT, closed_ns BIGINT, bytes BIGINT, digest VARCHAR(64), reset BOOLEAN, "
            "reason TEXT, unfinished BLOB);"
            "CREATE TABLE messages (connection_id INTEGER, sequence BIGINT, received_ns BIGINT, "
            "payload BLOB, PRIMARY KEY (connection_id, sequence));"
            "INSERT INTO connections VALUES (1, '10.83.0.11', 4000, 1, NULL, NULL, NULL, NULL, NULL, NULL);"
            "INSERT INTO messages VALUES (1, 0, 5, x'61'), (1, 1, 6, x'62');"
        )
    with SqlLog(f"sqlite:///{path}", {"data": StreamFormat("line")}) as database:
        assert database.version == 1
        pieces = list(LogReader(database, Selection()).read())
        assert [message.payload for piece in pieces for message in piece] == [b"a", b"b"]
        assert pieces[0][0].connection.framing == "line"
        assert database.extents()[1].messages == 2


def test_databases_that_cannot_be_read(log: LogFile, tmp_path: Path) -> None:
    for url, says in (
        ("midstream.db", "not a URL"),
        ("oracel://user:secret@host/db", "no such kind of database"),
        (f"sqlite:///{tmp_path}/none.db", "no such file.*start the logger"),
    ):
        with pytest.raises(StoreError, match=says) as caught:
            SqlLog(url)
        assert "secret" not in str(caught.value)
    (tmp_path / "text.db").write_bytes(b"this is no database\n" * 100)
    with pytest.raises(StoreError, match=r"not a database.*damaged"):
        SqlLog(f"sqlite:///{tmp_path}/text.db")
    sqlite3.connect(tmp_path / "empty.db").close()
    (tmp_path / "empty.db").touch()
    with pytest.raises(StoreError, match="no logger has stored anything here"):
        SqlLog(f"sqlite:///{tmp_path}/empty.db")
    log.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(StoreError, match=r"version 99.*install the newer midstream"):
        SqlLog(log.url)


def test_fields_that_cannot_be_read(log: LogFile) -> None:
    log.add([reading(1)], layout=LAYOUT)
    log.execute("UPDATE connections SET layout = '{'")
    with (
        SqlLog(log.url) as database,
        pytest.raises(StoreError, match="fields of connection 1 cannot be read"),
    ):
        database.connections()
