"""The application in the logger's place: connections from this host's own stack, and the way back."""

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address

import pytest

from midstream.ebpf.records import FIN, OPEN, RESET
from midstream.errors import NetworkError
from midstream.hardworker.source import Segment
from midstream.hardworker.standin import FIRST, StandIn
from midstream.network import Host, Topology

SENSOR, STRANGER, HARDWORKER = "127.0.0.11", "127.0.0.99", "127.0.0.2"


@pytest.fixture
def topology() -> Topology:
    with socket.socket() as probe:
        probe.bind((HARDWORKER, 0))
        port = probe.getsockname()[1]
    return Topology(
        sensors=(Host(IPv4Address(SENSOR), "02:00:00:00:00:11"),),
        hardworker=Host(IPv4Address(HARDWORKER), "02:00:00:00:00:02"),
        logger=Host(IPv4Address("127.0.0.3"), "02:00:00:00:00:03"),
        tos=104,
        port=port,
        mtu=1500,
        size=16,
    )


@pytest.fixture
def stand_in(topology: Topology) -> Iterator[StandIn]:
    with closing(StandIn(topology)) as made:
        yield made


def connect(topology: Topology, ip: str = SENSOR) -> socket.socket:
    client = socket.socket()
    client.settimeout(5)
    client.bind((ip, 0))
    try:
        client.connect((HARDWORKER, topology.port))
    except OSError:
        client.close()
        raise
    return client


def take(stand_in: StandIn, count: int) -> list[Segment]:
    found: list[Segment] = []
    deadline = time.monotonic() + 5
    while len(found) < count and time.monotonic() < deadline:
        stand_in.look()
        while segment := stand_in.next():
            found.append(segment)
    return found


def test_a_connection_from_its_beginning_to_its_end(topology: Topology, stand_in: StandIn) -> None:
    with connect(topology) as client:
        port = client.getsockname()[1]
        (opened,) = take(stand_in, 1)
        assert (opened.flags, opened.sensor, opened.port, opened.offset) == (OPEN, 0, port, 0)
        assert opened.connection >= FIRST
        client.sendall(b"first")
        assert [(one.offset, one.data) for one in take(stand_in, 1)] == [(0, b"first")]
        client.sendall(b"second")
        assert [(one.offset, one.data) for one in take(stand_in, 1)] == [(5, b"second")]
        client.shutdown(socket.SHUT_WR)
        (end,) = take(stand_in, 1)
        assert (end.flags, end.offset, end.data) == (FIN, 11, b"")
        assert client.recv(1) == b""


def test_a_reset_is_told(topology: Topology, stand_in: StandIn) -> None:
    client = connect(topology)
    take(stand_in, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert [one.flags for one in take(stand_in, 1)] == [RESET]


def test_each_connection_has_a_number_of_its_own(topology: Topology, stand_in: StandIn) -> None:
    with connect(topology), connect(topology):
        first, second = take(stand_in, 2)
    assert second.connection == first.connection + 1


def test_a_stranger_is_reset(topology: Topology, stand_in: StandIn) -> None:
    with connect(topology, STRANGER) as client:
        stand_in.look()
        assert stand_in.next() is None
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_handing_back_shows_the_end_and_takes_what_still_comes(topology: Topology, stand_in: StandIn) -> None:
    with connect(topology) as client:
        take(stand_in, 1)
        stand_in.hand_back()
        assert client.recv(1) == b"", "the sensor sees the end of our side"
        with pytest.raises(ConnectionRefusedError):
            connect(topology)
        client.sendall(b"last")
        assert [one.data for one in take(stand_in, 1)] == [b"last"]
        assert not stand_in.is_done
        client.shutdown(socket.SHUT_WR)
        take(stand_in, 1)
        assert stand_in.is_done


def test_closing_resets_whoever_is_not_done(topology: Topology) -> None:
    stand_in = StandIn(topology)
    with connect(topology) as client:
        take(stand_in, 1)
        stand_in.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_port_that_is_taken(topology: Topology, stand_in: StandIn) -> None:
    with pytest.raises(NetworkError, match="cannot listen there"):
        StandIn(topology)
