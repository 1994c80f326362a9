"""What holds for every SQL database: what is committed, in which order, and how far a store says it came."""

import struct
from collections.abc import Iterator
from math import nan

import pytest
from sqlalchemy import create_engine, text
from tests.support.batches import batch_of, end, laid_out

from midstream.errors import StoreError
from midstream.fields import Field, Layout
from midstream.storage.sql import SqlStore
from midstream.storage.sql_log import SqlLog
from midstream.storage.store import Batch, ConnectionRow, Position, checksum


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    with SqlStore(url, batch_size=100) as opened:
        yield opened


def row(token: str = "a.1", sensor: str = "10.83.0.11") -> ConnectionRow:
    return ConnectionRow(token=token, sensor=sensor, port=40000, opened_ns=1)


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    engine = create_engine(url)
    try:
        with engine.connect() as database:
            return [tuple(found) for found in database.execute(text(statement))]
    finally:
        engine.dispose()


def test_a_commit_holds_connections_messages_and_ends(store: SqlStore, url: str) -> None:
    connection = row()
    batch = batch_of(connection, [b"a", b"", b"ccc"], frame=4)
    batch.closed.append(end(connection, 20, unfinished=b"half"))
    connection.reset, connection.reason = True, "gone"
    assert store.write(batch) == 1
    columns = "id, sensor, port, opened_ns, closed_ns, bytes, digest, reset, reason, token, framing, pruned"
    assert query(url, f"SELECT {columns} FROM connections") == [
        (connection.id, "10.83.0.11", 40000, 1, 9, 20, "ab" * 32, True, "gone", "a.1", "fixed", None)
    ]
    assert [bytes(found[0]) for found in query(url, "SELECT unfinished FROM connections")] == [b"half"]  # type: ignore[call-overload]
    expected = [(0, 0, 1000, b"a"), (1, 5, 1001, b""), (2, 9, 1002, b"ccc")]
    assert query(
        url, "SELECT sequence, stream_offset, received_ns, payload, crc FROM messages ORDER BY sequence"
    ) == [(*found, checksum(*found)) for found in expected]


def test_an_open_connection_has_no_end(store: SqlStore, url: str) -> None:
    store.write(Batch(opened=[row()]))
    assert query(url, "SELECT closed_ns, bytes, digest, reset, reason, unfinished FROM connections") == [
        (None,) * 6
    ]


def test_the_log_view_names_the_sensor_of_each_message(store: SqlStore, url: str) -> None:
    first, second = row("a.1", "10.83.0.11"), row("a.2", "10.83.0.12")
    batch = batch_of(first, [b"a"])
    more = batch_of(second, [b"b"], sequence=3)
    store.write(Batch([first, second], [*batch.pieces, *more.pieces], messages=2))
    assert query(url, "SELECT * FROM log ORDER BY received_ns") == [
        ("10.83.0.11", 40000, first.id, 0, 1000, b"a", "data"),
        ("10.83.0.12", 40000, second.id, 3, 1003, b"b", "data"),
    ]


def test_a_transaction_holds_at_most_batch_size_messages(store: SqlStore, url: str) -> None:
    assert store.write(batch_of(row(), [b"x"] * 250)) == 3
    assert query(url, "SELECT count(*), max(sequence) FROM messages") == [(250, 249)]


def test_a_failure_leaves_the_transactions_before_it_and_resume_tells_so(store: SqlStore, url: str) -> None:
    connection = row()
    batch = batch_of(connection, [b"xy"] * 150)
    batch.pieces += batch_of(connection, [b"xy"] * 100, sequence=149).pieces  # 149 twice
    batch.messages = 250
    batch.closed.append(end(connection, 500))
    with pytest.raises(StoreError, match=r"(?i)unique"):
        store.write(batch)
    assert query(url, "SELECT count(*), max(sequence) FROM messages") == [(100, 99)]
    assert query(url, "SELECT reason FROM connections") == [(None,)]
    assert connection.id is not None
    assert store.resume([connection, row("nobody")]) == {"a.1": Position(connection.id, 100, 200)}


def test_fragments_go_when_their_message_is_whole(store: SqlStore, url: str) -> None:
    connection = row()
    batch = batch_of(connection, [b"ab"])
    batch.fragments = [(connection, 2, b"cd"), (connection, 4, b"e")]
    store.write(batch)
    assert connection.id is not None
    assert store.resume([connection]) == {"a.1": Position(connection.id, 1, 5, b"cde")}
    batch = batch_of(connection, [b"cdef", b"gh"], sequence=1, offset=2)
    batch.fragments = [(connection, 8, b"i")]
    batch.completed = [connection]
    store.write(batch)
    assert store.resume([connection]) == {"a.1": Position(connection.id, 3, 9, b"i")}
    assert query(url, "SELECT stream_offset FROM fragments") == [(8,)]


def test_resume_knows_connections_without_messages_and_ended_ones(store: SqlStore) -> None:
    first, second = row("a.1"), row("a.2")
    store.write(Batch(opened=[first]))
    batch = batch_of(second, [b"ab"])
    batch.closed = [end(second, 3, unfinished=b"c")]
    store.write(batch)
    assert first.id is not None
    assert second.id is not None
    assert store.resume([first, second]) == {
        "a.1": Position(first.id, 0, 0),
        "a.2": Position(second.id, 1, 3, b"c", closed=True),
    }


@pytest.mark.slow
def test_resume_of_many(store: SqlStore) -> None:
    rows = [row(f"a.{number}") for number in range(1200)]
    store.write(Batch(opened=rows))
    assert len(store.resume(rows)) == 1200


def test_opening_again_appends(url: str) -> None:
    for number in range(2):
        with SqlStore(url, batch_size=100) as store:
            store.write(batch_of(row(f"a.{number}"), [b"a", b"b"]))
    assert query(url, "SELECT connection_id, sequence FROM messages ORDER BY 1, 2") == [
        (connection, sequence) for connection in (1, 2) for sequence in range(2)
    ]
    assert query(url, "SELECT version FROM schema_version") == [(4,)]


def test_a_database_of_version_2_is_brought_up_to_date(url: str) -> None:
    with SqlStore(url, batch_size=100) as store:
        store.write(batch_of(row(), [b"a"]))
    engine = create_engine(url)
    with engine.begin() as database:
        for change in (
            "DROP INDEX connections_first",
            "DROP VIEW log",
            "ALTER TABLE connections DROP COLUMN stream",
            "ALTER TABLE connections DROP COLUMN first",
            "ALTER TABLE connections DROP COLUMN spooled",
            "DROP TABLE held",
            "DROP TABLE forgotten",
            "UPDATE schema_version SET version = 2",
        ):
            database.execute(text(change))
    engine.dispose()
    with SqlLog(url) as log:
        assert [(found.first, found.spooled) for found in log.connections()] == [(None, False)]
    with SqlStore(url, batch_size=100) as store:
        store.write(batch_of(ConnectionRow("a.2", "10.83.0.11", 40001, 2, first=7, spooled=True), [b"b"]))
    assert query(url, "SELECT version FROM schema_version") == [(4,)]
    assert query(url, "SELECT count(*) FROM held") == query(url, "SELECT count(*) FROM forgotten") == [(0,)]
    with SqlLog(url) as log:
        assert [(found.first, found.spooled) for found in log.connections()] == [(None, False), (7, True)]


def test_a_token_is_known_once(store: SqlStore) -> None:
    store.write(Batch(opened=[row()]))
    with pytest.raises(StoreError, match=r"(?i)unique"):
        store.write(Batch(opened=[row()]))


LAYOUT = Layout(
    12,
    (
        Field("count", "<u4", 0),
        Field("heat", "<i2", 4, unit="°C", scale=0.5),
        Field("raw", "V2", 6),
        Field("speed", "<f4", 8),
    ),
)


def test_fields_are_typed_columns(url: str) -> None:
    payloads = [
        struct.pack("<Ih2sf", 4_000_000_000, -3, b"\0x", 0.25),
        struct.pack("<Ih2sf", 1, 4, b"ab", nan),
    ]
    with SqlStore(url, batch_size=1, streams=laid_out(LAYOUT)) as store:
        store.write(batch_of(row(), payloads))
    assert query(url, "SELECT * FROM readings_data ORDER BY sequence") == [
        (1, 0, 4_000_000_000, -1.5, b"\0x", 0.25),
        (1, 1, 1, 2.0, b"ab", None),
    ]
    ((description,),) = query(url, "SELECT layout FROM connections")
    assert Layout.parse(str(description)) == LAYOUT


def test_a_field_that_is_added_is_a_column_more(url: str) -> None:
    with SqlStore(url, batch_size=9, streams=laid_out(Layout(12, LAYOUT.fields[:1]))) as store:
        store.write(batch_of(row(), [bytes(12)]))
    with SqlStore(url, batch_size=9, streams=laid_out(Layout(12, LAYOUT.fields[1:2]))) as store:
        store.write(batch_of(row("a.2"), [bytes(12)]))
    assert query(url, "SELECT connection_id, count, heat FROM readings_data ORDER BY 1") == [
        (1, 0, None),
        (2, None, 0),
    ]


def test_a_field_that_has_become_another_is_refused(url: str) -> None:
    SqlStore(url, batch_size=9, streams=laid_out(Layout(12, (Field("heat", "<i2", 0),)))).close()
    with pytest.raises(StoreError, match=r"(?i)column heat of its table readings_data is bigint.*DOUBLE"):
        SqlStore(url, batch_size=9, streams=laid_out(LAYOUT))
