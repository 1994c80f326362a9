"""What a hardworker says it holds, in every kind of database."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from tests.database import servers
from tests.support.batches import batch_of, end

from midstream.log.account import accounts
from midstream.log.arriving import with_arrivals
from midstream.storage.databases import open_log
from midstream.storage.formats import StreamFormat
from midstream.storage.jetstream import JetStreamStore
from midstream.storage.run import new_name
from midstream.storage.sql import SqlStore
from midstream.storage.sql_log import SqlLog
from midstream.storage.store import ConnectionRow, Store
from midstream.told import (
    CLOSED,
    OPEN,
    RESET,
    STEP,
    ArrivalTimes,
    Forgotten,
    HeldConnection,
    Knowledge,
    Pending,
)

SENSOR = "10.83.0.11"
NAMES = ("data", "imu")
STREAMS = dict.fromkeys(NAMES, StreamFormat())


@pytest.fixture(params=["sqlite", "postgresql", "jetstream"])
def opened(request: pytest.FixtureRequest) -> Iterator[tuple[Store, str]]:
    """A store, and its URL."""
    if request.param == "jetstream":
        cluster: servers.Nats = request.getfixturevalue("cluster")
        address = cluster.url(request.getfixturevalue("stream"))
        with servers.patient(address, streams=STREAMS) as stream:
            yield stream, address
        return
    address = _sql_url(request)
    with SqlStore(address, batch_size=100, streams=STREAMS) as store:
        yield store, address


def _sql_url(request: pytest.FixtureRequest) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{request.getfixturevalue('tmp_path')}/midstream.db"
    server: servers.Postgres = request.getfixturevalue("postgres")
    return server.new_database(f"told{abs(hash(request.node.name)) % 10**8}")


def held(port: int, size: int, state: str = OPEN) -> HeldConnection:
    return HeldConnection(SENSOR, port, 4_000_000_000, 1000 * port, size, state, False)


def waiting(port: int, start: int, stop: int) -> Pending:
    return Pending(SENSOR, port, 4_000_000_000, 1000 * port, start, stop, (stop - start) // 8, 1005)


def told(url: str) -> Knowledge:
    with open_log(url) as log:
        found = log.told()
    return Knowledge(sorted(found.held, key=lambda each: each.port), found.pending, found.forgotten)


def test_the_last_word_of_all_that_was_told(opened: tuple[Store, str]) -> None:
    store, url = opened
    assert told(url) == Knowledge()
    store.note_held([held(1, 100), held(2, 50)], [waiting(9, 0, 80)])
    assert told(url) == Knowledge([held(1, 100), held(2, 50)], [waiting(9, 0, 80)])
    store.note_held([held(1, 40, RESET), held(3, 8, CLOSED)], None)
    assert told(url).held == [held(1, 100, RESET), held(2, 50), held(3, 8, CLOSED)]
    store.note_held([held(2, 60, CLOSED)], [])
    store.note_forgotten([Forgotten(SENSOR, 5, 9, 3, 24)])
    store.note_forgotten([Forgotten(SENSOR, 5, 12, 4, 32)])
    assert told(url) == Knowledge(
        [held(1, 100, RESET), held(2, 60, CLOSED), held(3, 8, CLOSED)], [], [Forgotten(SENSOR, 5, 12, 4, 32)]
    )


def test_what_the_log_lacks(opened: tuple[Store, str]) -> None:
    store, url = opened
    rows = [ConnectionRow(f"a.{port}", SENSOR, port, 1000 * port + 7, first=4_000_000_000) for port in (1, 2)]
    for row in rows:
        batch = batch_of(row, [b"%08d" % number for number in range(5)])
        batch.closed.append(end(row, 40))
        store.write(batch)
    store.note_held([held(1, 40, CLOSED), held(2, 56, RESET), held(3, 8, CLOSED)], [waiting(2, 40, 48)])
    with open_log(url) as log:
        said = log.told()
        extents = log.extents()
        found = accounts(log, said, log.connections(), extents)
    by_port = {
        each.held.port: [(lack.kind, lack.start, lack.end) for lack in each.lacks] for each in found.all
    }
    assert by_port == {1: [], 2: [("pending", 40, 48), ("hole", 48, 56)], 3: [("hole", 0, 8)]}


def test_a_stream_does_not_grow_with_each_second(
    cluster: servers.Nats, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = cluster.url(stream)
    with servers.patient(url) as store:
        for size in range(8, 808, 8):
            store.note_held([held(1, size)], None)
        assert told(url).held == [held(1, 8)]
        monkeypatch.setattr("midstream.storage.jetstream.SELDOM", 0)
        store.note_held([], None)  # what was put off
        assert told(url).held == [held(1, 800)]
        assert isinstance(store, JetStreamStore)
        store.note_held([held(1, 808, CLOSED)], None)
        assert told(url).held == [held(1, 808, CLOSED)]
        with open_log(url) as log:
            assert log.connections() == [] and log.faults() == []


def came(start: int, sizes: Sequence[int]) -> ArrivalTimes:
    steps = b"".join(STEP.pack(size, 1000) for size in sizes)
    return ArrivalTimes(SENSOR, 1, 4_000_000_000, 1000, start, start + sum(sizes), 5000 + start, -7, 3, steps)


def test_when_bytes_came(opened: tuple[Store, str]) -> None:
    """A piece of the connection finds what overlaps it, and nothing of another connection."""
    store, url = opened
    row = ConnectionRow("run.1", SENSOR, 1, 1000, first=4_000_000_000)
    store.write(batch_of(row, [bytes(8)] * 10))
    store.note_held([held(1, 80)], None, [came(0, [16, 16]), came(32, [8])])
    store.note_held(
        [], None, [came(40, [40]), replace(came(0, [80]), first=5), replace(came(0, [80]), port=2)]
    )
    with open_log(url) as log:
        (connection,) = log.connections()
        messages, _ = log.piece(connection, 0, 10)

        def found(start: int, end: int) -> list[ArrivalTimes]:
            told = log.arrivals(connection, start, end, messages[0].received_ns)
            return sorted(told, key=lambda each: each.start)

        assert found(0, 80) == [came(0, [16, 16]), came(32, [8]), came(40, [40])]
        assert found(16, 33) == [came(0, [16, 16]), came(32, [8])]
        assert found(40, 41) == [came(40, [40])]
        assert found(80, 90) == []
        told = with_arrivals(log, messages)
    assert [each.arrival.time_ns for each in told if each.arrival] == [
        6000, 6000, 7000, 7000, 6032, *[6040] * 5
    ]  # fmt: skip


def test_two_streams_from_one_port_are_never_taken_for_each_other(opened: tuple[Store, str]) -> None:
    """Sensor, port, first sequence number and opening time are the same. The logger of both has died."""
    store, url = opened
    dead = f"{new_name()[:-10]}ffff000000"
    rows = {
        name: ConnectionRow(f"{dead}.{number}", SENSOR, 1, 1000, first=4_000_000_000, stream=name)
        for number, name in enumerate(NAMES)
    }
    for number, row in enumerate(rows.values(), 1):
        store.write(batch_of(row, [bytes(8)] * number))
    for number, name in enumerate(NAMES, 1):
        asked = ConnectionRow("another.1", SENSOR, 1, 1000, first=4_000_000_000, stream=name)
        known = store.find(asked)
        assert known is not None
        assert (known.token, known.stream) == (rows[name].token, name)
        assert store.resume([known])[known.token].sequence == number
    assert store.find(ConnectionRow("another.1", SENSOR, 1, 1000, first=4_000_000_000, stream="c")) is None

    store.note_held(
        [replace(held(1, 8 * number), stream=name) for number, name in enumerate(NAMES, 1)],
        [replace(waiting(1, 0, 80), stream=name, messages=number) for number, name in enumerate(NAMES, 1)],
        [replace(came(0, [8]), stream=name, ahead_ns=number) for number, name in enumerate(NAMES, 1)],
    )
    store.note_forgotten([Forgotten(SENSOR, 5, 9, number, 24, name) for number, name in enumerate(NAMES, 1)])
    with open_log(url) as log:
        said = log.told()
        assert {each.stream: each.bytes for each in said.held} == {"data": 8, "imu": 16}
        assert {each.stream: each.messages for each in said.pending} == {"data": 1, "imu": 2}
        assert {each.stream: each.messages for each in said.forgotten} == {"data": 1, "imu": 2}
        for connection in log.connections():
            arrivals = log.arrivals(connection, 0, 80, 0)
            assert [(each.stream, each.ahead_ns) for each in arrivals] == [
                (connection.stream, NAMES.index(connection.stream) + 1)
            ]


def test_the_end_that_only_the_hardworker_knows_is_of_one_stream(url: str) -> None:
    dead = f"{new_name()[:-10]}ffff000000"
    with SqlStore(url, batch_size=9, streams=STREAMS) as store:
        for number, name in enumerate(NAMES):
            row = ConnectionRow(f"{dead}.{number}", SENSOR, 1, 1000, first=4_000_000_000, stream=name)
            store.write(batch_of(row, [b"a"]))
        waits = replace(waiting(1, 0, 8), stream="data")  # of the other one something waits
        store.note_held([replace(held(1, 8, CLOSED), stream="imu")], [waits])
    with SqlLog(url) as log:
        assert {each.stream: each.closed_ns is not None for each in log.connections()} == {
            "data": False,
            "imu": True,
        }
