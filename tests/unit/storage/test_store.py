"""SQLite: durability, locks, files; versions of the tables; and all that can be wrong with a URL."""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, event
from tests.support.batches import batch_of

from midstream.errors import StoreError
from midstream.storage import sql
from midstream.storage.sql import SqlStore
from midstream.storage.store import Batch, ConnectionRow, Unavailable


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqlStore]:
    with SqlStore(f"sqlite:///{path}", batch_size=100) as opened:
        yield opened


def row(token: str = "a.1") -> ConnectionRow:
    return ConnectionRow(token=token, sensor="10.83.0.11", port=40000, opened_ns=1)


def query(path: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(statement).fetchall()


def test_sqlite_writes_ahead_and_syncs_each_commit(store: SqlStore, path: Path) -> None:
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
    with SqlStore(f"sqlite:///{path}", batch_size=100) as store:
        store.write(Batch(opened=[row()]))
    assert [file.name for file in path.parent.iterdir()] == ["log.db"]


def test_a_reader_does_not_stop_the_writer(store: SqlStore, path: Path) -> None:
    store.write(Batch(opened=[row("a.1")]))
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM connections").fetchone() == (1,)
        store.write(Batch(opened=[row("a.2")]))
        assert reader.execute("SELECT count(*) FROM connections").fetchone() == (1,)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("midstream.db", "is not a URL. Expected a SQLAlchemy URL such as sqlite:///"),
        ("oracel://user:secret@host/db", "no such kind of database. Expected"),
    ],
)
def test_a_wrong_url_is_explained(url: str, reason: str) -> None:
    with pytest.raises(StoreError, match=reason) as caught:
        SqlStore(url, batch_size=1)
    assert "secret" not in str(caught.value)


def test_a_missing_folder_may_come(tmp_path: Path) -> None:
    """A disk that is mounted late."""
    folder = tmp_path / "disk"
    with pytest.raises(Unavailable, match=r"unable to open.*folder must exist"):
        SqlStore(f"sqlite:///{folder}/log.db", batch_size=1)
    folder.mkdir()
    SqlStore(f"sqlite:///{folder}/log.db", batch_size=1).close()


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(StoreError, match="pip install psycopg2") as caught:
        SqlStore("postgresql+psycopg2://user:secret@localhost/db", batch_size=1)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"this is not a database at all\n" * 100)
    with pytest.raises(StoreError, match=r"not a database.*move it away"):
        SqlStore(f"sqlite:///{path}", batch_size=1)


def test_a_damaged_database(path: Path) -> None:
    with SqlStore(f"sqlite:///{path}", batch_size=10_000) as store:
        store.write(batch_of(row(), [b"%d" % number for number in range(10_000)]))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)  # all but the page with the schema
    path.write_bytes(content)
    with (
        pytest.raises(StoreError, match=r"malformed.*move it away"),
        SqlStore(f"sqlite:///{path}", batch_size=100) as store,
    ):
        store.write(Batch(opened=[row()]))


def test_tables_of_another_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE messages (id INTEGER, body TEXT)")
    with pytest.raises(StoreError, match=r"table messages is not midstream's.*payload"):
        SqlStore(f"sqlite:///{path}", batch_size=1)


def test_a_locked_database(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "LOCK_TIMEOUT", 0.1)
    with SqlStore(f"sqlite:///{path}", batch_size=100) as store, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match=r"locked.*another program"):
            store.write(Batch(opened=[row()]))
        other.rollback()
        store.write(Batch(opened=[row()]))
    assert query(path, "SELECT count(*) FROM connections") == [(1,)]


def test_a_database_of_version_1_is_brought_up_to_date(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            """
            CREATE TABLE connections (id INTEGER NOT NULL PRIMARY KEY, sensor VARCHAR(15) NOT NULL,
                port INTEGER NOT NULL, opened_ns BIGINT NOT NULL, closed_ns BIGINT, bytes BIGINT,
                digest VARCHAR(64), reset BOOLEAN, reason TEXT, unfinished BLOB);
            CREATE TABLE messages (connection_id INTEGER NOT NULL, sequence BIGINT NOT NULL,
                received_ns BIGINT NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (connection_id, sequence),
                FOREIGN KEY(connection_id) REFERENCES connections (id));
            CREATE VIEW log AS SELECT connections.sensor, connections.port, messages.connection_id,
                messages.sequence, messages.received_ns, messages.payload
                FROM messages JOIN connections ON connections.id = messages.connection_id;
            INSERT INTO connections VALUES (1, '10.83.0.11', 4711, 5, 9, 1, 'ab', 0, 'end of stream', NULL);
            INSERT INTO messages VALUES (1, 0, 6, x'61');
            """
        )
    for _ in range(2):
        SqlStore(f"sqlite:///{path}", batch_size=100).close()
        assert query(path, "SELECT version FROM schema_version") == [(4,)]
    with SqlStore(f"sqlite:///{path}", batch_size=100) as store:
        store.write(batch_of(row(), [b"b"]))
    assert query(path, "SELECT connection_id, sequence, payload, stream_offset FROM messages") == [
        (1, 0, b"a", None),
        (2, 0, b"b", 0),
    ]
    assert query(path, "SELECT count(*) FROM log") == [(2,)]
    with pytest.raises(sqlite3.IntegrityError), closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE connections SET token = 'a.1'")


def test_a_newer_database_is_refused_and_left_alone(path: Path) -> None:
    SqlStore(f"sqlite:///{path}", batch_size=100).close()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE schema_version SET version = 5")
    with pytest.raises(StoreError, match=r"tables have version 5.*up to 4. Install the newer midstream"):
        SqlStore(f"sqlite:///{path}", batch_size=100)
    assert query(path, "SELECT version FROM schema_version") == [(5,)]


def test_the_tables_of_another_program_stay_as_they_are(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE connections (id INTEGER, host TEXT)")
    with pytest.raises(StoreError, match=r"table connections is not midstream's"):
        SqlStore(f"sqlite:///{path}", batch_size=1)
    assert query(path, "SELECT name FROM sqlite_master WHERE type = 'table'") == [("connections",)]


def test_a_full_disk_passes(path: Path) -> None:
    with SqlStore(f"sqlite:///{path}", batch_size=100) as store:
        with store._engine.connect() as database:
            database.exec_driver_sql("PRAGMA max_page_count = 40")
        with pytest.raises(Unavailable, match=r"full.*make room"):
            store.write(batch_of(row(), [bytes(4096)] * 100))
        assert store.resume([row()]) == {}
