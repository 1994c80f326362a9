"""What a frame of any link type carries (https://www.tcpdump.org/linktypes.html)."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

ETHERNET = 1
IPV4, IPV6 = 0x0800, 0x86DD
VLAN_TAGS = (0x8100, 0x88A8, 0x9100)  # IEEE 802.1Q customer and service tag, and what came before the latter

_NULL, _LOOP, _COOKED, _COOKED_2 = 0, 108, 113, 276
_RAW = (12, 14, 101)  # 12 and 14 by their numbers on some BSDs
_IPV4_ALONE, _IPV6_ALONE = 228, 229
_ADDRESS_FAMILIES = {
    2: IPV4,
    10: IPV6,
    24: IPV6,
    28: IPV6,
    30: IPV6,
}  # AF_INET; AF_INET6 of Linux and the BSDs

EXPECTED = "Ethernet (1), Linux cooked (113, 276), raw IP (101, 228, 229) or loopback (0, 108)"


@dataclass(frozen=True, slots=True)
class Carried:
    """`protocol`: an EtherType, that behind VLAN tags; 0 where there is none. `start`: the packet's first
    byte. `source_mac`: empty where the frame has none."""

    protocol: int
    start: int
    source_mac: bytes = b""


def carried(link: int, frame: bytes) -> Carried | None:
    """What `frame` carries; None if this link type is not known. What is cut short carries protocol 0."""
    if link not in _HEADERS:
        return None
    try:
        found = _HEADERS[link](frame)
        protocol, start = found.protocol, found.start
        while protocol in VLAN_TAGS:
            (protocol,) = struct.unpack_from("!H", frame, start + 2)
            start += 4
    except (struct.error, IndexError):
        return Carried(0, len(frame))
    return Carried(protocol, start, found.source_mac)


def _ethernet(frame: bytes) -> Carried:
    return Carried(struct.unpack_from("!H", frame, 12)[0], 14, frame[6:12])


def _cooked(frame: bytes) -> Carried:
    size, address, protocol = struct.unpack_from("!H8sH", frame, 4)
    return Carried(protocol, 16, address[:6] if size == 6 else b"")


def _cooked_2(frame: bytes) -> Carried:
    protocol, size, address = struct.unpack_from("!H9xB8s", frame)
    return Carried(protocol, 20, address[:6] if size == 6 else b"")


def _family(frame: bytes) -> Carried:
    """An address family, in the byte order of whoever captured."""
    (number,) = struct.unpack_from("<I", frame)
    return Carried(_ADDRESS_FAMILIES.get(number if number < 1 << 16 else number >> 24, 0), 4)


def _raw(frame: bytes) -> Carried:
    return Carried({4: IPV4, 6: IPV6}.get(frame[0] >> 4, 0), 0)


_HEADERS: dict[int, Callable[[bytes], Carried]] = {
    ETHERNET: _ethernet,
    _COOKED: _cooked,
    _COOKED_2: _cooked_2,
    _NULL: _family,
    _LOOP: _family,
    **dict.fromkeys(_RAW, _raw),
    _IPV4_ALONE: lambda _: Carried(IPV4, 0),
    _IPV6_ALONE: lambda _: Carried(IPV6, 0),
}
