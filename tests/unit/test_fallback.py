"""The ring as a source, and the stack's sockets beside it while the daemon says that there is no logger."""

import mmap
import os
import select
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.fake_ring import FakeRing

from midstream import Hardworker, network
from midstream.ebpf.records import MODE_FAST, MODE_HANDLER, OPEN
from midstream.errors import KernelError
from midstream.hardworker.fallback import RingOrStack
from midstream.hardworker.journal import Snapshot
from midstream.hardworker.source import Segment
from midstream.hardworker.standin import FIRST
from midstream.hardworker.streams import OPEN_STREAM, Streams
from midstream.network import Host, Topology

SENSOR, HARDWORKER, SIZE = "127.0.0.11", "127.0.0.2", 16


class EmptyRing:
    """A ring in which nothing is, with what an earlier reader has left."""

    def __init__(self) -> None:
        self.event = os.eventfd(0, os.EFD_CLOEXEC)
        self.snapshot: Snapshot | None = None

    fill = 0.0
    given = 0
    timer = -1

    def heed(self, told: np.ndarray) -> None: ...

    def look(self) -> None: ...

    def tend(self) -> None: ...

    def regular(self, size: int, streams: Streams) -> np.ndarray:
        return np.empty(0)

    def turn(self) -> None: ...

    def next(self) -> Segment | None:
        return None

    def restore(self) -> Snapshot | None:
        return self.snapshot

    def commit(self, streams: Streams) -> bool:
        return True

    def fileno(self) -> int:
        return self.event

    def close(self) -> None:
        os.close(self.event)


class Told:
    """What the daemon tells, as a file instead of a map."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("control", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, mmap.PAGESIZE)

    def mode(self, value: int) -> None:
        os.pwrite(self.fd, struct.pack("<II", value, 1), 0)


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    yield made
    os.close(made.fd)


@pytest.fixture
def topology() -> Topology:
    with socket.socket() as probe:
        probe.bind((HARDWORKER, 0))
        port = probe.getsockname()[1]
    hosts = [Host(IPv4Address(f"127.0.0.{n}"), f"02:00:00:00:00:{n:02x}") for n in (11, 2, 3)]
    return Topology((hosts[0],), hosts[1], hosts[2], tos=104, port=port, mtu=1500, size=SIZE)


@pytest.fixture
def application(told: Told, topology: Topology, tmp_path: Path) -> Iterator[Hardworker]:
    network.write(tmp_path / "const.toml", topology, "a test")
    (tmp_path / "config.toml").write_text("")
    ring: Any = EmptyRing()
    with Hardworker(tmp_path / "config.toml", source=RingOrStack(ring, told.fd, topology)) as made:
        yield made


def connect(topology: Topology) -> socket.socket:
    client = socket.socket()
    client.settimeout(5)
    try:
        client.bind((SENSOR, 0))
        client.connect((HARDWORKER, topology.port))
    except OSError:
        client.close()
        raise
    return client


def receive(application: Hardworker, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        assert application.wait(5)
        found += [message.payload for message in application.messages()]
    return found


def test_nobody_listens_while_there_is_a_logger(application: Hardworker, topology: Topology) -> None:
    assert len(application.read()) == 0
    with pytest.raises(ConnectionRefusedError):
        connect(topology)


def test_from_the_ring_to_the_stack_and_back(application: Hardworker, topology: Topology, told: Told) -> None:
    told.mode(MODE_HANDLER)
    application.read()  # the ring has woken it
    with connect(topology) as client:
        client.sendall(bytes(SIZE) + b"\1" * SIZE)
        assert receive(application, 2) == [bytes(SIZE), b"\1" * SIZE]
        told.mode(MODE_FAST)
        application.read()
        assert client.recv(1) == b"", "it is shown the end of our side"
        client.sendall(b"\2" * SIZE)
        client.shutdown(socket.SHUT_WR)
        assert receive(application, 1) == [b"\2" * SIZE]
        while application.connections:
            assert application.wait(5)
            application.read()
    application.read()
    with pytest.raises(ConnectionRefusedError):
        connect(topology)
    assert (application.totals.opened, application.totals.finished) == (1, 1)


@pytest.mark.parametrize("form", ["batches", "columns"])
def test_turns_of_a_fixed_rate_follow_the_daemon(
    told: Told, topology: Topology, tmp_path: Path, form: str
) -> None:
    network.write(tmp_path / "const.toml", topology, "a test")
    (tmp_path / "config.toml").write_text("[hardworker]\nperiod = 0.002\n")
    ring = FakeRing()
    source = RingOrStack(ring.reader(), told.fd, topology)
    with Hardworker(tmp_path / "config.toml", source=source) as application:
        payloads = (
            (batch["payload"] for batch in application.batches())
            if form == "batches"
            else (columns[0] for columns in application.columns("payload"))
        )

        def received(count: int) -> list[int]:
            found: list[int] = []
            while len(found) < count:
                found += next(payloads)[:, 0].tolist()
            return found

        ring.put(Segment(1, 0, 1, 0, 5, OPEN, b""))
        ring.put(Segment(1, 0, 1, 0, 5, 0, b"\1" * SIZE))
        assert received(1) == [1]
        told.mode(MODE_HANDLER)
        next(payloads)
        with connect(topology) as client:
            client.sendall(b"\2" * SIZE)
            assert received(1) == [2]
            told.mode(MODE_FAST)
            next(payloads)
            client.sendall(b"\3" * SIZE)
            ring.put(Segment(1, 0, 1, SIZE, 5, 0, b"\4" * SIZE))
            assert sorted(received(2)) == [3, 4]
        while application.connections > 1:
            next(payloads)
        ring.put(Segment(1, 0, 1, 2 * SIZE, 5, 0, b"\5" * SIZE))
        assert received(1) == [5]


def test_a_reader_that_starts_without_a_logger_listens_at_once(told: Told, topology: Topology) -> None:
    told.mode(MODE_HANDLER)
    ring: Any = EmptyRing()
    source = RingOrStack(ring, told.fd, topology)
    with connect(topology):
        assert select.select([source.fileno()], [], [], 5)[0]
    source.close()


def test_a_port_that_is_taken_is_tried_again(told: Told, topology: Topology) -> None:
    ring: Any = EmptyRing()
    source = RingOrStack(ring, told.fd, topology)
    with socket.socket() as other:
        other.bind((HARDWORKER, topology.port))
        other.listen()
        told.mode(MODE_HANDLER)
        source.look()
        assert source.fileno() == ring.event
    source.look()
    connect(topology).close()
    source.close()


def test_connections_of_the_stack_do_not_outlive_their_reader(told: Told, topology: Topology) -> None:
    ring: Any = EmptyRing()
    table = np.zeros(2, OPEN_STREAM)
    table["connection"] = (7, FIRST + 7)
    ring.snapshot = Snapshot(0, table, b"")
    source = RingOrStack(ring, told.fd, topology)
    restored = source.restore()
    assert restored is not None
    assert restored.table["connection"].tolist() == [7]
    source.close()


def test_what_cannot_be_mapped(topology: Topology) -> None:
    ring: Any = EmptyRing()
    with open(os.devnull, "rb") as file, pytest.raises(KernelError, match="what the daemon tells cannot"):
        RingOrStack(ring, file.fileno(), topology)
    ring.close()
