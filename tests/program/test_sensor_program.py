"""The sensor's program, in a network namespace of its own, where real sockets are connected.

All three addresses are on the loopback interface there, so the peers' ends are in the namespace too; the
program asks for the sensor's ends only.
"""

import ctypes
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types
from tests.program.bench import SEVERAL, TOPOLOGY, XDP_PASS, assert_valid_as_before, load

from midstream import network, packet
from midstream.ebpf import libbpf
from midstream.network import Topology
from midstream.packet import Flags, Leg, Packet

ACK, FIN, SYN, RST = Flags.ACK, Flags.FIN, Flags.SYN, Flags.RST
SENSOR, HARDWORKER, LOGGER = (
    str(host.ip) for host in (TOPOLOGY.sensors[0], TOPOLOGY.hardworker, TOPOLOGY.logger)
)
CLONE_NEWNET = 0x40000000
PORTS = itertools.count(20000)
NOP = b"\x01"


@pytest.fixture(scope="module", autouse=True)
def namespace() -> Iterator[None]:
    """A network of this thread's own for the tests of this module."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        with IPRoute() as netlink:
            netlink.link("set", index=1, state="up")
            for address in (SENSOR, HARDWORKER, LOGGER):
                netlink.addr("add", index=1, address=address, prefixlen=32)
        yield
    finally:
        assert libc.setns(home, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(home)


class Host:
    """The sensor: its program, and sockets of its own."""

    def __init__(self, topology: Topology = TOPOLOGY) -> None:
        self.program = load("sensor", topology)
        self._fd = self.program.program_fd("midstream_sensor")
        self._open = ExitStack()
        self.listeners = {ip: self.listen(ip, TOPOLOGY.port) for ip in (HARDWORKER, LOGGER)}

    def close(self) -> None:
        self._open.close()
        self.program.close()

    def listen(self, ip: str, port: int, backlog: int = 128) -> socket.socket:
        listener = self._open.enter_context(self._socket())
        listener.bind((ip, port))
        listener.listen(backlog)
        return listener

    def connect(self, ip: str, port: int) -> socket.socket:
        """A socket from the sensor's own port to the marked port of ip."""
        connected = self._open.enter_context(self._socket())
        connected.bind((SENSOR, port))
        connected.connect((ip, TOPOLOGY.port))
        return connected

    def accept(self, ip: str) -> socket.socket:
        return self._open.enter_context(self.listeners[ip].accept()[0])

    def receives(self, frame: bytes, *, restored: bool) -> None:
        verdict, output, _ = libbpf.prog_test_run(self._fd, frame)
        assert verdict == XDP_PASS
        assert output == (packet.restore(frame, TOPOLOGY) if restored else frame)
        if restored:
            assert_valid_as_before(frame, output)

    @staticmethod
    def _socket() -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return made


@pytest.fixture
def host(namespace: None) -> Iterator[Host]:
    with closing(Host()) as made:
        yield made


def reply(
    port: int,
    flags: Flags = ACK,
    payload: bytes = b"",
    seq: int = 7,
    *,
    logger: network.Host = TOPOLOGY.logger,
) -> bytes:
    topology = replace(TOPOLOGY, logger=logger)
    return packet.craft(topology, 0, flags, seq, 9, payload, leg=Leg.REPLY, peer_port=port)


def test_several_loggers(namespace: None) -> None:
    """Whichever answers; and who is connected directly to one of them is told from that one's replies."""
    with closing(Host(SEVERAL)) as host:
        port, direct = next(PORTS), next(PORTS)
        host.connect(HARDWORKER, port)
        for logger in SEVERAL.loggers:
            host.receives(reply(port, logger=logger), restored=True)
        host.connect(HARDWORKER, direct)
        host.connect(LOGGER, direct)
        first, second, _ = SEVERAL.loggers
        host.receives(reply(direct, logger=first), restored=False)
        host.receives(reply(direct, logger=second), restored=True)


def test_connected_through_the_hardworker(host: Host) -> None:
    port = next(PORTS)
    host.connect(HARDWORKER, port)
    for flags in (SYN | ACK, ACK, ACK | FIN, RST, RST | ACK):
        for seq in (7, 0, 2**32 - 1):
            host.receives(reply(port, flags, seq=seq), restored=True)
    host.receives(reply(port, payload=bytes(range(251))), restored=True)
    host.receives(reply(port) + bytes(6), restored=True)
    host.receives(packet.corrupt(reply(port), "ip"), restored=True)
    host.receives(packet.corrupt(reply(port), "tcp"), restored=True)


def test_connected_directly(host: Host) -> None:
    port = next(PORTS)
    host.connect(LOGGER, port)
    host.receives(reply(port, SYN | ACK), restored=False)
    host.receives(reply(port), restored=False)


def test_connected_both_ways_from_one_port(host: Host) -> None:
    """A reply of the direct connection must not be touched, and nothing tells whose this is."""
    port = next(PORTS)
    host.connect(HARDWORKER, port)
    direct = host.connect(LOGGER, port)
    host.receives(reply(port), restored=False)
    direct.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset leaves nothing
    direct.close()
    host.receives(reply(port), restored=True)


def test_not_connected(host: Host) -> None:
    host.receives(reply(next(PORTS)), restored=False)


def test_connected_from_another_port(host: Host) -> None:
    port = next(PORTS)
    host.connect(HARDWORKER, port)
    host.receives(reply(next(PORTS)), restored=False)


@pytest.mark.parametrize("ip", ["0.0.0.0", SENSOR])
def test_a_listener_is_no_connection(host: Host, ip: str) -> None:
    port = next(PORTS)
    host.listen(ip, port)
    host.receives(reply(port), restored=False)


def test_a_listener_beside_a_connection(host: Host) -> None:
    """The listener would take a packet from the logger too: that is no direct connection."""
    port = next(PORTS)
    host.connect(HARDWORKER, port)
    host.listen("0.0.0.0", port)
    host.receives(reply(port), restored=True)


def test_while_connecting(host: Host) -> None:
    """The answer to the SYN is the first that must be restored."""
    host.listeners.pop(HARDWORKER).close()
    host.listen(HARDWORKER, TOPOLOGY.port, backlog=0)
    host.connect(HARDWORKER, next(PORTS))  # takes the only place
    port = next(PORTS)
    with Host._socket() as connecting:
        connecting.setblocking(False)
        connecting.bind((SENSOR, port))
        assert connecting.connect_ex((HARDWORKER, TOPOLOGY.port)) != 0
        assert state(connecting) == "SYN_SENT"
        host.receives(reply(port, SYN | ACK), restored=True)


def test_while_closing(host: Host) -> None:
    """Up to the last acknowledgement, which a socket in TIME_WAIT gets, and not after a reset."""
    port = next(PORTS)
    connected = host.connect(HARDWORKER, port)
    peer = host.accept(HARDWORKER)
    connected.shutdown(socket.SHUT_WR)
    host.receives(reply(port, ACK | FIN), restored=True)
    peer.close()
    connected.close()
    host.receives(reply(port, ACK | FIN), restored=True)

    port = next(PORTS)
    connected = host.connect(HARDWORKER, port)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connected.close()
    host.receives(reply(port), restored=False)


def test_a_direct_connection_that_only_lingers(host: Host) -> None:
    """In TIME_WAIT it gives way to one that is connected, as the kernel lets the port be used again."""
    port = next(PORTS)
    direct, peer = host.connect(LOGGER, port), host.accept(LOGGER)
    direct.close()
    peer.close()
    host.receives(reply(port), restored=False)
    through, peer = host.connect(HARDWORKER, port), host.accept(HARDWORKER)
    host.receives(reply(port), restored=True)
    through.close()
    peer.close()
    host.receives(reply(port), restored=False)


UNTOUCHED: dict[str, Callable[[Packet], Packet]] = {
    "from another port": lambda p: replace(p, tcp=replace(p.tcp, source_port=80)),
    "from another IP": lambda p: replace(p, ip=replace(p.ip, source=TOPOLOGY.hardworker.ip)),
    "from the IP next to the logger's": lambda p: replace(p, ip=replace(p.ip, source=TOPOLOGY.logger.ip + 1)),
    "to another IP": lambda p: replace(p, ip=replace(p.ip, destination=IPv4Address("10.83.0.99"))),
    "UDP": lambda p: replace(p, ip=replace(p.ip, protocol=17)),
    "a later fragment": lambda p: replace(p, ip=replace(p.ip, dont_fragment=False, fragment_offset=1)),
    "IP options": lambda p: replace(p, ip=replace(p.ip, options=NOP * 4, length=p.ip.length + 4)),
    "another EtherType": lambda p: replace(p, ethernet=replace(p.ethernet, ethertype=0x86DD)),
}


@pytest.mark.parametrize("change", UNTOUCHED.values(), ids=UNTOUCHED)
def test_untouched(host: Host, change: Callable[[Packet], Packet]) -> None:
    port = next(PORTS)
    host.connect(HARDWORKER, port)
    changed = change(Packet.parse(reply(port, payload=b"data"))).with_checksums()
    host.receives(changed.pack(), restored=False)


def test_a_vlan_tag_and_every_truncation(host: Host) -> None:
    port = next(PORTS)
    host.connect(HARDWORKER, port)
    frame = reply(port)
    host.receives(frame[:12] + bytes.fromhex("81000005") + frame[12:], restored=False)
    for length in range(14, len(frame)):
        host.receives(frame[:length], restored=False)
    host.receives(frame, restored=True)


def state(of: socket.socket) -> str:
    """The state of TCP (include/net/tcp_states.h) once the kernel is done with what it was asked."""
    time.sleep(0.01)
    return {1: "ESTABLISHED", 2: "SYN_SENT"}[of.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]]
