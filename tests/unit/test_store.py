"""The store: what is in the database after a commit and a restart, and all that can be wrong with a URL."""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, event

from midstream.errors import StoreError
from midstream.logger import store as store_module
from midstream.logger.store import Batch, ConnectionRow, Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store(f"sqlite:///{path}", batch_size=100) as opened:
        yield opened


def row(sensor: str = "10.83.0.11") -> ConnectionRow:
    return ConnectionRow(sensor=sensor, port=40000, opened_ns=1)


def message_batch(connection: ConnectionRow, first: int, count: int) -> Batch:
    numbers = range(first, first + count)
    return Batch(messages=[(connection, number, 1000 + number, b"%d" % number) for number in numbers])


def query(path: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(statement).fetchall()


def test_a_commit_holds_connections_messages_and_ends(store: Store, path: Path) -> None:
    connection = row()
    batch = message_batch(connection, 0, 3)
    batch.opened.append(connection)
    batch.closed.append(connection)
    connection.closed_ns, connection.size, connection.digest = 9, 12, "ab" * 32
    connection.reset, connection.reason, connection.unfinished = True, "gone", b"half"
    assert store.write(batch) == 1
    assert query(path, "SELECT * FROM connections") == [
        (connection.id, "10.83.0.11", 40000, 1, 9, 12, "ab" * 32, 1, "gone", b"half")
    ]
    assert query(path, "SELECT * FROM messages ORDER BY sequence") == [
        (connection.id, number, 1000 + number, b"%d" % number) for number in range(3)
    ]


def test_an_open_connection_has_no_end(store: Store, path: Path) -> None:
    store.write(Batch(opened=[row()]))
    assert query(path, "SELECT closed_ns, bytes, digest, reset, reason, unfinished FROM connections") == [
        (None,) * 6
    ]


def test_the_log_view_names_the_sensor_of_each_message(store: Store, path: Path) -> None:
    first, second = row("10.83.0.11"), row("10.83.0.12")
    store.write(Batch(opened=[first, second], messages=[(first, 0, 5, b"a"), (second, 0, 6, b"b")]))
    assert query(path, "SELECT * FROM log ORDER BY received_ns") == [
        ("10.83.0.11", 40000, first.id, 0, 5, b"a"),
        ("10.83.0.12", 40000, second.id, 0, 6, b"b"),
    ]


def test_a_transaction_holds_at_most_batch_size_messages(store: Store, path: Path) -> None:
    connection = row()
    batch = message_batch(connection, 0, 250)
    batch.opened.append(connection)
    assert store.write(batch) == 3
    assert query(path, "SELECT count(*), max(sequence) FROM messages") == [(250, 249)]


def test_a_failed_transaction_leaves_the_ones_before_it(store: Store, path: Path) -> None:
    connection = row()
    batch = message_batch(connection, 0, 250)
    batch.opened.append(connection)
    batch.closed.append(connection)
    batch.messages[150] = batch.messages[149]  # a duplicate key in the second transaction
    with pytest.raises(StoreError, match="UNIQUE"):
        store.write(batch)
    assert query(path, "SELECT count(*), max(sequence) FROM messages") == [(100, 99)]
    assert query(path, "SELECT reason FROM connections") == [(None,)]


def test_restart_appends_to_the_database(path: Path) -> None:
    for _ in range(2):
        with Store(f"sqlite:///{path}", batch_size=100) as store:
            connection = row()
            batch = message_batch(connection, 0, 2)
            batch.opened.append(connection)
            store.write(batch)
    assert query(path, "SELECT connection_id, sequence FROM messages ORDER BY 1, 2") == [
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]


def test_sqlite_writes_ahead_and_syncs_each_commit(store: Store, path: Path) -> None:
    assert query(path, "PRAGMA journal_mode") == [("wal",)]
    levels = []

    def note_level(connection: Connection) -> None:
        levels.append(connection.exec_driver_sql("PRAGMA synchronous").scalar())

    event.listen(Engine, "begin", note_level)
    try:
        store.write(Batch(opened=[row()]))
    finally:
        event.remove(Engine, "begin", note_level)
    assert levels == [2]  # FULL


def test_closing_leaves_one_file(path: Path) -> None:
    with Store(f"sqlite:///{path}", batch_size=100) as store:
        store.write(Batch(opened=[row()]))
    assert [file.name for file in path.parent.iterdir()] == ["log.db"]


def test_a_reader_does_not_stop_the_writer(store: Store, path: Path) -> None:
    store.write(Batch(opened=[row()]))
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM connections").fetchone() == (1,)
        store.write(Batch(opened=[row()]))
        assert reader.execute("SELECT count(*) FROM connections").fetchone() == (1,)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("midstream.db", "is not a URL. Expected a SQLAlchemy URL such as sqlite:///"),
        ("oracel://user:secret@host/db", "no such kind of database. Expected"),
        ("sqlite:////nowhere/at/all/log.db", "unable to open.*folder must exist"),
    ],
)
def test_a_wrong_url_is_explained(url: str, reason: str) -> None:
    with pytest.raises(StoreError, match=reason) as caught:
        Store(url, batch_size=1)
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(StoreError, match="pip install psycopg2") as caught:
        Store("postgresql+psycopg2://user:secret@localhost/db", batch_size=1)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"this is not a database at all\n" * 100)
    with pytest.raises(StoreError, match=r"not a database.*move it away"):
        Store(f"sqlite:///{path}", batch_size=1)


def test_a_damaged_database(path: Path) -> None:
    with Store(f"sqlite:///{path}", batch_size=10_000) as store:
        connection = row()
        batch = message_batch(connection, 0, 10_000)
        batch.opened.append(connection)
        store.write(batch)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)  # all but the page with the schema
    path.write_bytes(content)
    with (
        pytest.raises(StoreError, match=r"malformed.*move it away"),
        Store(f"sqlite:///{path}", batch_size=100) as store,
    ):
        store.write(Batch(opened=[row()]))


def test_tables_of_another_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE messages (id INTEGER, body TEXT)")
    with pytest.raises(StoreError, match=r"table messages is not midstream's.*payload"):
        Store(f"sqlite:///{path}", batch_size=1)


def test_a_locked_database(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT", 0.1)
    with Store(f"sqlite:///{path}", batch_size=100) as store, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"locked.*another program"):
            store.write(Batch(opened=[row()]))
        other.rollback()
        store.write(Batch(opened=[row()]))
    assert query(path, "SELECT count(*) FROM connections") == [(1,)]
