"""The TCP segment in a captured frame of any link type, over IPv4 or IPv6."""

import struct
from dataclasses import dataclass

from midstream.packet import Captured, carried

FIN, SYN, RST, PSH = 1, 2, 4, 8

_IPV4, _IPV6 = 0x0800, 0x86DD
_TCP, _FRAGMENT = 6, 44
_PADDING, _TIME_STAMP = 1, 8  # TCP's options
_OPTIONS = (
    0,
    43,
    60,
    135,
    139,
    140,
)  # headers between IPv6 and TCP, all of the same form (RFC 8200, section 4)

OTHER = "packets that are not TCP"
FRAGMENT = "fragments of IP packets"
CUT = "packets that were captured only in part, without their TCP header"
WRONG = "packets whose lengths contradict each other"


@dataclass(frozen=True, slots=True)
class CapturedSegment:
    """`first`: the sequence number of its first byte of data, after that of a SYN. `size`: of its data.
    `ticks`: its sender's clock, in units of the sender's (RFC 7323); None if it tells none."""

    source: bytes
    destination: bytes
    ports: bytes  # source's and destination's, as on the wire
    first: int
    size: int
    flags: int
    ticks: int | None = None

    @property
    def flow(self) -> tuple[bytes, bytes, bytes]:
        return self.source, self.destination, self.ports

    @property
    def back(self) -> tuple[bytes, bytes, bytes]:
        """The flow in the other direction."""
        return self.destination, self.source, self.ports[2:] + self.ports[:2]

    @property
    def to_port(self) -> int:
        return int.from_bytes(self.ports[2:])


def find_segment(captured: Captured) -> CapturedSegment | str | None:
    """The segment, or why there is none; None if the link type is not known."""
    found = carried(captured.link, captured.data)
    if found is None:
        return None
    packet = captured.data[found.start :]
    there = captured.length - found.start  # on the wire
    try:
        if found.protocol == _IPV4:
            return _over_ipv4(packet, there)
        if found.protocol == _IPV6:
            return _over_ipv6(packet, there)
    except (struct.error, IndexError):
        return CUT if len(captured.data) < captured.length else WRONG
    return CUT if found.protocol == 0 and len(captured.data) < captured.length else OTHER


def _over_ipv4(packet: bytes, there: int) -> CapturedSegment | str:
    first, total, fragment, protocol = struct.unpack_from("!BxHxxHxB", packet)
    if protocol != _TCP:
        return OTHER
    if fragment & 0x3FFF:
        return FRAGMENT
    header = (first & 0xF) * 4
    # A card that cuts a large packet writes the length itself: until then it may be 0.
    return _segment(packet[12:16], packet[16:20], packet[header:], header, total or there, there)


def _over_ipv6(packet: bytes, there: int) -> CapturedSegment | str:
    size, kind = struct.unpack_from("!4xHB", packet)
    place = 40
    while kind in _OPTIONS:
        kind, length = packet[place], packet[place + 1]
        place += 8 * (length + 1)
    if kind != _TCP:
        return FRAGMENT if kind == _FRAGMENT else OTHER
    total = 40 + size if size else there
    return _segment(packet[8:24], packet[24:40], packet[place:], place, total, there)


def _segment(
    source: bytes, destination: bytes, tcp: bytes, before: int, total: int, there: int
) -> CapturedSegment | str:
    sequence, offset, flags = struct.unpack_from("!4xI4xBB", tcp)
    size = total - before - (offset >> 4) * 4
    if size < 0 or total > there or offset >> 4 < 5:
        return WRONG
    first = (sequence + bool(flags & SYN)) & 0xFFFFFFFF
    return CapturedSegment(
        source, destination, tcp[:4], first, size, flags, _ticks(tcp[20 : (offset >> 4) * 4])
    )


def _ticks(options: bytes) -> int | None:
    """The value of the time-stamp option."""
    place = 0
    while place + 1 < len(options) and (kind := options[place]):
        length = 1 if kind == _PADDING else options[place + 1]
        if kind == _TIME_STAMP and length == 10 and place + 6 <= len(options):
            return int.from_bytes(options[place + 2 : place + 6])
        if length < 1:
            break
        place += length
    return None
