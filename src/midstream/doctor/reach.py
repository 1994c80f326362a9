"""Probes: who answers for each address, and which leg of the triangle does not carry packets.

Two kinds, and neither disturbs a connection. An ARP probe (RFC 5227) asks for an address without naming one
of its own, so nobody's table changes. A TCP probe is an acknowledgement without data, with random numbers,
from a port that this host keeps for itself meanwhile; no connection is known by it, so whoever gets it
answers with a reset that bears the probe's number (RFC 9293, section 3.10.7). The hardworker's program lets
such a packet pass on to the logger (it counts as `pure_ack`), so on a sensor the reset comes round the
whole triangle. Its source MAC address tells whose TCP has answered, its source IP address whether the way
back restores it.
"""

import random
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from midstream.doctor.subject import Subject
from midstream.errors import ConfigError
from midstream.network import Host
from midstream.packet import Flags, Packet
from midstream.packet.headers import PROTOCOL_TCP, Ethernet, IPv4, Tcp
from midstream.packet.wire import Listener

TRIES = 3
_ROUND = 0.25  # seconds that an answer may take
_PACE = 0.001  # seconds between two ARP probes: a switch may limit them

_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ETHERTYPE_ARP, _HARDWARE_ETHERNET, _REQUEST, _REPLY = 0x0806, 1, 1, 2
_BROADCAST = b"\xff" * 6

_LOAD_HALF, _LOAD_BYTE, _IF_EQUAL, _IF_SET, _RETURN = 0x28, 0x30, 0x15, 0x45, 0x06  # linux/bpf_common.h
_ANSWERS = (
    (_LOAD_HALF, 0, 0, 12),  # EtherType
    (_IF_EQUAL, 5, 0, _ETHERTYPE_ARP),
    (_IF_EQUAL, 0, 5, Ethernet.IPV4),
    (_LOAD_BYTE, 0, 0, 23),  # protocol
    (_IF_EQUAL, 0, 3, PROTOCOL_TCP),
    (_LOAD_BYTE, 0, 0, 47),  # flags, where IP has no options
    (_IF_SET, 0, 1, Flags.RST),
    (_RETURN, 0, 0, 0xFFFF),
    (_RETURN, 0, 0, 0),
)
"""Lets ARP and resets pass: on a host whose sensors send, all else would fill the buffer first."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reset: the addresses it came from."""

    mac: str
    ip: IPv4Address


@dataclass(frozen=True, slots=True)
class Probes:
    """What came back. owners: the MAC addresses that answer for an IP address. marked, to_logger: answers to
    a sensor's marked probes, through the hardworker and straight to the logger. stacks: to probes that a
    host's own TCP answers, by the host's address. Each has at most TRIES answers."""

    owners: dict[IPv4Address, frozenset[str]]
    marked: tuple[Answer, ...] = ()
    to_logger: tuple[Answer, ...] = ()
    stacks: dict[IPv4Address, tuple[Answer, ...]] = field(default_factory=dict)


def probe(subject: Subject) -> Probes:
    """Send all probes of this role. Raises KernelError without CAP_NET_RAW, NetworkError without a link."""
    with Listener(subject.interface, _ANSWERS) as listener:
        peers = list(subject.peers.values())
        owners = _ask_arp(listener, subject.host, [subject.host.ip, *(host.ip for host in peers)])
        # A port that is none of midstream's: TCP of the peer itself answers, past every program.
        other = random.choice([port for port in (9, 19, 79) if port not in subject.topology.ports])
        hardworker, logger, port = subject.topology.hardworker, subject.topology.logger, subject.topology.port
        if subject.role == "sensor":
            marked, to_logger, stack = _ask_tcp(
                listener, subject, [(hardworker, port), (logger, port), (hardworker, other)]
            )
            return Probes(owners, marked, to_logger, {hardworker.ip: stack})
        ports = [port if host == logger else other for host in peers]
        answers = _ask_tcp(listener, subject, list(zip(peers, ports, strict=True)))
        return Probes(owners, stacks={host.ip: given for host, given in zip(peers, answers, strict=True)})


def _ask_arp(
    listener: Listener, host: Host, addresses: Iterable[IPv4Address]
) -> dict[IPv4Address, frozenset[str]]:
    """Who answers for each address; three rounds for those that are silent."""
    owners: dict[IPv4Address, set[str]] = defaultdict(set)
    # The own address is asked for once: nobody is expected to answer.
    silent = list(addresses)
    for _ in range(TRIES):
        for ip in silent:
            listener.send(_arp_probe(host, ip))
            time.sleep(_PACE)
        deadline = time.monotonic() + _ROUND
        while (left := deadline - time.monotonic()) > 0:
            sighting = listener.next(left)
            if sighting and sighting.direction == "in" and (found := _arp_reply(sighting.frame)):
                owners[found[0]].add(found[1])
        silent = [ip for ip in silent if ip not in owners and ip != host.ip]
        if not silent:
            break
    return {ip: frozenset(macs) for ip, macs in owners.items()}


def _arp_probe(host: Host, target: IPv4Address) -> bytes:
    """RFC 5227, section 2.1.1: the sender's IP address is zero."""
    body = _ARP.pack(
        _HARDWARE_ETHERNET, Ethernet.IPV4, 6, 4, _REQUEST, host.mac_bytes, bytes(4), bytes(6), target.packed
    )
    return Ethernet(_BROADCAST, host.mac_bytes, _ETHERTYPE_ARP).pack() + body


def _arp_reply(frame: bytes) -> tuple[IPv4Address, str] | None:
    """Address and owner, if the frame is a reply."""
    if len(frame) < Ethernet.LENGTH + _ARP.size or Ethernet.parse(frame).ethertype != _ETHERTYPE_ARP:
        return None
    _, _, _, _, operation, mac, ip, _, _ = _ARP.unpack_from(frame, Ethernet.LENGTH)
    return (IPv4Address(ip), mac.hex(":")) if operation == _REPLY else None


def _ask_tcp(
    listener: Listener, subject: Subject, targets: list[tuple[Host, int]]
) -> list[tuple[Answer, ...]]:
    """The resets that each target, a host and a port, answers TRIES probes with."""
    expected: dict[tuple[int, int], int] = {}  # own port, number → index of the target
    answers: list[list[Answer]] = [[] for _ in targets]
    reserved = [_reserve_port() for _ in targets]
    try:
        for _ in range(TRIES):
            for index, (target, port) in enumerate(targets):
                own, number = reserved[index].getsockname()[1], random.getrandbits(32)
                expected[own, number] = index
                listener.send(_tcp_probe(subject, target, own, port, number))
        deadline = time.monotonic() + TRIES * _ROUND
        while expected and (left := deadline - time.monotonic()) > 0:
            sighting = listener.next(left)
            if sighting is None or sighting.direction != "in":
                continue
            with suppress(ConfigError):  # not TCP
                packet = Packet.parse(sighting.frame)
                key = (packet.tcp.destination_port, packet.tcp.sequence)
                if packet.tcp.flags & Flags.RST and key in expected:
                    answers[expected.pop(key)].append(
                        Answer(packet.ethernet.source.hex(":"), packet.ip.source)
                    )
    finally:
        for held in reserved:
            held.close()
    return [tuple(given) for given in answers]


def _tcp_probe(subject: Subject, target: Host, own_port: int, port: int, number: int) -> bytes:
    tcp = Tcp(own_port, port, random.getrandbits(32), number, Flags.ACK)
    ip = IPv4(subject.host.ip, target.ip, IPv4.LENGTH + Tcp.LENGTH, tos=subject.topology.tos)
    return Packet(Ethernet(target.mac_bytes, subject.host.mac_bytes), ip, tcp).with_checksums().pack()


def _reserve_port() -> socket.socket:
    """A port that no connection of this host has, nor gets while the socket is open."""
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    reserved.bind(("", 0))
    return reserved
