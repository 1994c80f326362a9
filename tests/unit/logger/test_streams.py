"""Several streams: each has a port, a framing and a table of its own, and nothing mixes them."""

import os
import socket
import sqlite3
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.support.exchanges import KEY, asking, exchanging, write_key
from tests.support.site import Serving, Site, ThreadWorker, Workers, wait_until
from tests.support.spools import NEVER, Receiving, drain, streams

from midstream import network
from midstream.config import FieldSection, load
from midstream.daemon.pending import SpoolFile
from midstream.errors import ConfigError, NetworkError
from midstream.framing import encode
from midstream.logger import Logger, server
from midstream.logger.backfill import Sender
from midstream.logger.door import OTHERS, Door
from midstream.network import SensorStream
from midstream.page import unpack
from midstream.storage.databases import open_log, open_spool
from midstream.storage.store import Batch, ConnectionRow, Piece
from midstream.told import HeldConnection, Pending


def field(name: str, kind: str) -> FieldSection:
    return FieldSection.model_validate({"name": name, "type": kind})


ROBOT = (
    SensorStream("imu", 0, "fixed", 12, 1000.0, (field("number", "u32"), field("gyro", "f64"))),
    SensorStream("joints", 0, "fixed", 4, 500.0, (field("number", "u32"),)),
    SensorStream("camera", 0, "length", 1 << 19),
    SensorStream("gps", 0, "line", 80),
)


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["logger", "spool"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return Site(tmp_path, spool=request.param, streams=ROBOT)


def payload(stream: str, number: int) -> bytes:
    if stream == "imu":
        return struct.pack("<Id", number, number / 8)
    if stream == "joints":
        return struct.pack("<I", number)
    return b"%s %d" % (stream.encode(), number) + b"." * (number % (60 if stream == "gps" else 9000))


def framed(of: SensorStream, some: Sequence[bytes]) -> bytes:
    return b"".join(encode(of.framing, each, size=of.size, max_size=of.size) for each in some)


def send(site: Site, source: tuple[str, int], stream: str, count: int, begun: threading.Barrier) -> None:
    """From one port to the stream's own, at the same time as the others."""
    data, random = framed(site.streams[stream], [payload(stream, at) for at in range(count)]), Random(stream)
    with patient(site, stream, source) as client:
        begun.wait(60)
        at = 0
        while at < len(data):
            size = random.randrange(1, 1 + len(data) // 8)
            client.sendall(data[at : at + size])
            at += size
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def patient(site: Site, stream: str, source: tuple[str, int]) -> socket.socket:
    """The logger may not listen yet, on a busy host."""
    give_up = time.monotonic() + 60
    while True:
        try:
            return site.connect(stream, source)
        except ConnectionRefusedError:
            assert time.monotonic() < give_up
            time.sleep(0.05)


def source(site: Site) -> tuple[str, int]:
    """An address and a port of the sensor's."""
    address = str(site.topology.sensors[0].ip)
    with socket.create_server((address, 0)) as probe:
        return address, probe.getsockname()[1]


def send_all(site: Site, count: int, between: Sequence[Workers] = ()) -> tuple[str, int]:
    """All streams at once from the same port of the same sensor."""
    where, begun = source(site), threading.Barrier(len(ROBOT) + 1)
    senders = [threading.Thread(target=send, args=(site, where, each.name, count, begun)) for each in ROBOT]
    for sender in senders:
        sender.start()
    begun.wait(60)
    for workers in between:
        workers.kill()
    for sender in senders:
        sender.join(60)
        assert not sender.is_alive()
    return where


def check(site: Site, where: tuple[str, int], count: int) -> None:
    """Each message is there once, and under its stream."""
    with open_log(site.url) as log:
        connections = log.connections()
        assert sorted(each.stream for each in connections) == sorted(site.streams)
        for each in connections:
            assert ((each.sensor, each.port), each.state) == (where, "closed")
            assert each.framing == site.streams[each.stream].framing
            found, at = [], 0
            while at < count:
                some, at = log.piece(each, at, count)
                found += some
            assert [one.payload for one in found] == [payload(each.stream, at) for at in range(count)]


def test_one_port_of_one_sensor_sends_every_stream(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker is killed in the midst."""
    workers = Workers(monkeypatch)
    with Serving(site.config, spool=site.spool) as serving:
        where = send_all(site, 400, [workers, workers])
    check(site, where, 400)
    assert serving.summary.restarts == 2
    assert serving.summary.messages == 1600
    tables = {name for (name,) in site.query("SELECT name FROM sqlite_master WHERE type = 'table'")}
    kept = {name for name in tables if name.startswith("readings")}
    if site.spool:
        assert not kept
        return
    assert kept == {"readings_imu", "readings_joints"}
    assert site.query("SELECT number, gyro FROM readings_imu ORDER BY sequence") == [
        (at, at / 8) for at in range(400)
    ]
    assert site.query("SELECT number FROM readings_joints ORDER BY sequence") == [(at,) for at in range(400)]


def test_a_worker_decodes_as_its_holder_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """const.toml is another one when the next worker starts."""
    site, workers = Site(tmp_path, streams=ROBOT), Workers(monkeypatch)
    with Serving(site.config):
        others = (replace(site.streams["imu"], framing="line", fields=()),)
        network.write(tmp_path / "const.toml", replace(site.topology, streams=others), "a test")
        workers.kill()
        where = send_all(site, 50)
    check(site, where, 50)


def test_what_a_worker_is_told_may_be_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 streams, whose fields have more names than a message between the processes has room for."""
    monkeypatch.setattr(server, "_start_worker", ThreadWorker)
    fields = tuple(field(f"a_field_of_which_there_are_many_{at}", "u8") for at in range(20))
    site = Site(tmp_path, streams=[SensorStream(f"s{at}", 0, "fixed", 20, None, fields) for at in range(32)])
    with Serving(site.config):
        for name in ("s0", "s31"):
            with patient(site, name, ("", 0)) as client:
                client.sendall(bytes(20))
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
    assert site.query("SELECT stream, count(*) FROM log GROUP BY stream ORDER BY 1") == [
        ("s0", 1),
        ("s31", 1),
    ]
    assert site.query("SELECT count(*) FROM readings_s31") == [(1,)]


def test_a_port_that_is_taken_names_its_stream(tmp_path: Path) -> None:
    site = Site(tmp_path, streams=ROBOT)
    port = site.streams["gps"].port
    words = rf"port {port} for the stream gps: .*in use.*end the program"
    with (
        socket.create_server((site.address, port)),
        pytest.raises(NetworkError, match=words),
        Logger(site.config),
    ):
        pass
    with Serving(site.config):  # the doors that could be opened were closed again
        check(site, send_all(site, 3), 3)


def test_files_that_contradict_each_other(tmp_path: Path) -> None:
    site = Site(tmp_path, streams=ROBOT)
    with site.config.open("a") as file:
        file.write('[[stream]]\nname = "imu"\nframing = "line"\n')
    with pytest.raises(ConfigError, match=r"stream\[0\]\.framing = line: .*const.toml says fixed"):
        Logger(site.config)


def given_doors(site: Site, names: Sequence[str], opened: ExitStack) -> list[int]:
    """Listening sockets, which somebody has made for the logger, and leaves to it."""
    doors = [socket.create_server((site.address, site.streams[name].port)) for name in names]
    for door in doors:
        opened.enter_context(door)
    return [os.dup(door.fileno()) for door in doors]


def test_doors_that_are_handed_over_are_known_by_their_ports(tmp_path: Path) -> None:
    """In any order; what lacks is opened."""
    site = Site(tmp_path, spool=True, streams=ROBOT)
    with ExitStack() as opened:
        doors = given_doors(site, ["gps", "imu"], opened)
        with site.connect("imu") as early, Serving(site.config, spool=True, doors=doors):
            early.sendall(payload("imu", 0))  # it waited in the kernel
            wait_until(lambda: site.query("SELECT stream FROM log") == [("imu",)])
            early.close()
            check_one(site, "gps")
            check_one(site, "joints")


def check_one(site: Site, stream: str) -> None:
    with patient(site, stream, ("", 0)) as client:
        client.sendall(framed(site.streams[stream], [payload(stream, 1)]))
    found = f"SELECT payload FROM log WHERE stream = '{stream}'"
    wait_until(lambda: site.query(found) == [(payload(stream, 1),)])


def test_a_door_of_no_stream(tmp_path: Path) -> None:
    site = Site(tmp_path, spool=True, streams=ROBOT)
    with ExitStack() as opened:
        doors = given_doors(site, ["gps"], opened)
        left = tuple(each for each in site.topology.streams if each.name != "gps")
        network.write(tmp_path / "const.toml", replace(site.topology, streams=left), "a test")
        words = rf"port {site.streams['gps'].port} was handed over, where .*const\.toml has no stream"
        with pytest.raises(NetworkError, match=words), Logger(site.config, spool=True, doors=doors):
            pass


def test_several_doors_share_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("midstream.logger.door.descriptors.limit", lambda: OTHERS + 2 + 30)
    monkeypatch.setattr("midstream.logger.door.descriptors.in_use", lambda: 0)
    with ExitStack() as opened:
        doors = [Door(("127.0.0.1", 0), 0, "this host", lambda _: True, doors=3) for _ in range(3)]
        for door in doors:
            opened.callback(door.close)
            door.open()
        for held, waiting in ((0, 10), (5, 8), (27, 1), (28, 0), (30, 0)):
            assert [door.lets_in(held) for door in doors] == [waiting > 0] * 3
            assert sum(door._queue or 0 for door in doors) == 3 * waiting <= 30 - held


@pytest.fixture
def hardworker(tmp_path: Path) -> Site:
    """Whose spool has the same connection of two streams, as far as sensor, port, number and time say."""
    site = exchanging(Site(tmp_path, streams=ROBOT))
    config = load(site.config)
    assert config.spool_path
    with open_spool(config, config.spool_path, streams(config, as_bytes=True)) as store:
        for number, name in enumerate(("imu", "gps")):
            some = [payload(name, at) for at in range(20)]
            row = ConnectionRow(f"aa.{number}", "127.0.0.11", 40000, 10**18, first=7, stream=name)
            piece = Piece(row, 0, 0, some, [10**18 + at for at in range(20)], 1 if name == "gps" else 0)
            store.write(Batch(opened=[row], pieces=[piece], messages=20))
            row.closed_ns, row.size, row.reason = 10**18 + 50, len(framed(site.streams[name], some)), "end"
            store.write(Batch(closed=[row]))
    return site


def test_the_spool_gives_back_each_stream_by_its_own_framing(hardworker: Site) -> None:
    config = load(hardworker.config)
    assert config.spool_path
    waiting = SpoolFile(config.spool_path)
    assert Counter((each.stream, each.messages) for each in waiting.look()) == {
        ("imu", 20): 1,
        ("gps", 20): 1,
    }
    ended = HeldConnection("127.0.0.11", 40000, 7, 10**18, 0, "closed", True, "gps")
    assert waiting.has_all(ended)
    assert waiting.has_all(replace(ended, stream="joints")) is None
    with Receiving(config):
        drain(config)
    with open_log(hardworker.url) as log:
        found = {each.stream: each for each in log.connections()}
        assert {name: (each.port, each.first, each.framing) for name, each in found.items()} == {
            "imu": (40000, 7, "fixed"),
            "gps": (40000, 7, "line"),
        }
        for name, each in found.items():
            some, _ = log.piece(each, 0, 99)
            assert [one.payload for one in some] == [payload(name, at) for at in range(20)]
    assert hardworker.query("SELECT count(*) FROM readings_imu") == [(20,)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "nmea"}, "it is of the stream gps, and the logger has imu, joints, camera, nmea"),
        ({"framing": "length"}, 'the framing of its stream gps is "line", and the logger\'s "length"'),
    ],
)
def test_what_the_logger_has_otherwise_stays_in_the_spool(
    hardworker: Site, change: dict[str, str], words: str
) -> None:
    config, said = load(hardworker.config), list[str]()
    others = {name: SensorStream.parse(each.table()) for name, each in hardworker.streams.items()}
    others["gps"] = SensorStream.parse(others["gps"].table() | change)
    topology = replace(hardworker.topology, streams=tuple(others.values()))
    network.write(hardworker.folder / "const.toml", topology, "a test")
    stopped = threading.Event()
    with Receiving(config):
        sender = threading.Thread(
            target=Sender(config, lambda: ["127.0.0.1"], said.append).run, args=(stopped.wait,)
        )
        sender.start()
        wait_until(lambda: bool(said))
        stopped.set()
        sender.join(30)
    assert words in said[0]
    with closing(sqlite3.connect(str(config.spool_path))) as database:
        assert database.execute("SELECT stream FROM connections").fetchall() == [("gps",)]


def test_what_a_spool_before_streams_holds_is_data(tmp_path: Path) -> None:
    """Its file is as it was: no logger has opened it since."""
    site = exchanging(Site(tmp_path))
    config = load(site.config)
    assert config.spool_path
    with open_spool(config, config.spool_path, streams(config)) as store:
        row = ConnectionRow("aa.1", "127.0.0.11", 40000, 10**18, first=7)
        store.write(Batch(opened=[row], pieces=[Piece(row, 0, 0, [bytes(32)], [5], 0)], messages=1))
        row.closed_ns, row.size = 10**18 + 50, 32
        store.write(Batch(closed=[row]))
    with closing(sqlite3.connect(config.spool_path)) as database, database:
        database.execute("DROP VIEW log")
        database.execute("ALTER TABLE connections DROP COLUMN stream")
        database.execute("DROP TABLE forgotten")
        database.execute("CREATE TABLE forgotten (sensor, first_ns, last_ns, messages, bytes)")
        database.execute("INSERT INTO forgotten VALUES ('127.0.0.11', 1, 2, 3, 4)")
        database.execute("UPDATE schema_version SET version = 3")
    waiting = SpoolFile(config.spool_path).look()
    assert waiting == [Pending("127.0.0.11", 40000, 7, 10**18, 0, 32, 1, 5)]
    with Receiving(config):
        Sender(config, lambda: ["127.0.0.1"], print).run(NEVER, drain=True)
    assert site.query("SELECT stream, payload FROM log") == [("data", bytes(32))]
    assert site.query("SELECT * FROM forgotten") == [("127.0.0.11", 1, 2, 3, 4, "data")]


@pytest.mark.parametrize("asked", ["imu", "gps", "lidar"])
def test_a_replay_is_of_one_stream(tmp_path: Path, asked: str) -> None:
    site = exchanging(Site(tmp_path, streams=ROBOT))
    write_key(tmp_path / "key", KEY)
    with Serving(site.config), asking(site) as line:
        send_all(site, 5)
        question: dict[str, Any] = {"beginnings": {"127.0.0.11": []}}
        line.send({"kind": "replay", "stream": asked, "since": 0, **question})
        assert line.receive()[0] == {"seen": True}
        line.send(question)
        found: list[bytes] = []
        while "end" not in (answer := line.receive())[0]:
            found += [row.payload for row in unpack(answer[0]["messages"], answer[1])]
    assert found == ([payload(asked, at) for at in range(5)] if asked in site.streams else [])
