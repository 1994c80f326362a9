"""What the kernel tells of the logger's sockets."""

import socket
from dataclasses import replace
from ipaddress import IPv4Address

from midstream.daemon.backlog import LoggerState, listening
from midstream.daemon.heartbeat import Told
from midstream.network import Host, SensorStream, Topology

HOME = IPv4Address("127.0.0.1")
HOST = Host(HOME, "02:00:00:00:00:02")


def test_whether_a_port_is_listened_on() -> None:
    with socket.socket() as listener:
        listener.bind((str(HOME), 0))
        port = listener.getsockname()[1]
        assert port not in listening()
        listener.listen()
        assert port in listening()
    assert port not in listening()


def test_a_logger_is_looked_for_where_the_topology_says() -> None:
    with socket.socket() as listener:
        listener.bind((str(HOME), 0))
        port = listener.getsockname()[1]
        known: list[Topology | None] = [None]
        state = LoggerState(lambda: known[0])
        assert state.tell() == Told()
        topology = Topology((HOST,), HOST, HOST, tos=104, port=port, mtu=1500, size=1024)
        known[0] = topology
        assert not state.tell().serves
        listener.listen()
        assert state.tell().serves
        known[0] = replace(topology, port=port - 1)
        assert not state.tell().serves
        streams = SensorStream("imu", port, "fixed", 64), SensorStream("gps", port - 1, "line", 100)
        known[0] = replace(topology, streams=streams[:1])
        assert state.tell().serves
        known[0] = replace(topology, streams=streams)
        assert not state.tell().serves, "nobody serves the sensors of the other stream"
