"""What the kernel tells of the logger's sockets."""

import socket
from dataclasses import replace
from ipaddress import IPv4Address

from midstream.daemon.backlog import LoggerState, is_listening
from midstream.daemon.heartbeat import Told
from midstream.network import Host, Topology

HOME = IPv4Address("127.0.0.1")
HOST = Host(HOME, "02:00:00:00:00:02")


def test_whether_a_port_is_listened_on() -> None:
    with socket.socket() as listener:
        listener.bind((str(HOME), 0))
        port = listener.getsockname()[1]
        assert not is_listening(port)
        listener.listen()
        assert is_listening(port)
    assert not is_listening(port)


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
