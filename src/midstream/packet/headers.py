"""Ethernet, IPv4 and TCP headers, to the bit: what was parsed packs to the same bytes again.

A parser raises ConfigError where the bytes cannot be such a header. It judges nothing else: wrong checksums,
reserved bits and options are kept, so that a faulty packet can be looked at and sent as it is.
"""

import struct
from dataclasses import dataclass, replace
from enum import IntFlag
from ipaddress import IPv4Address
from typing import ClassVar, Self

from midstream.errors import ConfigError
from midstream.packet.checksum import checksum

PROTOCOL_TCP = 6


class Flags(IntFlag):
    """The control bits of TCP (RFC 9293, section 3.1)."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    ECE = 0x40
    CWR = 0x80

    def __str__(self) -> str:
        return " ".join(flag.name or "" for flag in type(self) if flag in self) or "none"


NO_FLAGS = Flags(0)


@dataclass(frozen=True, slots=True)
class Ethernet:
    """An Ethernet II header; MAC addresses are six bytes."""

    destination: bytes
    source: bytes
    ethertype: int = 0x0800

    LENGTH: ClassVar[int] = 14
    IPV4: ClassVar[int] = 0x0800
    VLAN: ClassVar[tuple[int, ...]] = (0x8100, 0x88A8)  # IEEE 802.1Q customer and service tag

    @classmethod
    def parse(cls, frame: bytes) -> Self:
        """The header at the start of `frame`. Raises ConfigError if it is not whole."""
        _require(frame, cls.LENGTH, "Ethernet header")
        return cls(frame[0:6], frame[6:12], int.from_bytes(frame[12:14]))

    def pack(self) -> bytes:
        """Its 14 bytes."""
        return self.destination + self.source + self.ethertype.to_bytes(2)


@dataclass(frozen=True, slots=True)
class IPv4:
    """An IPv4 header (RFC 791). `length` includes the payload; `fragment_offset` is in units of 8 bytes."""

    source: IPv4Address
    destination: IPv4Address
    length: int
    tos: int = 0
    identification: int = 0
    reserved: bool = False
    dont_fragment: bool = True
    more_fragments: bool = False
    fragment_offset: int = 0
    ttl: int = 64
    protocol: int = PROTOCOL_TCP
    checksum: int = 0
    options: bytes = b""

    LENGTH: ClassVar[int] = 20
    _FORMAT: ClassVar[struct.Struct] = struct.Struct("!BBHHHBBH4s4s")

    @property
    def header_length(self) -> int:
        """Bytes of the header, options included."""
        return self.LENGTH + len(self.options)

    @property
    def is_fragment(self) -> bool:
        """Is this a part of a packet (RFC 791, section 3.2)?"""
        return self.more_fragments or self.fragment_offset > 0

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The header at the start of `data`; what follows it is ignored."""
        _require(data, cls.LENGTH, "IPv4 header")
        first, tos, length, identification, fragment, ttl, protocol, check, source, destination = (
            cls._FORMAT.unpack_from(data)
        )
        if first >> 4 != 4:
            raise ConfigError(f"IPv4 header: the version is {first >> 4}, expected 4")
        header_length = (first & 0xF) * 4
        if header_length < cls.LENGTH:
            raise ConfigError(
                f"IPv4 header: its length field says {header_length} bytes, at least 20 are needed"
            )
        _require(data, header_length, "IPv4 header with options")
        return cls(
            source=IPv4Address(source),
            destination=IPv4Address(destination),
            length=length,
            tos=tos,
            identification=identification,
            reserved=bool(fragment & 0x8000),
            dont_fragment=bool(fragment & 0x4000),
            more_fragments=bool(fragment & 0x2000),
            fragment_offset=fragment & 0x1FFF,
            ttl=ttl,
            protocol=protocol,
            checksum=check,
            options=data[cls.LENGTH : header_length],
        )

    def pack(self) -> bytes:
        """Its bytes, options included, with the checksum that it has."""
        return (
            self._FORMAT.pack(
                4 << 4 | _words(self.header_length, "IPv4 options"),
                self.tos,
                self.length,
                self.identification,
                self.reserved << 15
                | self.dont_fragment << 14
                | self.more_fragments << 13
                | self.fragment_offset,
                self.ttl,
                self.protocol,
                self.checksum,
                self.source.packed,
                self.destination.packed,
            )
            + self.options
        )

    def computed_checksum(self) -> int:
        """The checksum that this header should bear, from scratch."""
        return checksum(replace(self, checksum=0).pack())

    @property
    def is_intact(self) -> bool:
        """Whether a receiver accepts the checksum; 0xffff is as good to it as 0x0000."""
        return checksum(self.pack()) == 0


@dataclass(frozen=True, slots=True)
class Tcp:
    """A TCP header (RFC 9293, section 3.1)."""

    source_port: int
    destination_port: int
    sequence: int = 0
    acknowledgment: int = 0
    flags: Flags = NO_FLAGS
    reserved: int = 0
    window: int = 65535
    checksum: int = 0
    urgent: int = 0
    options: bytes = b""

    LENGTH: ClassVar[int] = 20
    _FORMAT: ClassVar[struct.Struct] = struct.Struct("!HHIIBBHHH")

    @property
    def header_length(self) -> int:
        """Bytes of the header, options included."""
        return self.LENGTH + len(self.options)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The header at the start of `data`; what follows it is ignored."""
        _require(data, cls.LENGTH, "TCP header")
        source, destination, sequence, acknowledgment, offset, flags, window, check, urgent = (
            cls._FORMAT.unpack_from(data)
        )
        header_length = (offset >> 4) * 4
        if header_length < cls.LENGTH:
            raise ConfigError(
                f"TCP header: its data offset says {header_length} bytes, at least 20 are needed"
            )
        _require(data, header_length, "TCP header with options")
        return cls(
            source_port=source,
            destination_port=destination,
            sequence=sequence,
            acknowledgment=acknowledgment,
            flags=Flags(flags),
            reserved=offset & 0xF,
            window=window,
            checksum=check,
            urgent=urgent,
            options=data[cls.LENGTH : header_length],
        )

    def pack(self) -> bytes:
        """Its bytes, options included, with the checksum that it has."""
        return (
            self._FORMAT.pack(
                self.source_port,
                self.destination_port,
                self.sequence,
                self.acknowledgment,
                _words(self.header_length, "TCP options") << 4 | self.reserved,
                self.flags,
                self.window,
                self.checksum,
                self.urgent,
            )
            + self.options
        )

    def computed_checksum(self, ip: IPv4, payload: bytes) -> int:
        """The checksum over pseudo-header, header and payload that this segment should bear, from scratch."""
        return checksum(_covered(replace(self, checksum=0), ip, payload))

    def is_intact(self, ip: IPv4, payload: bytes) -> bool:
        """Whether a receiver accepts the checksum; 0xffff is as good to it as 0x0000."""
        return checksum(_covered(self, ip, payload)) == 0

    def is_pending(self, ip: IPv4, size: int) -> bool:
        """Whether the checksum is the sum of the pseudo-header alone: the card is to complete it.

        size: bytes of header and data; a card that cuts a large segment may want 0 there.
        """
        addresses = ip.source.packed + ip.destination.packed
        sums = (~checksum(addresses + struct.pack("!HI", ip.protocol, size)) & 0xFFFF for size in (size, 0))
        return self.checksum in sums


@dataclass(frozen=True, slots=True)
class Packet:
    """A whole frame. `trailer` is what follows the IP packet: the padding of short Ethernet frames. `cut`:
    bytes of data that a capture does not hold."""

    ethernet: Ethernet
    ip: IPv4
    tcp: Tcp
    payload: bytes = b""
    trailer: bytes = b""
    cut: int = 0

    @property
    def size(self) -> int:
        """Bytes of data on the wire."""
        return len(self.payload) + self.cut

    @classmethod
    def parse(cls, frame: bytes, length: int | None = None) -> Self:
        """The packet in `frame`. Raises ConfigError unless it is a whole TCP segment over IPv4.

        length: of the frame on the wire, if it comes from a capture. Less may have been captured, and the
        total length may be 0: then the sender's card was to cut the frame and to write each piece's length.
        """
        ethernet = Ethernet.parse(frame)
        if ethernet.ethertype in Ethernet.VLAN:
            raise ConfigError(
                f"Ethernet: a VLAN tag (0x{ethernet.ethertype:04x}), expected untagged IPv4 (0x0800)"
            )
        if ethernet.ethertype != Ethernet.IPV4:
            raise ConfigError(f"Ethernet: type 0x{ethernet.ethertype:04x}, expected IPv4 (0x0800)")
        data = frame[Ethernet.LENGTH :]
        there = len(data) if length is None else max(length - Ethernet.LENGTH, len(data))
        options = min(there - len(data), 40)  # of a header, at most: a capture may lack them
        ip = IPv4.parse(data.ljust(len(data) + options, b"\0"))
        total = ip.length if length is None else ip.length or there
        if total < ip.header_length:
            raise ConfigError(
                f"IPv4: total length {ip.length} is less than the header's {ip.header_length} bytes"
            )
        if total > there:
            raise ConfigError(f"IPv4 packet: {total} bytes expected, the frame ends after {there}")
        if ip.is_fragment:
            raise ConfigError(f"IPv4: a fragment (offset {ip.fragment_offset * 8}), expected a whole packet")
        if ip.protocol != PROTOCOL_TCP:
            raise ConfigError(f"IPv4: protocol {ip.protocol}, expected TCP ({PROTOCOL_TCP})")
        segment = data[ip.header_length : total]
        tcp = Tcp.parse(segment.ljust(min(len(segment) + options, total - ip.header_length), b"\0"))
        payload = segment[tcp.header_length :]
        cut = total - ip.header_length - tcp.header_length - len(payload)
        return cls(ethernet, ip, tcp, payload, data[total:], cut)

    def pack(self) -> bytes:
        """The frame as it is sent."""
        return self.ethernet.pack() + self.ip.pack() + self.tcp.pack() + self.payload + self.trailer

    def with_checksums(self) -> Self:
        """The same packet with both checksums computed from scratch."""
        ip = replace(self.ip, checksum=self.ip.computed_checksum())
        tcp = replace(self.tcp, checksum=self.tcp.computed_checksum(ip, self.payload))
        return replace(self, ip=ip, tcp=tcp)


def _covered(tcp: Tcp, ip: IPv4, payload: bytes) -> bytes:
    """What TCP's checksum covers: pseudo-header, header and data (RFC 9293, section 3.1)."""
    segment = tcp.pack() + payload
    return ip.source.packed + ip.destination.packed + struct.pack("!HI", ip.protocol, len(segment)) + segment


def _require(data: bytes, length: int, what: str) -> None:
    if len(data) < length:
        raise ConfigError(f"{what}: {length} bytes expected, the frame ends after {len(data)}")


def _words(header_length: int, what: str) -> int:
    if header_length % 4 or header_length > 60:
        raise ConfigError(f"{what}: {header_length - 20} bytes, allowed are 0 to 40 in multiples of 4")
    return header_length // 4
