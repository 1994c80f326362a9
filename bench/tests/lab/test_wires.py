"""The hosts beside a virtual hardworker: their TCP is as slow as its clock."""

import socket
import struct
import time

import pytest

from midstream.lab import enter, namespaces
from midstream.lab.hosts import LabHost
from midstream_bench.machine import wires

BURSTS, PAUSE, SEGMENTS, SEGMENT = 6, 0.26, 12, 1448
RTO = struct.Struct("8xI")  # struct tcp_info: tcpi_rto, microseconds


def _timeouts(one: LabHost, other: LabHost) -> list[float]:
    """The smallest time-outs of a new connection between two hosts, at both ends, in seconds."""
    enter.enter(other.namespace)
    with socket.create_server((str(other.ip), 0)) as listener:
        enter.enter(one.namespace)
        with socket.create_connection(listener.getsockname(), 10) as client, listener.accept()[0] as peer:
            client.sendall(b"?")
            peer.sendall(peer.recv(1))
            client.recv(1)
            return [
                RTO.unpack(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RTO.size))[0] / 1e6
                for end in (client, peer)
            ]


@pytest.mark.slow
def test_their_timers_follow_the_factor() -> None:
    with wires.wired(2, 1500) as hosts:
        logger, *sensors = (host for host in hosts if host.name != "hardworker")
        assert len(sensors) == 2
        for slow in (8, 32, 1):
            wires.slow_down(hosts, slow)
            for sensor in sensors:
                found = namespaces.call_here(_timeouts, sensor, logger)
                assert found == pytest.approx([0.2 * slow] * 2, abs=0.1)


def _acknowledgements(one: LabHost, other: LabHost) -> int:
    """How many segments answer bursts with pauses of more than 200 ms, after the first three."""
    enter.enter(other.namespace)
    with socket.create_server((str(other.ip), 0)) as listener:
        enter.enter(one.namespace)
        with socket.create_connection(listener.getsockname(), 10) as client, listener.accept()[0] as peer:
            peer.settimeout(10)
            before = 0
            for number in range(BURSTS):
                for _ in range(SEGMENTS):
                    client.sendall(
                        bytes(SEGMENT), socket.MSG_MORE
                    )  # without PSH, which is acknowledged at once
                    time.sleep(0.002)
                left = SEGMENT * SEGMENTS
                while left:
                    left -= len(peer.recv(left))
                time.sleep(PAUSE)
                if number == 2:
                    before = _answered(client)
            return _answered(client) - before


def _answered(sock: socket.socket) -> int:
    """struct tcp_info: tcpi_segs_in."""
    (segments,) = struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 140)
    return int(segments)


@pytest.mark.slow
def test_a_pause_that_slow_motion_makes_longer_changes_no_acknowledgement() -> None:
    """Linux acknowledges every segment after a pause that is longer than its time-out. The pauses between the
    bursts of a handler that joins what it sends became such ones: its figure grew with the factor by a fifth.
    """
    with wires.wired(1, 1500) as hosts:
        logger, sensor = (host for host in hosts if host.name != "hardworker")
        as_it_was = namespaces.call_here(_acknowledgements, sensor, logger)
        wires.slow_down(hosts, 16)
        slowed = namespaces.call_here(_acknowledgements, sensor, logger)
    assert 0 < slowed < 0.9 * as_it_was
