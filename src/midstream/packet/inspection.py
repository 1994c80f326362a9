"""What the hardworker's program does with a frame, and why.

The program also knows the state of every connection, which a single frame does not show: `judge` speaks of a
frame in its place on an open connection, and of a program that verifies checksums, as it does unless
config.toml says otherwise. `_obstacles` goes through a frame in the program's order.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from midstream.errors import ConfigError
from midstream.network import Topology
from midstream.packet.headers import PROTOCOL_TCP, Ethernet, Flags, IPv4, Packet, Tcp
from midstream.packet.path import Addresses, Leg, addresses

# Routers set the two low bits of the TOS byte on the way (ECN, RFC 3168): they are no part of the mark.
TOS_WITHOUT_ECN = 0xFC

Action = Literal["relay", "pass", "drop"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to a frame that reaches the hardworker.

    `relay`: its data is taken and it is sent on to the logger. `pass`: it is left to the hardworker's own
    network stack, untouched. `drop`: it bears the mark, but is neither stored nor sent on.
    """

    action: Action
    reasons: tuple[str, ...]
    leg: Leg | None


@dataclass(frozen=True, slots=True)
class _Finding:
    action: Action  # relay: worth telling, but it does not stop the frame
    text: str


def check(frame: bytes, topology: Topology) -> list[str]:
    """Everything that is wrong with `frame` as a packet from a sensor to the hardworker.

    A frame on another leg of the triangle is in its place there; only its checksums are checked.
    """
    return [finding.text for finding in _findings(frame, topology)]


def judge(frame: bytes, topology: Topology) -> Verdict:
    """What midstream does with `frame`, and why."""
    findings = list(_findings(frame, topology))
    reasons = tuple(finding.text for finding in findings)
    leg = find_leg(frame, topology)
    for finding in findings:
        if finding.action != "relay":
            return Verdict(finding.action, reasons, leg)
    if leg in _ELSEWHERE:
        return Verdict("pass", (_ELSEWHERE[leg], *reasons), leg)
    return Verdict("relay", (_effect(Packet.parse(frame)), *reasons), leg)


def is_marked(frame: bytes, topology: Topology) -> bool:
    """Whether `frame` is TCP with the topology's port at either end and its TOS (0 = any), also in a VLAN."""
    ends = _ends(frame)
    return ends is not None and topology.port in ends.ports and _has_tos(ends.ip, topology)


def find_leg(frame: bytes, topology: Topology) -> Leg | None:
    """The leg whose addresses and mark `frame` bears; None if it is not midstream's."""
    ends = _ends(frame)
    if ends is None or not is_marked(frame, topology):
        return None
    where = Addresses(ends.ethernet.source, ends.ethernet.destination, ends.ip.source, ends.ip.destination)
    ips = (where.source, where.destination)
    sensor = next((index for index, host in enumerate(topology.sensors) if host.ip in ips), None)
    if sensor is None:
        return None
    to_service = ends.ports[1] == topology.port
    legs = (Leg.REQUEST, Leg.RELAYED, Leg.DIRECT) if to_service else (Leg.REPLY, Leg.RESTORED)
    return next((leg for leg in legs if addresses(leg, topology, sensor) == where), None)


def _findings(frame: bytes, topology: Topology) -> Iterator[_Finding]:
    if find_leg(frame, topology) in _ELSEWHERE:
        yield from map(_told, _wrong_checksums(frame))
        return
    yield from _obstacles(frame, topology)
    finding = _drop if _is_verified(frame) else _told
    yield from map(finding, _wrong_checksums(frame))


def _obstacles(frame: bytes, topology: Topology) -> Iterator[_Finding]:
    """What keeps the frame from being relayed: the first decides, the others are told too."""
    hardworker = topology.hardworker
    if (tag := int.from_bytes(frame[12:14])) in Ethernet.VLAN:
        yield _pass(f"VLAN tag (EtherType 0x{tag:04x}): marked frames are untagged")
        frame = _untagged(frame)
    data = frame[Ethernet.LENGTH :]
    if len(data) < IPv4.LENGTH + Tcp.LENGTH:
        yield _pass(f"frame of {len(frame)} bytes: too short for Ethernet, IPv4 and TCP headers (54 bytes)")
        return
    ethernet = Ethernet.parse(frame)
    if ethernet.ethertype != Ethernet.IPV4:
        yield _pass(f"EtherType is 0x{ethernet.ethertype:04x}, not IPv4 (0x0800)")
        return
    try:
        ip = IPv4.parse(data)
    except ConfigError as error:
        yield _pass(str(error))
        return
    if ip.destination != hardworker.ip:
        yield _pass(f"destination IP is {ip.destination}, the hardworker's is {hardworker.ip}")
    if ip.protocol != PROTOCOL_TCP:
        yield _pass(f"IP protocol is {ip.protocol}, not TCP ({PROTOCOL_TCP})")
        return
    if not _has_tos(ip, topology):
        yield _pass(f"TOS is {ip.tos}, the mark is {topology.tos} (its two lowest bits, ECN, do not count)")
    if ethernet.destination != hardworker.mac_bytes:
        yield _pass(
            f"destination MAC is {ethernet.destination.hex(':')}, the hardworker's is {hardworker.mac}"
        )
    yield from _transport_obstacles(data, ethernet, ip, topology)


def _transport_obstacles(data: bytes, ethernet: Ethernet, ip: IPv4, topology: Topology) -> Iterator[_Finding]:
    segment = data[ip.header_length :]
    if ip.fragment_offset or len(segment) < Tcp.LENGTH:
        yield _pass(f"no TCP header: a fragment at offset {ip.fragment_offset * 8}, or truncated")
        return
    destination_port = int.from_bytes(segment[2:4])
    if destination_port != topology.port:
        yield _pass(f"destination port is {destination_port}, the mark is {topology.port}")
    if ip.options:
        yield _drop(f"IP options ({len(ip.options)} bytes): marked packets have none")
    if ip.more_fragments:
        yield _drop("first fragment of an IP packet: marked packets are whole")
        return
    tcp_length = (segment[12] >> 4) * 4
    size = ip.length - ip.header_length - tcp_length
    if tcp_length < Tcp.LENGTH or size < 0 or ip.length > len(data):
        yield _drop(
            f"lengths contradict each other: IP header {ip.header_length}, TCP header {tcp_length}, "
            f"IP total {ip.length}, in the frame {len(data)} bytes"
        )
        return
    most = topology.mtu - IPv4.LENGTH - Tcp.LENGTH
    if size > most:
        yield _drop(f"{size} bytes of data exceed {most}, the MTU's limit: merged by LRO or GRO?")
    flags = Flags(segment[13])
    if Flags.SYN in flags and size:
        yield _drop(f"SYN with {size} bytes of data (TCP Fast Open)")
    if Flags.SYN in flags and flags & (Flags.FIN | Flags.RST | Flags.ACK):
        yield _drop(f"flags {flags}: a SYN that opens a connection stands alone")
    yield from _stranger(ethernet, ip, topology)
    if not flags & (Flags.SYN | Flags.RST | Flags.ACK) and (size or Flags.FIN in flags):
        yield _drop("data or FIN without ACK")


def _stranger(ethernet: Ethernet, ip: IPv4, topology: Topology) -> Iterator[_Finding]:
    sensor = next((host for host in topology.sensors if host.ip == ip.source), None)
    if sensor is None:
        yield _pass(f"source IP {ip.source} is no sensor's")
    elif ethernet.source != sensor.mac_bytes:
        yield _drop(
            f"source MAC is {ethernet.source.hex(':')}, the MAC of sensor {sensor.ip} is {sensor.mac}"
        )


def _is_verified(frame: bytes) -> bool:
    """Does the frame change what is held? Only then does a wrong checksum stop it.

    Any other is relayed: updated incrementally, a wrong checksum stays wrong, and the logger refuses it.
    """
    with suppress(ConfigError):
        packet = Packet.parse(_untagged(frame))
        flags = packet.tcp.flags
        return Flags.RST not in flags and bool(packet.payload or flags & (Flags.SYN | Flags.FIN))
    return False


def _wrong_checksums(frame: bytes) -> Iterator[str]:
    frame = _untagged(frame)
    with suppress(ConfigError):
        if Ethernet.parse(frame).ethertype != Ethernet.IPV4:
            return
        ip = IPv4.parse(frame[Ethernet.LENGTH :])
        if not ip.is_intact:
            yield f"IP checksum is 0x{ip.checksum:04x}, should be 0x{ip.computed_checksum():04x}"
        packet = Packet.parse(frame)
        if not packet.tcp.is_intact(ip, packet.payload):
            right = packet.tcp.computed_checksum(ip, packet.payload)
            yield f"TCP checksum is 0x{packet.tcp.checksum:04x}, should be 0x{right:04x}"


def _effect(packet: Packet) -> str:
    """What a sound packet from a sensor to the hardworker brings about."""
    flags, size = packet.tcp.flags, len(packet.payload)
    if Flags.SYN in flags:
        return "SYN opens a connection and is sent on to the logger"
    if Flags.RST in flags:
        return "RST is sent on to the logger; in sequence it ends the connection"
    data = f"{size} bytes of data are stored where they are new, then sent on to the logger"
    if Flags.FIN in flags:
        end = "FIN is sent on to the logger; in sequence it ends the stream"
        return f"{data}; {end}" if size else end
    return data if size else "a packet without data is sent on to the logger"


_ELSEWHERE: dict[Leg | None, str] = {
    Leg.RELAYED: "relayed by the hardworker; the logger's TCP takes it",
    Leg.REPLY: "a reply with the logger's own address: of a direct connection, or not yet restored",
    Leg.RESTORED: "a reply that bears the hardworker's address again; the sensor's TCP takes it",
    Leg.DIRECT: "a direct connection to the logger, past the hardworker",
}


@dataclass(frozen=True, slots=True)
class _Ends:
    ethernet: Ethernet
    ip: IPv4
    ports: tuple[int, int]  # source, destination


def _ends(frame: bytes) -> _Ends | None:
    """Who sends to whom; None without the start of a TCP header. Faulty packets too have ends."""
    frame = _untagged(frame)
    data = frame[Ethernet.LENGTH :]
    with suppress(ConfigError):
        ethernet, ip = Ethernet.parse(frame), IPv4.parse(data)
        start = ip.header_length
        is_tcp = ip.protocol == PROTOCOL_TCP and not ip.fragment_offset and len(data) >= start + Tcp.LENGTH
        if ethernet.ethertype == Ethernet.IPV4 and is_tcp:
            source, destination = data[start : start + 2], data[start + 2 : start + 4]
            return _Ends(ethernet, ip, (int.from_bytes(source), int.from_bytes(destination)))
    return None


def _has_tos(ip: IPv4, topology: Topology) -> bool:
    return topology.tos in (0, ip.tos & TOS_WITHOUT_ECN)


def _untagged(frame: bytes) -> bytes:
    while int.from_bytes(frame[12:14]) in Ethernet.VLAN:
        frame = frame[:12] + frame[16:]
    return frame


def _pass(text: str) -> _Finding:
    return _Finding("pass", text)


def _drop(text: str) -> _Finding:
    return _Finding("drop", text)


def _told(text: str) -> _Finding:
    return _Finding("relay", text)
