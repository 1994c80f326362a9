"""What the hardworker's program does with a frame, and why.

The program also knows the state of every connection, which a single frame does not show: `judge` speaks of a
frame in its place on an open connection, and of a program that verifies checksums, as it does unless
config.toml says otherwise. `_obstacles` goes through a frame in the program's order.

A frame of a capture is not always what was on the wire: less of it may be there, and its sender's card was
perhaps to fill in its checksum or to cut it. With its `length` on the wire it is judged as it was there.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from midstream.errors import ConfigError
from midstream.network import Topology
from midstream.packet.headers import PROTOCOL_TCP, Ethernet, Flags, IPv4, Packet, Tcp
from midstream.packet.path import Leg, find_leg, has_tos, untagged

Action = Literal["relay", "pass", "drop", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to a frame that reaches the hardworker.

    `relay`: its data is taken and it is sent on to the logger. `pass`: it is left to the hardworker's own
    network stack, untouched. `drop`: it bears the mark, but is neither stored nor sent on. `unknown`: too
    little of it was captured.
    """

    action: Action
    reasons: tuple[str, ...]
    leg: Leg | None


@dataclass(frozen=True, slots=True)
class _Finding:
    action: Action  # relay: worth telling, but it does not stop the frame
    text: str
    fault: bool = True  # of the frame; not of how it was captured


def check(frame: bytes, topology: Topology, length: int | None = None) -> list[str]:
    """Everything that is wrong with `frame` as a packet from a sensor to the hardworker.

    A frame on another leg of the triangle is in its place there; only its checksums are checked. length: on
    the wire, of a captured frame.
    """
    return [finding.text for finding in _findings(frame, topology, length) if finding.fault]


def judge(frame: bytes, topology: Topology, length: int | None = None) -> Verdict:
    """What midstream does with `frame`, and why. length: on the wire, of a captured frame."""
    findings = list(_findings(frame, topology, length))
    reasons = tuple(finding.text for finding in findings)
    leg = find_leg(frame, topology)
    for finding in findings:
        if finding.action != "relay":
            return Verdict(finding.action, reasons, leg)
    if leg in _ELSEWHERE:
        return Verdict("pass", (_ELSEWHERE[leg], *reasons), leg)
    return Verdict("relay", (_effect(frame, length), *reasons), leg)


def _findings(frame: bytes, topology: Topology, length: int | None) -> Iterator[_Finding]:
    if length is not None and len(frame) < length:
        yield _note(f"captured {len(frame)} of {length} bytes: the TCP checksum is not verified")
    if find_leg(frame, topology) in _ELSEWHERE:
        yield from _checksums(frame, length, _told)
        return
    yield from _obstacles(frame, topology, length)
    yield from _checksums(frame, length, _drop if _is_verified(frame, length) else _told)


def _obstacles(frame: bytes, topology: Topology, length: int | None) -> Iterator[_Finding]:
    """What keeps the frame from being relayed: the first decides, the others are told too."""
    hardworker = topology.hardworker
    if (tag := int.from_bytes(frame[12:14])) in Ethernet.VLAN:
        yield _pass(f"VLAN tag (EtherType 0x{tag:04x}): marked frames are untagged")
        frame, length = untagged(frame, length)
    ethernet = Ethernet.parse(frame) if len(frame) >= Ethernet.LENGTH else None
    if ethernet and ethernet.ethertype != Ethernet.IPV4:
        yield _pass(f"EtherType is 0x{ethernet.ethertype:04x}, not IPv4 (0x0800)")
        return
    data = frame[Ethernet.LENGTH :]
    if ethernet is None or len(data) < IPv4.LENGTH + Tcp.LENGTH:
        if length is not None and len(frame) < length:
            yield _unknown("too little of it to tell: the headers take 54 bytes and more")
        else:
            yield _pass(
                f"frame of {len(frame)} bytes: too short for Ethernet, IPv4 and TCP headers (54 bytes)"
            )
        return
    try:
        ip = IPv4.parse(data if length is None else data.ljust(min(60, length - Ethernet.LENGTH), b"\0"))
    except ConfigError as error:
        yield _pass(str(error))
        return
    if ip.destination != hardworker.ip:
        yield _pass(f"destination IP is {ip.destination}, the hardworker's is {hardworker.ip}")
    if ip.protocol != PROTOCOL_TCP:
        yield _pass(f"IP protocol is {ip.protocol}, not TCP ({PROTOCOL_TCP})")
        return
    if not has_tos(ip, topology):
        yield _pass(f"TOS is {ip.tos}, the mark is {topology.tos} (its two lowest bits, ECN, do not count)")
    if ethernet.destination != hardworker.mac_bytes:
        yield _pass(
            f"destination MAC is {ethernet.destination.hex(':')}, the hardworker's is {hardworker.mac}"
        )
    yield from _transport_obstacles(frame, ip, topology, length)


def _transport_obstacles(
    frame: bytes, ip: IPv4, topology: Topology, length: int | None
) -> Iterator[_Finding]:
    data = frame[Ethernet.LENGTH :]
    segment = data[ip.header_length :]
    if ip.fragment_offset or len(segment) < Tcp.LENGTH:
        if not ip.fragment_offset and length is not None and len(frame) < length:
            yield _unknown("too little of it to tell: the TCP header is not whole")
        else:
            yield _pass(f"no TCP header: a fragment at offset {ip.fragment_offset * 8}, or truncated")
        return
    destination_port = int.from_bytes(segment[2:4])
    if destination_port not in topology.ports:
        marked = ", ".join(map(str, topology.ports))
        yield _pass(f"destination port is {destination_port}, the mark is {marked}")
    if ip.options:
        yield _drop(f"IP options ({len(ip.options)} bytes): marked packets have none")
    if ip.more_fragments:
        yield _drop("first fragment of an IP packet: marked packets are whole")
        return
    most = topology.mtu - IPv4.LENGTH - Tcp.LENGTH
    there = len(data) if length is None else length - Ethernet.LENGTH
    tcp_length = (segment[12] >> 4) * 4
    is_offloaded = _is_offloaded(frame, length, most)
    total = ip.length or (there if is_offloaded else 0)
    size = total - ip.header_length - tcp_length
    if tcp_length < Tcp.LENGTH or size < 0 or total > there:
        yield _drop(
            f"lengths contradict each other: IP header {ip.header_length}, TCP header {tcp_length}, "
            f"IP total {ip.length}, in the frame {there} bytes"
        )
        return
    if size > most and is_offloaded:
        yield _note(
            f"{size} bytes of data in one frame, {-(-size // most)} segments or more on the wire: the card "
            "cuts it after the capture (TSO), or it was merged before (GRO)"
        )
    elif size > most:
        yield _drop(f"{size} bytes of data exceed {most}, the MTU's limit: merged by LRO or GRO?")
    flags = Flags(segment[13])
    if Flags.SYN in flags and size:
        yield _drop(f"SYN with {size} bytes of data (TCP Fast Open)")
    if Flags.SYN in flags and flags & (Flags.FIN | Flags.RST | Flags.ACK):
        yield _drop(f"flags {flags}: a SYN that opens a connection stands alone")
    yield from _stranger(Ethernet.parse(frame), ip, topology)
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


def _is_verified(frame: bytes, length: int | None) -> bool:
    """Does the frame change what is held? Only then does a wrong checksum stop it.

    Any other is relayed: updated incrementally, a wrong checksum stays wrong, and the logger refuses it.
    """
    with suppress(ConfigError):
        packet = Packet.parse(*untagged(frame, length))
        flags = packet.tcp.flags
        return Flags.RST not in flags and bool(packet.size or flags & (Flags.SYN | Flags.FIN))
    return False


def _is_offloaded(frame: bytes, length: int | None, most: int) -> bool:
    """Whether a captured frame lacks what its sender's card was to do: fill in the checksum, cut it.

    A frame that GRO has merged looks the same.
    """
    if length is None:
        return False
    with suppress(ConfigError):
        packet = Packet.parse(frame, length)
        is_pending = packet.tcp.is_pending(packet.ip, packet.tcp.header_length + packet.size)
        return is_pending or (packet.ip.length == 0 and packet.size > most)
    return False


def _checksums(frame: bytes, length: int | None, wrong: Callable[[str], _Finding]) -> Iterator[_Finding]:
    frame, length = untagged(frame, length)
    with suppress(ConfigError):
        if Ethernet.parse(frame).ethertype != Ethernet.IPV4:
            return
        ip = IPv4.parse(frame[Ethernet.LENGTH :])
        offloaded = _is_offloaded(frame, length, 0)
        if not ip.is_intact and not ip.checksum and offloaded:
            yield _note("IP checksum pending: the card fills it in after the capture")
        elif not ip.is_intact:
            yield wrong(f"IP checksum is 0x{ip.checksum:04x}, should be 0x{ip.computed_checksum():04x}")
        packet = Packet.parse(frame, length)
        whole = length is None or len(frame) >= length
        if whole and packet.tcp.is_intact(ip, packet.payload):
            return
        if offloaded:
            yield _note("TCP checksum pending: the card fills it in after the capture")
        elif whole:
            right = packet.tcp.computed_checksum(ip, packet.payload)
            yield wrong(f"TCP checksum is 0x{packet.tcp.checksum:04x}, should be 0x{right:04x}")


def _effect(frame: bytes, length: int | None) -> str:
    """What a sound packet from a sensor to the hardworker brings about."""
    packet = Packet.parse(frame, length)
    flags, size = packet.tcp.flags, packet.size
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


def _pass(text: str) -> _Finding:
    return _Finding("pass", text)


def _drop(text: str) -> _Finding:
    return _Finding("drop", text)


def _told(text: str) -> _Finding:
    return _Finding("relay", text)


def _unknown(text: str) -> _Finding:
    return _Finding("unknown", text, fault=False)


def _note(text: str) -> _Finding:
    return _Finding("relay", text, fault=False)
