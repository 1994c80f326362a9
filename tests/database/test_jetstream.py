"""JetStream on three servers: what is in the stream, and what becomes of a run that loses a server."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nats
import pytest
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import ConsumerConfig, DeliverPolicy
from tests.database import servers
from tests.database.servers import patient
from tests.support.batches import batch_of, end
from tests.support.site import SIZE, Serving, Site, Workers, wait_until

from midstream.errors import ConfigError, StoreError
from midstream.log.verify import verify
from midstream.logger import Logger
from midstream.sensor import Sensor, numbered_messages
from midstream.storage.jetstream import JetStreamStore
from midstream.storage.jetstream_log import JetStreamLog
from midstream.storage.published import PLACE
from midstream.storage.store import Batch, ConnectionRow, Position, Unavailable

Stored = tuple[str, dict[str, str], bytes]


@pytest.fixture
def store(cluster: servers.Nats, stream: str) -> Iterator[JetStreamStore]:
    with patient(cluster.url(stream)) as opened:
        yield opened


def row(token: str = "a.1") -> ConnectionRow:
    return ConnectionRow(token=token, sensor="10.83.0.11", port=40000, opened_ns=1)


def read(cluster: servers.Nats, stream: str, kind: str, count: int) -> list[Stored]:
    """Everything in the subjects of that kind, in the stream's order; waits until there are `count`."""

    async def collect() -> list[Stored]:
        urls = [f"nats://127.0.0.1:{port}" for port in cluster.ports]
        client = await nats.connect(urls)
        found: list[Stored] = []
        try:
            jetstream = client.jetstream()
            wanted = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, inactive_threshold=60)
            subscription = await jetstream.pull_subscribe(f"{stream}.{kind}.>", stream=stream, config=wanted)
            while True:
                left = count - len(found)
                try:
                    messages = await subscription.fetch(min(left, 500) or 1, timeout=10 if left else 0.3)
                except NatsTimeoutError:
                    if left:
                        raise
                    return found
                for message in messages:
                    found.append((message.subject, dict(message.headers or {}), message.data))
                    await message.ack()
        finally:
            await client.close()

    deadline = time.monotonic() + 30
    while True:
        try:
            return asyncio.run(collect())
        except NatsError:  # a server that was started just now does not know everything yet
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_messages_and_events_are_in_the_stream(
    cluster: servers.Nats, stream: str, store: JetStreamStore
) -> None:
    connection = row()
    batch = batch_of(connection, [b"a", b"", b"ccc"], frame=4)
    batch.closed.append(end(connection, 20, unfinished=b"half"))
    assert store.write(batch) == 1
    subject = f"{stream}.data.data.10-83-0-11.40000.a.1"
    places = [(f"a.1:{offset}", f"{n} {offset} {1000 + n}") for n, offset in enumerate([0, 5, 9])]
    found = read(cluster, stream, "data", 3)
    assert [(name, headers["Nats-Msg-Id"], headers[PLACE]) for name, headers, _ in found] == [
        (subject, *place) for place in places
    ]
    assert [payload for *_, payload in found] == [b"a", b"", b"ccc"]
    events = [json.loads(payload) for *_, payload in read(cluster, stream, "connections", 2)]
    assert [event["state"] for event in events] == ["open", "closed"]
    assert (
        events[0] | {"sensor": "10.83.0.11", "port": 40000, "opened_ns": 1, "framing": "fixed"} == events[0]
    )
    assert events[1] | {"bytes": 20, "digest": "ab" * 32, "reset": False, "unfinished": 4} == events[1]
    assert [payload for *_, payload in read(cluster, stream, "fragments", 1)] == [b"half"]


def test_resume_tells_how_far_the_stream_came(store: JetStreamStore) -> None:
    connection, silent, ended = row("a.1"), row("a.2"), row("a.3")
    batch = batch_of(connection, [b"ab", b"cd"])
    batch.opened += [silent, ended]
    batch.fragments = [(connection, 4, b"ef"), (connection, 6, b"g")]
    batch.closed = [end(ended, 0)]
    store.write(batch)
    assert store.resume([connection, silent, ended, row("b.1")]) == {
        "a.1": Position(0, 2, 7, b"efg"),
        "a.2": Position(0, 0, 0),
        "a.3": Position(0, 0, 0, closed=True),
    }
    batch = batch_of(connection, [b"efgh"], sequence=2, offset=4)
    batch.opened = []
    batch.completed = [connection]
    store.write(batch)
    assert store.resume([connection]) == {"a.1": Position(0, 3, 8)}


def test_what_is_stored_is_not_stored_again(
    cluster: servers.Nats, stream: str, store: JetStreamStore
) -> None:
    """Neither within the duplicate window nor later: the subject's last message is not the one expected."""
    store.write(batch_of(row(), [b"ab", b"cd"]))
    with patient(cluster.url(stream)) as other:  # as after a lost answer, and without asking
        with pytest.raises(Unavailable, match="duplicate"):
            other.write(batch_of(row(), [b"ab", b"cd"]))
        again = batch_of(row(), [b"xy"], offset=99)
        again.opened, again.pieces[0].row.id = [], 0
        with pytest.raises(Unavailable, match="wrong last sequence"):
            other.write(again)
    assert len(read(cluster, stream, "data", 2)) == 2


@pytest.mark.slow
def test_long_batches_are_cut_and_stay_in_order(
    cluster: servers.Nats, stream: str, store: JetStreamStore
) -> None:
    assert store.write(batch_of(row(), [b"%d" % number for number in range(2500)])) == 3
    found = read(cluster, stream, "data", 2500)
    assert [payload for *_, payload in found] == [b"%d" % number for number in range(2500)]


def test_a_message_longer_than_the_server_takes(store: JetStreamStore) -> None:
    with pytest.raises(StoreError, match=r"1048576 bytes, and the server takes 1048576.*max_payload"):
        store.write(batch_of(row(), [bytes(1 << 20)]))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nats://host:4222", "config.toml: logger.database = .*no name of a stream; must be .*nats://host"),
        ("nats://user:secret@host:4222/a.b", "no name of a stream"),
        (f"nats://host:4222/{'n' * 256}", "no name of a stream"),
        ("nats://host:4222/name?replicas=7", "not 1 to 5 replicas"),
        ("nats://host:4222/name?replica=3", "not an option"),
    ],
)
def test_a_wrong_url(tmp_path: Path, url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught, Logger(Site(tmp_path, url).config):
        pass
    assert "secret" not in str(caught.value)


def test_a_stream_of_another_program(cluster: servers.Nats, stream: str, store: JetStreamStore) -> None:
    async def make() -> None:
        client = await nats.connect(f"nats://127.0.0.1:{cluster.ports[0]}")
        await client.jetstream().add_stream(name="foreign", subjects=["foreign.*"])
        await client.close()

    asyncio.run(make())
    with pytest.raises(StoreError, match=r"stream foreign is not midstream's"):
        JetStreamStore(cluster.url("foreign"))


def has_all_replicas(cluster: servers.Nats, stream: str) -> bool:
    """Have both followers all that the leader has? Losing a server before is losing two."""

    async def ask() -> bool:
        client = await nats.connect([f"nats://127.0.0.1:{port}" for port in cluster.ports])
        try:
            group = (await client.jsm(timeout=1).stream_info(stream)).cluster
            replicas = (group.replicas if group else None) or []
            return len(replicas) == 2 and all(each.current and not each.offline for each in replicas)
        finally:
            await client.close()

    try:
        return asyncio.run(ask())
    except NatsError:
        return False


def moves_on(serving: Serving) -> None:
    before = serving.logger.summary.messages
    wait_until(lambda: serving.logger.summary.messages >= before + 1000, 60)


@pytest.mark.slow
@pytest.mark.parametrize("losses", [[0], [0, 1, 2, 0, 1, 2]])
def test_a_server_that_is_killed_during_the_run(
    tmp_path: Path,
    stream: str,
    losses: list[int],
    monkeypatch: pytest.MonkeyPatch,
    cluster: servers.Nats,
) -> None:
    """Nothing lost, nothing twice, everything in order; the worker is killed too."""
    workers = Workers(monkeypatch)
    site = Site(tmp_path, cluster.url(stream))
    patient(site.url).close()
    enough = threading.Event()
    with Serving(site.config) as serving, Sensor(site.config) as sensor:
        sending = threading.Thread(
            target=sensor.run,
            args=(numbered_messages(SIZE, None),),
            kwargs={"rate": 2000, "stop": enough.is_set},
        )
        sending.start()
        try:
            for lost in losses:
                moves_on(serving)
                cluster.kill(lost)
                workers.kill()
                moves_on(serving)
                cluster.start(lost)
                wait_until(lambda: has_all_replicas(cluster, stream), 60)
        finally:
            enough.set()
            sending.join(120)
    messages = sensor.summary.messages
    assert sensor.summary.clean
    assert serving.summary.messages == messages
    found = read(cluster, stream, "data", messages)
    assert [int(headers[PLACE].split()[0]) for _, headers, _ in found] == list(range(messages))
    assert [int.from_bytes(payload[:8], "little") for *_, payload in found] == list(range(messages))
    opened, closed = (json.loads(payload) for *_, payload in read(cluster, stream, "connections", 2))
    assert (opened["state"], closed["state"]) == ("open", "closed")
    assert (closed["bytes"], closed["reason"]) == (messages * SIZE, "end of stream")
    with JetStreamLog(site.url) as log:
        (verdict,) = verify(log, log.connections())
    assert (verdict.faults, verdict.messages) == ([], messages)
    assert verdict.sha256 == sensor.summary.digest


def test_a_connection_of_a_version_before_streams_goes_on_in_its_own_subjects(
    cluster: servers.Nats, stream: str
) -> None:
    """Its subjects have no name of a stream. A spool gives the rest of it, with names of its own."""
    url, begun = cluster.url(stream), ConnectionRow("old.1", "10.83.0.11", 40000, 5, first=7)
    with patient(url) as old:
        old._published.nameless.add("old.1")
        old.write(batch_of(begun, [b"a", b"b"]))
    asked = ConnectionRow("spool.1", "10.83.0.11", 40000, 5, first=7, spooled=True)
    for number in (2, 3):
        with patient(url) as store:
            assert store.find(replace(asked, stream="imu")) is None
            known = store.find(asked)
            assert known is not None
            assert (known.token, known.stream) == ("old.1", "data")
            assert store.resume([known])["old.1"].sequence == number
            store.write(batch_of(known, [b"c"], sequence=number, offset=number))
    with patient(url) as store:
        known = store.find(asked)
        assert known is not None
        store.resume([known])
        store.write(Batch(closed=[end(known, 4)]))
        new = ConnectionRow("new.1", "10.83.0.11", 40000, 6, first=8)
        store.write(batch_of(new, [b"d"]))
    assert {subject.removeprefix(stream) for subject, _, _ in read(cluster, stream, "data", 5)} == {
        ".data.10-83-0-11.40000.old.1",
        ".data.data.10-83-0-11.40000.new.1",
    }
    with JetStreamLog(url) as log:
        first, second = log.connections()
        assert (first.token, first.stream, first.state) == ("old.1", "data", "closed")
        assert [each.payload for each in log.piece(first, 0, 9)[0]] == [b"a", b"b", b"c", b"c"]
        assert (second.token, second.stream) == ("new.1", "data")
        assert log.faults() == []
