"""The logger's two programs: who came through the hardworker, and whose replies get its address."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.program.bench import TOPOLOGY, assert_valid_as_before, load

from midstream import packet
from midstream.ebpf import libbpf
from midstream.packet import Flags, Leg, Packet

ACK, FIN, SYN, RST = Flags.ACK, Flags.FIN, Flags.SYN, Flags.RST
TC_ACT_UNSPEC = 2**32 - 1  # the next filter decides, and where there is none the packet goes its way
PORTS = itertools.count(1024)
NOP = b"\x01"

Change = Callable[[Packet], Packet]


class Logger:
    def __init__(self) -> None:
        self.program = load("logger", TOPOLOGY)
        self._ingress = self.program.program_fd("midstream_logger_ingress")
        self._egress = self.program.program_fd("midstream_logger_egress")

    def close(self) -> None:
        self.program.close()

    def receives(self, frame: bytes) -> None:
        """What arrives is never changed, only looked at."""
        verdict, output, _ = libbpf.prog_test_run(self._ingress, frame)
        assert (verdict, output) == (TC_ACT_UNSPEC, frame)

    def sends(self, frame: bytes, *, restored: bool) -> None:
        verdict, output, _ = libbpf.prog_test_run(self._egress, frame)
        assert verdict == TC_ACT_UNSPEC
        assert output == (packet.restore(frame, TOPOLOGY) if restored else frame)
        if restored:
            assert_valid_as_before(frame, output)

    def remembered(self) -> set[tuple[IPv4Address, int]]:
        keys = libbpf.keys(self.program.map_fd("through_hardworker"), 8)
        return {(IPv4Address(key[:4]), int.from_bytes(key[4:6])) for key in keys}


@pytest.fixture(scope="module")
def logger() -> Iterator[Logger]:
    with closing(Logger()) as loaded:
        yield loaded


@dataclass(frozen=True)
class Peer:
    sensor: int
    port: int

    @property
    def name(self) -> tuple[IPv4Address, int]:
        return TOPOLOGY.sensors[self.sensor].ip, self.port

    def sent(self, leg: Leg, flags: Flags = ACK, payload: bytes = b"") -> bytes:
        return packet.craft(TOPOLOGY, self.sensor, flags, 10, 20, payload, leg=leg, peer_port=self.port)

    def reply(self, flags: Flags = ACK, payload: bytes = b"") -> bytes:
        return packet.craft(TOPOLOGY, self.sensor, flags, 20, 10, payload, leg=Leg.REPLY, peer_port=self.port)


@pytest.fixture(params=range(len(TOPOLOGY.sensors)))
def peer(request: pytest.FixtureRequest) -> Peer:
    return Peer(request.param, next(PORTS))


def changed(frame: bytes, change: Change) -> bytes:
    return change(Packet.parse(frame)).with_checksums().pack()


@pytest.mark.parametrize("flags", [SYN, ACK, ACK | FIN, RST])
def test_through_the_hardworker(logger: Logger, peer: Peer, flags: Flags) -> None:
    """Any packet shows it, also of a connection that is older than the program."""
    logger.sends(peer.reply(), restored=False)
    logger.receives(peer.sent(Leg.RELAYED, flags))
    assert peer.name in logger.remembered()
    for reply in (SYN | ACK, ACK, ACK | FIN, RST, RST | ACK):
        logger.sends(peer.reply(reply), restored=True)
    logger.sends(peer.reply(payload=bytes(range(256)) * 5), restored=True)
    logger.sends(peer.reply(payload=b"odd"), restored=True)


def test_directly(logger: Logger, peer: Peer) -> None:
    for flags in (SYN, ACK, ACK | FIN):
        logger.receives(peer.sent(Leg.DIRECT, flags))
        logger.sends(peer.reply(), restored=False)
    assert peer.name not in logger.remembered()


def test_directly_after_through_the_hardworker(logger: Logger, peer: Peer) -> None:
    """A port used again: the SYN tells which way the new connection goes."""
    logger.receives(peer.sent(Leg.RELAYED, SYN))
    # What is left of another connection on the way changes nothing.
    logger.receives(peer.sent(Leg.DIRECT, ACK, b"late"))
    logger.sends(peer.reply(), restored=True)
    logger.receives(peer.sent(Leg.DIRECT, SYN))
    assert peer.name not in logger.remembered()
    logger.sends(peer.reply(SYN | ACK), restored=False)
    logger.receives(peer.sent(Leg.RELAYED, SYN))
    logger.sends(peer.reply(SYN | ACK), restored=True)


def test_only_this_connection(logger: Logger, peer: Peer) -> None:
    logger.receives(peer.sent(Leg.RELAYED))
    others = [
        Peer(peer.sensor, next(PORTS)),
        Peer(peer.sensor, (peer.port % 256) << 8 | peer.port >> 8),
        Peer((peer.sensor + 1) % len(TOPOLOGY.sensors), peer.port),
    ]
    for other in others:
        logger.sends(other.reply(), restored=False)


def test_the_hardworkers_own_connections(logger: Logger) -> None:
    """They bear its own address already."""
    own, port = TOPOLOGY.hardworker.ip, next(PORTS)

    def to_hardworker(p: Packet) -> Packet:
        ethernet = replace(p.ethernet, destination=TOPOLOGY.hardworker.mac_bytes)
        return replace(p, ethernet=ethernet, ip=replace(p.ip, destination=own))

    frame = Peer(0, port).sent(Leg.RELAYED, SYN)
    logger.receives(changed(frame, lambda p: replace(p, ip=replace(p.ip, source=own))))
    assert (own, port) not in logger.remembered()
    logger.sends(changed(Peer(0, port).reply(), to_hardworker), restored=False)


HARDWORKER_MAC = TOPOLOGY.hardworker.mac_bytes
NOT_REMEMBERED: dict[str, Change] = {
    "to another port": lambda p: replace(p, tcp=replace(p.tcp, destination_port=80)),
    "to another IP": lambda p: replace(p, ip=replace(p.ip, destination=TOPOLOGY.hardworker.ip)),
    "from no sensor": lambda p: replace(p, ip=replace(p.ip, source=IPv4Address("10.83.0.12"))),
    "UDP": lambda p: replace(p, ip=replace(p.ip, protocol=17)),
    "a later fragment": lambda p: replace(p, ip=replace(p.ip, dont_fragment=False, fragment_offset=1)),
    "IP options": lambda p: replace(p, ip=replace(p.ip, options=NOP * 4, length=p.ip.length + 4)),
    "another EtherType": lambda p: replace(p, ethernet=replace(p.ethernet, ethertype=0x86DD)),
    "from a MAC that differs in its last byte": lambda p: replace(
        p, ethernet=replace(p.ethernet, source=HARDWORKER_MAC[:5] + b"\x03")
    ),
    "from a MAC that differs in its first byte": lambda p: replace(
        p, ethernet=replace(p.ethernet, source=b"\x06" + HARDWORKER_MAC[1:])
    ),
}


@pytest.mark.parametrize("change", NOT_REMEMBERED.values(), ids=NOT_REMEMBERED)
def test_not_remembered(logger: Logger, peer: Peer, change: Change) -> None:
    before = logger.remembered()
    for flags in (SYN, ACK):
        logger.receives(changed(peer.sent(Leg.RELAYED, flags, b"data"), change))
    assert logger.remembered() == before
    logger.sends(peer.reply(), restored=False)


@pytest.mark.parametrize("what", [what for what in NOT_REMEMBERED if "MAC" not in what])
def test_not_forgotten(logger: Logger, peer: Peer, what: str) -> None:
    """Only a SYN of this very connection, sent directly, forgets it."""
    logger.receives(peer.sent(Leg.RELAYED))
    logger.receives(changed(peer.sent(Leg.DIRECT, SYN), NOT_REMEMBERED[what]))
    logger.sends(peer.reply(), restored=True)


UNTOUCHED: dict[str, Change] = {
    "from another port": lambda p: replace(p, tcp=replace(p.tcp, source_port=80)),
    "from another IP": lambda p: replace(p, ip=replace(p.ip, source=TOPOLOGY.hardworker.ip)),
    "from the IP next to the logger's": lambda p: replace(p, ip=replace(p.ip, source=TOPOLOGY.logger.ip + 1)),
    "UDP": lambda p: replace(p, ip=replace(p.ip, protocol=17)),
    "a later fragment": lambda p: replace(p, ip=replace(p.ip, dont_fragment=False, fragment_offset=1)),
    "IP options": lambda p: replace(p, ip=replace(p.ip, options=NOP * 4, length=p.ip.length + 4)),
    "another EtherType": lambda p: replace(p, ethernet=replace(p.ethernet, ethertype=0x86DD)),
}


@pytest.mark.parametrize("change", UNTOUCHED.values(), ids=UNTOUCHED)
def test_untouched(logger: Logger, peer: Peer, change: Change) -> None:
    logger.receives(peer.sent(Leg.RELAYED))
    logger.sends(changed(peer.reply(payload=b"data"), change), restored=False)


RESTORED: dict[str, Change] = {
    "any TOS": lambda p: replace(p, ip=replace(p.ip, tos=0)),
    "TTL 1": lambda p: replace(p, ip=replace(p.ip, ttl=1, identification=7)),
    "TCP options": lambda p: replace(
        p, tcp=replace(p.tcp, options=NOP * 40), ip=replace(p.ip, length=p.ip.length + 40)
    ),
    "to any MAC": lambda p: replace(p, ethernet=replace(p.ethernet, destination=bytes(6))),
    "padded": lambda p: replace(p, trailer=bytes(6)),
}


@pytest.mark.parametrize("change", RESTORED.values(), ids=RESTORED)
def test_restored(logger: Logger, peer: Peer, change: Change) -> None:
    logger.receives(peer.sent(Leg.RELAYED))
    logger.sends(changed(peer.reply(payload=b""), change), restored=True)


@pytest.mark.parametrize("length", range(34, 54))  # newer kernels run no frame without an IPv4 header
def test_truncated(logger: Logger, length: int) -> None:
    peer = Peer(0, next(PORTS))
    logger.receives(peer.sent(Leg.RELAYED)[:length])
    assert peer.name not in logger.remembered()
    logger.receives(peer.sent(Leg.RELAYED))
    logger.sends(peer.reply()[:length], restored=False)


def test_a_vlan_tag(logger: Logger, peer: Peer) -> None:
    def tagged(frame: bytes) -> bytes:
        return frame[:12] + bytes.fromhex("81000005") + frame[12:]

    logger.receives(tagged(peer.sent(Leg.RELAYED)))
    assert peer.name not in logger.remembered()
    logger.receives(peer.sent(Leg.RELAYED))
    logger.sends(tagged(peer.reply()), restored=False)


@settings(max_examples=200)
@given(
    sequence=st.integers(0, 2**32 - 1),
    ack=st.integers(0, 2**32 - 1),
    identification=st.integers(0, 2**16 - 1),
    window=st.integers(0, 2**16 - 1),
    payload=st.binary(max_size=40),
    wrong=st.sampled_from([None, "ip", "tcp"]),
)
def test_checksums(
    logger: Logger,
    sequence: int,
    ack: int,
    identification: int,
    window: int,
    payload: bytes,
    wrong: Literal["ip", "tcp"] | None,
) -> None:
    """To the bit, whatever is in the packet; a checksum that was wrong stays wrong."""
    peer = Peer(0, 1023)
    logger.receives(peer.sent(Leg.RELAYED))
    frame = packet.craft(
        TOPOLOGY,
        0,
        ACK,
        sequence,
        ack,
        payload,
        leg=Leg.REPLY,
        peer_port=peer.port,
        identification=identification,
        window=window,
    )
    logger.sends(packet.corrupt(frame, wrong) if wrong else frame, restored=True)


def test_the_oldest_makes_room(logger: Logger) -> None:
    """A flood of connections forgets old ones, and refuses nobody; a packet is enough to be known again."""
    first = Peer(1, 1)
    logger.receives(first.sent(Leg.RELAYED))
    room = libbpf.map_info(logger.program.map_fd("through_hardworker")).max_entries
    fd = logger.program.map_fd("through_hardworker")
    for number in range(room + room // 2):
        libbpf.update(fd, number.to_bytes(4) + b"\xff\xff\0\0", b"\1")
    assert len(logger.remembered()) <= room
    logger.receives(first.sent(Leg.RELAYED))
    logger.sends(first.reply(), restored=True)
