"""Reading a JetStream: what only it can have, and servers that go away meanwhile."""

import asyncio
import hashlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from tests.database import servers
from tests.database.test_jetstream import has_all_replicas
from tests.support.batches import batch_of, end
from tests.support.site import wait_until

from midstream.errors import StoreError
from midstream.log.messages import LogReader
from midstream.log.selection import Selection
from midstream.log.verify import LogVerdict, verify
from midstream.storage import stream as stream_module
from midstream.storage.jetstream import JetStreamStore
from midstream.storage.jetstream_log import JetStreamLog
from midstream.storage.pruning import prune
from midstream.storage.store import ConnectionRow, Position
from midstream.storage.stored import StoredMessage
from midstream.storage.stream import JetStreamStream

PAYLOADS = [b"%08d" % number for number in range(2500)]


@pytest.fixture
def url(cluster: servers.Nats, stream: str) -> str:
    return cluster.url(stream)


@pytest.fixture
def store(url: str) -> Iterator[JetStreamStore]:
    with servers.patient(url) as opened:
        yield opened


@pytest.fixture
def log(store: JetStreamStore, url: str) -> Iterator[JetStreamLog]:
    with JetStreamLog(url) as opened:
        yield opened


def row(token: str = "a.1") -> ConnectionRow:
    return ConnectionRow(token=token, sensor="10.83.0.11", port=40000, opened_ns=1000)


def write(store: JetStreamStore, token: str = "a.1", *, closed: bool = True) -> None:
    connection = row(token)
    batch = batch_of(connection, PAYLOADS)
    if closed:
        batch.closed.append(end(connection, 8 * len(PAYLOADS)))
        connection.digest = hashlib.sha256(b"".join(PAYLOADS)).hexdigest()
    store.write(batch)


def verdicts(log: JetStreamLog) -> list[LogVerdict]:
    return list(verify(log, log.connections()))


def do(cluster: servers.Nats, work: Callable[[Client], Coroutine[Any, Any, Any]]) -> Any:
    async def connected() -> Any:
        client = await nats.connect([f"nats://127.0.0.1:{port}" for port in cluster.ports])
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(connected())


def publish(cluster: servers.Nats, stream: str, headers: dict[str, str], payload: bytes) -> None:
    subject = f"{stream}.data.data.10-83-0-11.40000.a.1"
    do(cluster, lambda client: client.jetstream().publish(subject, payload, headers=headers))


def limit(cluster: servers.Nats, stream: str, **limits: int) -> None:
    async def change(client: Client) -> None:
        config = (await client.jsm().stream_info(stream)).config
        await client.jsm().update_stream(config.evolve(**limits))

    do(cluster, change)


@pytest.mark.slow
def test_a_message_that_is_gone_is_missing(
    cluster: servers.Nats, stream: str, store: JetStreamStore, log: JetStreamLog
) -> None:
    write(store)
    do(cluster, lambda client: client.jsm().delete_msg(stream, 7))  # the opening is 1
    (verdict,) = verdicts(log)
    assert (verdict.faults, verdict.gaps) == (["messages 5 to 5: missing"], 1)


def test_messages_that_are_changed_or_there_twice(
    cluster: servers.Nats, stream: str, store: JetStreamStore, log: JetStreamLog
) -> None:
    write(store, closed=False)
    crc = {"Midstream-Crc": "1"}
    publish(cluster, stream, {"Midstream": "2500 20000 7"} | crc, b"12345678")
    publish(cluster, stream, {"Midstream": "2400 19200 7"}, b"00002400")
    (verdict,) = verdicts(log)
    assert verdict.faults == [
        "message 2500: changed after it was stored (its checksum is wrong)",
        "message 2400: there twice",
    ]
    publish(cluster, stream, {}, b"anything")
    (verdict,) = verdicts(log)
    assert "none that a logger has written. What to do: nats stream rmm" in verdict.faults[0]


@pytest.mark.slow
def test_what_the_streams_limits_have_removed_is_no_gap(
    cluster: servers.Nats, stream: str, store: JetStreamStore, log: JetStreamLog, url: str
) -> None:
    write(store, "a.1")
    write(store, "a.2", closed=False)
    first, second = log.connections()
    limit(cluster, stream, max_msgs=4000)  # of 5003
    for reader in (log, JetStreamLog(url)):
        with reader:
            (left, whole) = reader.connections()
            assert (left.pruned, left.digest, left.state) == (1002, first.digest, "closed")
            assert (whole.pruned, whole.id) == (0, second.id)
            assert [verdict.right for verdict in verdicts(reader)] == [True, True]
            assert [extent.first for extent in reader.extents().values()] == [1002, 0]


def test_what_is_removed_while_it_is_verified_is_no_gap(
    cluster: servers.Nats, stream: str, store: JetStreamStore, log: JetStreamLog
) -> None:
    write(store)
    found = log.connections()
    for left in (1000, 1):  # its end is one of them
        limit(cluster, stream, max_msgs=left)
        (verdict,) = verify(log, found)
        assert (verdict.faults, verdict.gaps, verdict.messages) == ([], 0, left - 1)


def test_a_logger_goes_on_whose_opening_is_gone(
    cluster: servers.Nats, stream: str, store: JetStreamStore, log: JetStreamLog
) -> None:
    write(store, closed=False)
    before = log.connections()
    limit(cluster, stream, max_msgs=10)
    connection = row()
    assert store.resume([connection]) == {"a.1": Position(0, 2500, 20000)}
    connection.id = 0
    batch = batch_of(connection, [b"00002500"], sequence=2500, offset=20000)
    batch.closed.append(end(connection, 20008))
    store.write(batch)
    (after,) = log.connections()
    assert (after.id, after.pruned, after.state) == (before[0].id, 2492, "closed")
    assert [verdict.right for verdict in verdicts(log)] == [True]


def test_connections_that_are_gone_are_not_listed(
    cluster: servers.Nats, stream: str, store: JetStreamStore, log: JetStreamLog
) -> None:
    write(store)
    log.connections()
    limit(cluster, stream, max_msgs=1)  # what is left is its end
    assert log.connections() == []
    assert verdicts(log) == []


def test_an_opening_that_is_missing(
    cluster: servers.Nats, stream: str, store: JetStreamStore, url: str
) -> None:
    write(store, "a.1")
    write(store, "a.2")
    do(cluster, lambda client: client.jsm().delete_msg(stream, 2503))
    with JetStreamLog(url) as log:
        assert next(verdict.faults for verdict in verdicts(log)) == [
            "JetStream: the opening of connection data.10-83-0-11.40000.a.2 is missing"
        ]


def test_nothing_is_kept_for_a_reader_and_nothing_is_written(
    cluster: servers.Nats, stream: str, store: JetStreamStore, log: JetStreamLog
) -> None:
    write(store, closed=False)
    before = do(cluster, lambda client: client.jsm().stream_info(stream))
    pieces = LogReader(log, Selection(since_ns=2000)).read()
    assert next(pieces)
    during = do(cluster, lambda client: client.jsm().stream_info(stream))
    assert during.state.consumer_count == 0
    assert (during.state.messages, during.state.last_seq) == (before.state.messages, before.state.last_seq)


def test_a_logger_goes_on_while_its_stream_is_read(store: JetStreamStore, url: str) -> None:
    ended = threading.Event()
    faults: list[BaseException] = []

    def look() -> None:
        try:
            while not ended.is_set():
                with JetStreamLog(url) as log:
                    assert all(verdict.right for verdict in verdicts(log))
                    sum(map(len, LogReader(log, Selection()).read()))
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for number in range(4):
            write(store, f"a.{number}")
    finally:
        ended.set()
        thread.join()
    assert not faults


def test_a_replica_that_lags_behind_is_asked_again(
    store: JetStreamStore, log: JetStreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store)
    honest = JetStreamStream._batch
    lies: list[dict[str, Any]] = []

    async def late(stream: JetStreamStream, question: dict[str, Any]) -> Any:
        found, ending = await honest(stream, question)
        if ".data." in question["next_by_subj"] and not lies:
            lies.append(question)
            return found[:100], {"Nats-Num-Pending": "0"}
        return found, ending

    monkeypatch.setattr(JetStreamStream, "_batch", late)
    found = [message.sequence for piece in LogReader(log, Selection()).read() for message in piece]
    assert found == [*range(2500)]
    assert lies


def test_a_connection_that_is_lost_is_made_again(store: JetStreamStore, log: JetStreamLog) -> None:
    write(store)
    (connection,) = log.connections()
    log.extents()
    first, following = log.piece(connection, 0, 1000)
    servers_ = log._stream._servers
    servers_.run(servers_.client.close())
    rest, _ = log.piece(connection, following, 2500)
    assert [message.sequence for message in first + rest] == [*range(2500)]


def test_streams_that_cannot_be_read(cluster: servers.Nats, stream: str, store: JetStreamStore) -> None:
    with pytest.raises(StoreError, match=r"there is no stream none\. What to do: name the logger's"):
        JetStreamLog(cluster.url("none"))
    with pytest.raises(StoreError, match="no name of a stream"):
        JetStreamLog("nats://user:secret@host")
    with pytest.raises(StoreError, match="What to do: see that the servers run") as caught:
        JetStreamLog("nats://user:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)
    with pytest.raises(StoreError, match="only SQL databases are pruned"):
        prune(cluster.url(stream), keep_ns=0, keep_bytes=None)
    limit(cluster, stream, allow_direct=False)
    with pytest.raises(StoreError, match=f"nats stream edit {stream} --allow-direct"):
        JetStreamLog(cluster.url(stream))


def test_servers_that_go_away_while_it_is_read(
    url: str, store: JetStreamStore, log: JetStreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store)
    (connection,) = log.connections()
    monkeypatch.setattr(stream_module, "PATIENCE", 0.2)
    servers_ = log._stream._servers
    servers_.run(servers_.client.close())
    servers_.address = replace(servers_.address, servers=("nats://127.0.0.1:1",))
    with pytest.raises(StoreError, match="What to do: see that the servers run"):
        log.piece(connection, 0, 2500)


@pytest.mark.slow
def test_servers_that_are_killed_while_it_is_read(
    cluster: servers.Nats, stream: str, store: JetStreamStore, log: JetStreamLog
) -> None:
    """Whichever of the three goes away, leader or not, the reader's own or another."""
    write(store)
    (connection,) = log.connections()
    log.extents()
    for lost in range(3):
        wait_until(lambda: has_all_replicas(cluster, stream), 60)
        found: list[StoredMessage] = []
        position = 0
        while position < len(PAYLOADS):
            piece, position = log.piece(connection, position, min(position + 100, len(PAYLOADS)))
            found += piece
            if len(found) == 1000:
                cluster.kill(lost)
        assert [verdict.right for verdict in verdicts(log)] == [True]
        cluster.start(lost)
        assert [message.payload for message in found] == PAYLOADS
