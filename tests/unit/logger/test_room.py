"""The spool's bounds: what a full one forgets, counts and keeps."""

import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.support.batches import batch_of, end

from midstream.config import Config, HardworkerSection
from midstream.logger.forgetting import Forgetting
from midstream.storage import room
from midstream.storage.databases import open_spool
from midstream.storage.formats import ONE_STREAM, StreamFormat
from midstream.storage.store import Batch, ConnectionRow, Position, Store, Unavailable

SIZE = 1000
LIMIT = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


def opened(path: Path, **settings: Any) -> Store:
    hardworker = HardworkerSection(spool_size=LIMIT, spool_free=0).model_copy(update=settings)
    config = Config(hardworker=hardworker)
    return open_spool(config, path, ONE_STREAM)


def query(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(statement).fetchall()


def used(path: Path) -> int:
    ((pages,),) = query(path, "PRAGMA page_count")
    ((unused,),) = query(path, "PRAGMA freelist_count")
    return int((pages - unused) * 4096)


class Sender:
    """A connection that goes on where it was."""

    def __init__(self, number: int, sensor: str = "10.83.0.11") -> None:
        self.row = ConnectionRow(f"a.{number}", sensor, 40000 + number, number)
        self.sequence = 0

    def batch(self, count: int, size: int = SIZE) -> Batch:
        batch = batch_of(self.row, [bytes(size)] * count)
        if self.sequence:
            batch.opened.clear()
        (piece,) = batch.pieces
        piece.sequence, piece.offset = self.sequence, self.sequence * size
        piece.received_ns = [1000 + self.sequence + index for index in range(count)]
        self.sequence += count
        return batch


def test_the_oldest_go_and_are_counted_for_each_sensor(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    senders = [Sender(1), Sender(2), Sender(3, "10.83.0.12")]
    forgotten = 0
    with opened(path) as store:
        for _ in range(30):
            for sender in senders:
                batch = sender.batch(50)
                store.write(batch)
                forgotten += batch.forgotten
                assert used(path) <= LIMIT
    assert forgotten > 3000
    holes = query(path, "SELECT sensor, first_ns, messages, bytes FROM forgotten ORDER BY sensor")
    assert [hole[:2] for hole in holes] == [("10.83.0.11", 1000), ("10.83.0.12", 1000)]
    assert sum(hole[2] for hole in holes) == forgotten
    assert all(size == count * SIZE for *_, count, size in holes)
    kept = query(path, "SELECT count(*) FROM messages")[0][0]
    assert kept + forgotten == 30 * 150
    assert kept * SIZE > LIMIT / 2
    # What is left of each is its newest part, without a gap, and the row says where it begins.
    for count, first, last, pruned in query(
        path,
        "SELECT count(*), min(sequence), max(sequence), pruned FROM messages "
        "JOIN connections ON connection_id = id GROUP BY id",
    ):
        assert (last, first, count) == (1499, pruned, 1500 - pruned)
    assert caplog.text.count("forgets its oldest messages") == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_the_last_message_of_an_open_connection_stays(path: Path) -> None:
    """There a worker goes on that takes the place of a dead one."""
    silent, over, busy = Sender(1), Sender(2), Sender(3)
    with opened(path) as store:
        store.write(silent.batch(10))
        ending = over.batch(10)
        ending.closed.append(end(over.row, 10 * SIZE))
        store.write(ending)
        for _ in range(40):
            store.write(busy.batch(50))
        assert query(path, "SELECT sequence FROM messages WHERE connection_id = 1") == [(9,)]
        assert query(path, "SELECT count(*) FROM messages WHERE connection_id = 2") == [(0,)]
        positions = store.resume([silent.row, over.row])
    assert positions == {
        "a.1": Position(1, 10, 10 * SIZE),
        "a.2": Position(2, 10, 10 * SIZE, closed=True),
    }
    assert query(path, "SELECT pruned FROM connections WHERE id < 3 ORDER BY id") == [(9,), (10,)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 64, 1 << 14, 3 << 17])
def test_sizes(path: Path, size: int) -> None:
    """It exceeds its size by no more than what is written at once."""
    sender, count = Sender(1), max(1, (1 << 17) // (size + room.ROW))
    with opened(path) as store:
        for _ in range(30):
            store.write(sender.batch(count, size))
            assert used(path) <= LIMIT + max(size, 1 << 16)
    assert query(path, "SELECT messages > 0 FROM forgotten") == [(1,)]
    assert query(path, "SELECT max(sequence) FROM messages") == [(30 * count - 1,)]


def test_what_is_forgotten_and_what_is_stored_are_one_transaction(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = Sender(1)
    with opened(path) as store:
        for _ in range(18):
            store.write(sender.batch(50))
        before = query(path, "SELECT messages FROM forgotten"), query(path, "SELECT count(*) FROM messages")

        def fail(*_: object) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        monkeypatch.setattr(store, "_insert_rows", fail)
        with pytest.raises(Unavailable, match="disk I/O"):
            store.write(sender.batch(100))
    assert before == (
        query(path, "SELECT messages FROM forgotten"),
        query(path, "SELECT count(*) FROM messages"),
    )


def test_a_spool_that_waits_takes_no_more_until_there_is_room(path: Path) -> None:
    sender = Sender(1)
    with opened(path, spool_full="wait") as store:
        while used(path) < LIMIT * 3 // 4:
            store.write(sender.batch(50))
        with pytest.raises(Unavailable, match=r"the spool is full.*spool_size"):
            store.write(sender.batch(300))
        sender.sequence -= 250
        ((count,),) = query(path, "SELECT count(*) FROM messages")
        assert count == sender.sequence - 50
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("DELETE FROM messages WHERE sequence < 100")
        sender.sequence -= 50
        store.write(sender.batch(50))
    assert query(path, "SELECT count(*) FROM messages") == [(count - 50,)]
    assert query(path, "SELECT count(*) FROM forgotten") == [(0,)]


def test_connections_of_which_nothing_is_left_go_at_last(path: Path) -> None:
    """Sensors may connect again and again for as long as there is no logger."""
    opened(path).close()
    rows = [("10.83.0.11", number, 1, 2, f"a.{number:0>40}") for number in range(8000)]
    with closing(sqlite3.connect(path)) as database, database:
        database.executemany(
            "INSERT INTO connections (sensor, port, opened_ns, closed_ns, token) VALUES (?, ?, ?, ?, ?)", rows
        )
    assert used(path) > LIMIT
    with opened(path) as store:
        sender = Sender(10_000)
        for _ in range(3):
            store.write(sender.batch(10))
    assert used(path) <= LIMIT
    ((count, last),) = query(path, "SELECT count(*), max(id) FROM connections")
    assert (count > 2000, last) == (True, 8001)
    assert query(path, "SELECT max(sequence) FROM messages") == [(29,)]


@pytest.mark.slow
def test_forgetting_keeps_up(path: Path) -> None:
    """With 20,000 messages of 1 KiB per second, by the time of one processor beside whatever else runs."""
    senders = [Sender(number) for number in range(16)]
    with opened(path, spool_size=8 << 20) as store:
        for _ in range(3):
            for sender in senders:
                store.write(sender.batch(250, 1024))
        began = time.process_time()
        for _ in range(5):
            batch = Batch()
            for sender in senders:
                batch.pieces += sender.batch(250, 1024).pieces
            batch.messages = 16 * 250
            store.write(batch)
            assert batch.forgotten > 3000
        assert time.process_time() - began < 5 * 16 * 250 / 20_000


def test_it_leaves_free_space_on_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With less than that it uses what it has, over and over."""
    sender = Sender(1)
    with opened(path, spool_free=1 << 62, spool_size=1 << 40) as store:
        store.write(sender.batch(100))
        ((pages,),) = query(path, "PRAGMA page_count")
        for _ in range(20):
            store.write(sender.batch(50))
        ((after,),) = query(path, "PRAGMA page_count")
    assert after - pages < 20
    assert query(path, "SELECT count(*) < 160, max(sequence) FROM messages") == [(1, 1099)]


def test_each_stream_of_a_sensor_has_holes_of_its_own(path: Path) -> None:
    """What is forgotten to make room, and what could not be stored at all."""
    names = ("data", "imu")
    senders = [Sender(1), Sender(2)]
    for sender, name in zip(senders, names, strict=True):
        sender.row.stream = name
    config = Config(hardworker=HardworkerSection(spool_size=LIMIT, spool_free=0))
    with open_spool(config, path, dict.fromkeys(names, StreamFormat())) as store:
        for _ in range(3):
            for sender in senders:
                store.write(sender.batch(LIMIT // 2 // SIZE))
    found = query(path, "SELECT stream, sensor FROM forgotten ORDER BY 1")
    assert found == [(name, "10.83.0.11") for name in names]

    forgetting = Forgetting()
    for sender in senders:
        forgetting.add(sender.batch(sender.row.port - 40000))
    assert {(hole.stream, hole.messages) for hole in forgetting.holes()} == {("data", 1), ("imu", 2)}
