"""The hosts beside a virtual hardworker: their TCP is as slow as its clock."""

import socket
import struct

import pytest

from midstream.bench.machine import wires
from midstream.lab import enter, namespaces
from midstream.lab.hosts import LabHost

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


def test_their_timers_follow_the_factor() -> None:
    with wires.wired(2, 1500) as hosts:
        logger, *sensors = (host for host in hosts if host.name != "hardworker")
        assert len(sensors) == 2
        for slow in (8, 32, 1):
            wires.slow_down(hosts, slow)
            for sensor in sensors:
                found = namespaces.call_here(_timeouts, sensor, logger)
                assert found == pytest.approx([0.2 * slow] * 2, abs=0.1)
