"""Logs of several streams, and of a version before streams, in every database."""

import asyncio
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest
from tests.database import servers
from tests.support.batches import batch_of, end

from midstream.cli import main
from midstream.fields import Field, Layout
from midstream.log import table
from midstream.log.account import accounts
from midstream.log.messages import LogReader
from midstream.log.selection import Selection
from midstream.log.verify import verify
from midstream.storage.databases import open_log
from midstream.storage.formats import Formats, StreamFormat
from midstream.storage.sql import SqlStore
from midstream.storage.store import ConnectionRow, Store, checksum
from midstream.told import CLOSED, STEP, ArrivalTimes, Forgotten, HeldConnection, Pending

SENSOR = "10.83.0.11"
IMU = Layout(8, (Field("level", "<f4", 0, unit="m"), Field("count", "<u2", 4, count=2)))
STREAMS: Formats = {"imu": StreamFormat("fixed", 8, IMU), "gps": StreamFormat("line", 100)}
READINGS = [struct.pack("<fHH", number / 4, number, 7) for number in range(100)]
LINES = [b"$GPGGA,%d" % number for number in range(50)]


@pytest.fixture(params=["sqlite", "postgresql", "nats"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "nats":
        cluster: servers.Nats = request.getfixturevalue("cluster")
        return cluster.url("".join(letter for letter in request.node.name if letter.isalnum()))
    if request.param == "postgresql":
        postgres: servers.Postgres = request.getfixturevalue("postgres")
        return postgres.new_database(f"streams{abs(hash(request.node.name))}")
    return f"sqlite:///{tmp_path}/midstream.db"


def open_store(url: str, streams: Formats = STREAMS) -> Store:
    if url.startswith("nats"):
        return servers.patient(url, streams=streams)
    return SqlStore(url, batch_size=1000, streams=streams)


@pytest.fixture
def written(url: str) -> Iterator[tuple[str, Store]]:
    """A connection of each stream, from the same port of the same sensor, and what was told of them."""
    with open_store(url) as store:
        for number, (stream, payloads) in enumerate((("imu", READINGS), ("gps", LINES))):
            connection = ConnectionRow(
                token=f"a.{number}", sensor=SENSOR, port=4000, opened_ns=1000 + number, first=7, stream=stream
            )
            frame = STREAMS[stream].frame
            batch = batch_of(connection, payloads, frame=frame)
            size = sum(len(payload) + frame for payload in payloads)
            batch.closed.append(end(connection, size))
            connection.closed_ns, connection.digest = 9000, None
            store.write(batch)
        told = [HeldConnection(SENSOR, 4000, 7, 1000, 816, CLOSED, False, "imu")]
        waiting = [Pending(SENSOR, 4000, 7, 1000, 800, 816, 2, 1000, "imu")]
        steps = STEP.pack(8, 0)
        arrivals = [ArrivalTimes(SENSOR, 4000, 7, 1000, 0, 8, 900, 0, 5, steps, "imu")]
        store.note_held(told, waiting, arrivals)
        store.note_forgotten([Forgotten(SENSOR, 1, 2, 3, 30, "gps")])
        yield url, store


def test_streams_are_told_apart(written: tuple[str, Store]) -> None:
    with open_log(written[0]) as log:
        imu, gps = log.connections()
        assert [(each.stream, each.framing, each.layout is not None) for each in (imu, gps)] == [
            ("imu", "fixed", True),
            ("gps", "line", False),
        ]
        assert {key: each.messages for key, each in log.extents().items()} == {imu.id: 100, gps.id: 50}
        told = log.told()
        streams = [[each.stream for each in kind] for kind in (told.held, told.pending)]
        assert (*streams, [each.stream for each in told.forgotten]) == (["imu"], ["imu"], ["gps"])
        found = accounts(log, told, [imu, gps], log.extents())
        assert [[row.id for row in each.connections] for each in found.all] == [[imu.id]]
        assert found.all[0].verdict == "pending"
        verdicts = {each.connection.id: each for each in verify(log, [imu, gps]) if each.connection}
        assert verdicts[imu.id].right and verdicts[gps.id].right
        (piece,) = LogReader(log, Selection(streams=("gps",))).read()
        assert [message.payload for message in piece] == LINES
        assert {message.arrival for message in piece} == {None}
        (piece,) = LogReader(log, Selection(streams=("imu",))).read()
        assert piece[0].arrival and piece[0].arrival.time_ns == 900 and piece[1].arrival is None


def test_a_table(written: tuple[str, Store]) -> None:
    found = table("imu", database=written[0])
    assert found["level"].to_pylist() == [number / 4 for number in range(100)]
    assert found["count"].to_pylist() == [[number, 7] for number in range(100)]
    assert table("gps", database=written[0])["payload"].to_pylist() == LINES


@pytest.mark.slow
def test_the_commands(
    written: tuple[str, Store],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["midstream", "log", *arguments, "--database", written[0]])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (None, 0)
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    assert [row["stream"] for row in json.loads(run("list", "--json"))] == ["imu", "gps"]
    assert len(run("show", "--stream", "gps").splitlines()) == 50
    shown = json.loads(run("export", "-o", "x.parquet", "--json"))
    assert (shown["messages"], shown["files"]) == (150, ["x-imu.parquet", "x-gps.parquet"])


def test_what_a_version_before_has_published(cluster: servers.Nats, stream: str) -> None:
    """Without the name of a sensors' stream in its subjects, beside what is published now."""
    url = cluster.url(stream)
    place = f"10-83-0-11.4000.{'a' * 31}.1"
    opening = {"state": "open", "token": f"{'a' * 31}.1", "sensor": SENSOR, "port": 4000, "first": 7}
    opening |= {"spooled": False, "opened_ns": 1000, "framing": "fixed", "layout": IMU.describe()}
    held = (SENSOR, 4000, 7, 1000, 16, "closed", False)
    hole = {"sensor": SENSOR, "first_ns": 5, "last_ns": 9, "messages": 3, "bytes": 24}
    arrivals = (SENSOR, 4000, 7, 1000, 0, 8, 900, 0, 5)

    async def publish() -> None:
        client = await nats.connect([f"nats://127.0.0.1:{port}" for port in cluster.ports])
        jetstream = client.jetstream()
        try:
            await jetstream.publish(f"{stream}.connections.{place}", json.dumps(opening).encode())
            for number, payload in enumerate(READINGS[:2]):
                crc = checksum(number, 8 * number, 1000 + number, payload)
                headers = {"Midstream": f"{number} {8 * number} {1000 + number}", "Midstream-Crc": f"{crc}"}
                await jetstream.publish(f"{stream}.data.{place}", payload, headers=headers)
            await jetstream.publish(f"{stream}.held.10-83-0-11.4000.7.1000", json.dumps(held).encode())
            await jetstream.publish(f"{stream}.forgotten.10-83-0-11.5", json.dumps(hole).encode())
            said = {"Midstream": json.dumps(arrivals)}
            subject = f"{stream}.arrivals.10-83-0-11.4000.7"
            await jetstream.publish(subject, STEP.pack(8, 0), headers=said)
        finally:
            await client.close()

    with open_store(url, {**STREAMS, "data": STREAMS["imu"]}) as store:
        asyncio.run(publish())
        later = [
            ArrivalTimes(SENSOR, 4000, 7, 1000, 8, 16, 950, 0, 5, STEP.pack(8, 0)),
            ArrivalTimes(SENSOR, 4000, 7, 1000, 0, 8, 1, 0, 5, STEP.pack(8, 0), "imu"),
        ]
        store.note_held([HeldConnection(SENSOR, 4000, 7, 1000, 24, CLOSED, False)], None, later)
        store.note_forgotten([Forgotten(SENSOR, 5, 12, 4, 32)])
        row = ConnectionRow(token="b.1", sensor=SENSOR, port=4000, opened_ns=2000, first=9, stream="imu")
        store.write(batch_of(row, READINGS[:5]))
    with open_log(url) as log:
        before, now = log.connections()
        assert [(each.stream, each.layout is not None) for each in (before, now)] == [
            ("data", True),
            ("imu", True),
        ]
        assert [each.messages for each in log.extents().values()] == [2, 5]
        told = log.told()
        assert [(each.stream, each.bytes) for each in told.held] == [("data", 24)]
        assert [(each.stream, each.messages) for each in told.forgotten] == [("data", 4)]
        (piece,) = LogReader(log, Selection(streams=("data",))).read()
        assert [each.arrival and each.arrival.time_ns for each in piece] == [900, 950]
        assert all(verdict.right for verdict in verify(log, [before, now]))


def test_an_opening_that_is_gone(cluster: servers.Nats, stream: str) -> None:
    """The stream is known by the subject, and its fields by config.toml."""
    url = cluster.url(stream)
    with open_store(url) as store:
        row = ConnectionRow(token="a.1", sensor=SENSOR, port=4000, opened_ns=1000, first=7, stream="imu")
        store.write(batch_of(row, READINGS))

    async def limit() -> None:
        client = await nats.connect([f"nats://127.0.0.1:{port}" for port in cluster.ports])
        config = (await client.jsm().stream_info(stream)).config
        await client.jsm().update_stream(config.evolve(max_msgs=10))
        await client.close()

    asyncio.run(limit())
    with open_log(url, STREAMS) as log:
        (connection,) = log.connections()
        assert (connection.stream, connection.sensor, connection.pruned) == ("imu", SENSOR, 90)
        assert connection.layout == IMU
