"""A packet's way round the triangle: its legs, a frame for each, and the two rewritings between them."""

from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Literal

from midstream.errors import ConfigError
from midstream.network import Topology
from midstream.packet.checksum import update
from midstream.packet.headers import PROTOCOL_TCP, Ethernet, Flags, IPv4, Packet, Tcp

# Routers set the two low bits of the TOS byte on the way (ECN, RFC 3168): they are no part of the mark.
TOS_WITHOUT_ECN = 0xFC


class Leg(StrEnum):
    """Where between two hosts a packet is; its value is what a user reads."""

    REQUEST = "sensor → hardworker"
    RELAYED = "hardworker → logger"
    REPLY = "logger → sensor"
    RESTORED = "logger → sensor, restored"
    DIRECT = "sensor → logger"


_TO_SERVICE, _TO_SENSOR = (Leg.REQUEST, Leg.RELAYED, Leg.DIRECT), (Leg.REPLY, Leg.RESTORED)


@dataclass(frozen=True, slots=True)
class Addresses:
    """The four addresses by which a leg is known on the wire."""

    source_mac: bytes
    destination_mac: bytes
    source: IPv4Address
    destination: IPv4Address


def addresses(leg: Leg, topology: Topology, sensor: int = 0) -> Addresses:
    """The addresses of `leg` for the sensor of that index. Raises ConfigError if there is none."""
    if not 0 <= sensor < len(topology.sensors):
        raise ConfigError(f"sensor {sensor}: const.toml has {len(topology.sensors)}, counted from 0")
    here, hardworker, logger = topology.sensors[sensor], topology.hardworker, topology.logger
    # Each leg as: sender's MAC, receiver's MAC, source IP, destination IP.
    macs_and_ips = {
        Leg.REQUEST: (here, hardworker, here, hardworker),
        Leg.RELAYED: (hardworker, logger, here, logger),
        Leg.REPLY: (logger, here, logger, here),
        Leg.RESTORED: (logger, here, hardworker, here),
        Leg.DIRECT: (here, logger, here, logger),
    }
    sender, receiver, source, destination = macs_and_ips[leg]
    return Addresses(sender.mac_bytes, receiver.mac_bytes, source.ip, destination.ip)


def craft(
    topology: Topology,
    sensor: int = 0,
    flags: Flags = Flags.SYN,
    seq: int = 0,
    ack: int = 0,
    payload: bytes = b"",
    *,
    leg: Leg = Leg.REQUEST,
    peer_port: int = 40000,
    port: int | None = None,
    tos: int | None = None,
    window: int = 65535,
    ttl: int = 64,
    identification: int = 0,
    ip_options: bytes = b"",
    tcp_options: bytes = b"",
) -> bytes:
    """A marked frame of `leg`, with right checksums and without padding.

    `sensor` is an index into `topology.sensors`, `peer_port` the sensor's own port. `port` and `tos` default
    to the topology's; `seq` and `ack` wrap at 2^32. Raises ConfigError for a value that its field cannot
    hold.
    """
    where = addresses(leg, topology, sensor)
    service = topology.port if port is None else port
    to_sensor = leg in _TO_SENSOR
    tcp = Tcp(
        source_port=_fits("port", service if to_sensor else peer_port, 16),
        destination_port=_fits("port", peer_port if to_sensor else service, 16),
        sequence=seq % 2**32,
        acknowledgment=ack % 2**32,
        flags=flags,
        window=_fits("window", window, 16),
        options=tcp_options,
    )
    ip = IPv4(
        source=where.source,
        destination=where.destination,
        length=_fits("IP total length", IPv4.LENGTH + len(ip_options) + tcp.header_length + len(payload), 16),
        tos=_fits("tos", topology.tos if tos is None else tos, 8),
        identification=_fits("identification", identification, 16),
        ttl=_fits("ttl", ttl, 8),
        options=ip_options,
    )
    ethernet = Ethernet(where.destination_mac, where.source_mac)
    return Packet(ethernet, ip, tcp, payload).with_checksums().pack()


def rewrite(frame: bytes, topology: Topology) -> bytes:
    """What leaves the hardworker for the logger when `frame` came from a sensor.

    The destination IP becomes the logger's, the source MAC the hardworker's and the destination MAC the
    logger's; both checksums are updated incrementally over the whole 32-bit address (RFC 1624), so a wrong
    checksum stays wrong. Nothing else changes: the TTL too stays, because the hardworker relays at layer 2,
    as a switch does.

    Whether a frame *should* be relayed is what `judge` says. Raises ConfigError if it is not TCP over IPv4.
    """
    packet = Packet.parse(frame)
    ip = replace(packet.ip, destination=topology.logger.ip)
    ethernet = replace(
        packet.ethernet, source=topology.hardworker.mac_bytes, destination=topology.logger.mac_bytes
    )
    return _with_address(replace(packet, ethernet=ethernet), ip, packet.ip.destination, ip.destination).pack()


def restore(frame: bytes, topology: Topology) -> bytes:
    """What the sensor's TCP must see if `frame` is the logger's reply on a connection through the hardworker.

    The source IP becomes the hardworker's, both checksums are updated incrementally (RFC 1624), nothing
    else changes. Raises ConfigError if the frame is not TCP over IPv4.
    """
    packet = Packet.parse(frame)
    ip = replace(packet.ip, source=topology.hardworker.ip)
    return _with_address(packet, ip, packet.ip.source, ip.source).pack()


def is_marked(frame: bytes, topology: Topology) -> bool:
    """Whether `frame` is TCP with a stream's port at either end and the topology's TOS (0 = any), also in a
    VLAN."""
    ends = _ends(frame)
    return (
        ends is not None and not topology.ports.keys().isdisjoint(ends.ports) and has_tos(ends.ip, topology)
    )


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
    from_service, to_service = (port in topology.ports for port in ends.ports)
    legs = _TO_SERVICE * to_service + _TO_SENSOR * from_service
    with_each = [replace(topology, logger=logger) for logger in topology.loggers]
    return next((leg for one in with_each for leg in legs if addresses(leg, one, sensor) == where), None)


def has_tos(ip: IPv4, topology: Topology) -> bool:
    """Whether `ip` bears the topology's TOS (0 = any)."""
    return topology.tos in (0, ip.tos & TOS_WITHOUT_ECN)


def untagged(frame: bytes, length: int | None) -> tuple[bytes, int | None]:
    """The frame, and its length on the wire, without VLAN tags."""
    while int.from_bytes(frame[12:14]) in Ethernet.VLAN:
        frame = frame[:12] + frame[16:]
        length = None if length is None else length - 4
    return frame, length


def corrupt(frame: bytes, layer: Literal["ip", "tcp"]) -> bytes:
    """`frame` with a wrong checksum in one header, to see that it is refused."""
    packet = Packet.parse(frame)
    if layer == "ip":
        return replace(packet, ip=replace(packet.ip, checksum=packet.ip.checksum ^ 0x0100)).pack()
    return replace(packet, tcp=replace(packet.tcp, checksum=packet.tcp.checksum ^ 0x0100)).pack()


def _with_address(packet: Packet, ip: IPv4, old: IPv4Address, new: IPv4Address) -> Packet:
    """`packet` under the header `ip`, in which one address changed; TCP's pseudo-header holds it as well."""
    return replace(
        packet,
        ip=replace(ip, checksum=update(ip.checksum, old.packed, new.packed)),
        tcp=replace(packet.tcp, checksum=update(packet.tcp.checksum, old.packed, new.packed)),
    )


def _fits(name: str, value: int, bits: int) -> int:
    if not 0 <= value < 1 << bits:
        raise ConfigError(f"{name} = {value}: allowed are 0 to {(1 << bits) - 1}")
    return value


@dataclass(frozen=True, slots=True)
class _Ends:
    ethernet: Ethernet
    ip: IPv4
    ports: tuple[int, int]  # source, destination


def _ends(frame: bytes) -> _Ends | None:
    """Who sends to whom; None without the start of a TCP header. Faulty packets too have ends."""
    frame, _ = untagged(frame, None)
    data = frame[Ethernet.LENGTH :]
    with suppress(ConfigError):
        ethernet, ip = Ethernet.parse(frame), IPv4.parse(data)
        start = ip.header_length
        is_tcp = ip.protocol == PROTOCOL_TCP and not ip.fragment_offset and len(data) >= start + Tcp.LENGTH
        if ethernet.ethertype == Ethernet.IPV4 and is_tcp:
            source, destination = data[start : start + 2], data[start + 2 : start + 4]
            return _Ends(ethernet, ip, (int.from_bytes(source), int.from_bytes(destination)))
    return None
