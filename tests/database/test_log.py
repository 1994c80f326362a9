"""Looking at what the logger's own stores have written, in every SQL database."""

import hashlib
import struct
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy.exc import DBAPIError
from tests.support.batches import batch_of, end, laid_out

from midstream.errors import StoreError
from midstream.fields import Field, Layout
from midstream.log.messages import LogReader
from midstream.log.selection import Selection
from midstream.log.verify import verify
from midstream.storage.pruning import prune
from midstream.storage.sql import SqlStore
from midstream.storage.sql_log import SqlLog
from midstream.storage.store import ConnectionRow

LAYOUT = Layout(8, (Field("level", "<f4", 0, unit="m"), Field("tag", "V2", 4), Field("count", "<u2", 6)))
PAYLOADS = [struct.pack("<f2sH", number / 4, b"ab", number) for number in range(3000)]


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    with SqlStore(url, batch_size=1000, streams=laid_out(LAYOUT)) as opened:
        yield opened


def row(token: str, sensor: str = "10.83.0.11") -> ConnectionRow:
    return ConnectionRow(token=token, sensor=sensor, port=40000, opened_ns=1000)


def write(store: SqlStore, token: str, *, closed: bool = True, sensor: str = "10.83.0.11") -> None:
    connection = row(token, sensor)
    batch = batch_of(connection, PAYLOADS)
    if closed:
        batch.closed.append(end(connection, 8 * len(PAYLOADS)))
        connection.closed_ns = 4000
        connection.digest = hashlib.sha256(b"".join(PAYLOADS)).hexdigest()
    store.write(batch)


def rights(url: str) -> list[bool]:
    with SqlLog(url) as database:
        return [verdict.right for verdict in verify(database, database.connections())]


def test_damage_is_found(store: SqlStore, url: str) -> None:
    write(store, "a.1")
    with store._engine.begin() as database:
        database.exec_driver_sql("UPDATE readings_data SET level = 7 WHERE sequence = 5")
        database.exec_driver_sql("UPDATE messages SET received_ns = 7 WHERE sequence = 6")
    with SqlLog(url) as database:
        (verdict,) = verify(database, database.connections())
    assert sorted(verdict.faults) == [
        "message 5: the table readings_data says something else",
        "message 6: changed after it was stored (its checksum is wrong)",
    ]


@pytest.mark.slow
def test_what_is_pruned_is_no_gap_and_the_logger_goes_on(store: SqlStore, url: str) -> None:
    write(store, "a.1")
    write(store, "a.2", closed=False)
    removed = prune(url, keep_ns=0, keep_bytes=None)
    assert (removed.messages, removed.bytes) == (5999, 5999 * 8)
    assert rights(url) == [True, True]
    position = store.resume([row("a.2")])["a.2"]
    assert (position.sequence, position.offset) == (3000, 24000)


@pytest.mark.slow
def test_pruning_by_size(store: SqlStore, url: str) -> None:
    write(store, "a.1")
    prune(url, keep_ns=None, keep_bytes=12000)
    with SqlLog(url) as database:
        (extent,) = database.extents().values()
    assert 12000 - 24000 / 64 <= extent.messages * 8 <= 12000
    assert rights(url) == [True]


@pytest.mark.slow
def test_the_logger_writes_while_others_read_and_prune(store: SqlStore, url: str) -> None:
    write(store, "a.1")
    ended = threading.Event()
    faults: list[BaseException] = []

    def look() -> None:
        try:
            while not ended.is_set():
                with SqlLog(url) as database:
                    sum(map(len, LogReader(database, Selection()).read()))
                prune(url, keep_ns=None, keep_bytes=20000)
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for number in range(2, 8):
            write(store, f"a.{number}")
    finally:
        ended.set()
        thread.join()
    assert not faults
    assert all(rights(url))


def test_nothing_can_be_written(store: SqlStore, url: str) -> None:
    write(store, "a.1")
    with (
        SqlLog(url) as database,
        pytest.raises((StoreError, DBAPIError), match=r"read.?only"),
        database.transaction() as opened,
    ):
        opened.exec_driver_sql("DELETE FROM messages")


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(StoreError, match="What to do: see that the database runs") as caught:
        SqlLog("postgresql+psycopg://nobody:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)
