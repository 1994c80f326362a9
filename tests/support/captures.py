"""Captures of every format and link type, written by hand, so that the reader shares nothing with them."""

import gzip
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

ETHERNET, NULL, LOOP, COOKED, COOKED_2, RAW, IPV4_ALONE, IPV6_ALONE = 1, 0, 108, 113, 276, 101, 228, 229
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
SECOND = 10**9
START = 1_764_450_000 * SECOND + 123_456_789


@dataclass(frozen=True)
class Frame:
    """`data`: what was captured of `length` bytes, at `time` nanoseconds on an interface."""

    data: bytes
    time: int = START
    length: int | None = None
    interface: int = 0


def tcp(
    sequence: int,
    payload: bytes = b"",
    flags: int = PSH | ACK,
    *,
    ports: tuple[int, int] = (4000, 12345),
    hosts: tuple[str, str] = ("10.0.0.1", "10.0.0.2"),
    options: int = 12,
    zero_length: bool = False,
) -> bytes:
    """An IP packet with right lengths, over IPv6 if the addresses are. zero_length: as TSO leaves it."""
    offset = (20 + options) // 4 << 4
    header = struct.pack("!HHIIBBHHH", *ports, sequence % 2**32, 1, offset, flags, 500, 0, 0)
    segment = header + b"\x01" * options + payload
    source, destination = (ip_address(host).packed for host in hosts)
    total = 0 if zero_length else len(segment)
    if len(source) == 16:
        return struct.pack("!IHBB", 6 << 28, total, 6, 64) + source + destination + segment
    total = 0 if zero_length else 20 + len(segment)
    return struct.pack("!BBHHHBBH", 0x45, 104, total, 0, 0x4000, 64, 6, 0) + source + destination + segment


def framed(packet: bytes, link: int, *, tags: int = 0, order: str = "<") -> bytes:
    """An IP packet as the link type has it."""
    version = packet[0] >> 4
    kind = 0x0800 if version == 4 else 0x86DD
    behind = b""
    for _ in range(tags):
        behind, kind = struct.pack("!HH", 7, kind) + behind, 0x8100
    if link == ETHERNET:
        return bytes(12) + struct.pack("!H", kind) + behind + packet
    if link == COOKED:
        return struct.pack("!HHH8sH", 0, 1, 6, b"\x02\0\0\0\0\x11", kind) + behind + packet
    if link == COOKED_2:
        return struct.pack("!HHIHBB8s", kind, 0, 2, 1, 0, 6, b"\x02\0\0\0\0\x11") + behind + packet
    if link in (NULL, LOOP):
        family = 2 if version == 4 else 30
        return struct.pack((">" if link == LOOP else order) + "I", family) + packet
    return packet


def pcap(
    frames: Sequence[Frame],
    link: int = ETHERNET,
    *,
    order: str = "<",
    nano: bool = True,
    check: int = 0,
    snap: int = 1 << 18,
) -> bytes:
    """check: bytes of a frame check sequence that the link type's field announces, a multiple of two."""
    unit = 1 if nano else 1000
    field = link | (check // 2 << 28 | 0x04000000 if check else 0)
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    pieces = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snap, field)]
    for frame in frames:
        data, length = _checked(frame, check, snap)
        times = divmod(frame.time, SECOND)
        pieces += [struct.pack(order + "IIII", times[0], times[1] // unit, len(data), length), data]
    return b"".join(pieces)


def pcapng(
    frames: Sequence[Frame],
    links: Sequence[int] = (ETHERNET,),
    *,
    order: str = "<",
    resolution: int = 9,
    offset: int = 0,
    check: int = 0,
    snap: int = 0,
    kind: int = 6,
) -> bytes:
    """resolution: if_tsresol. kind: 6 enhanced, 2 the old, 3 simple packet blocks. One block is unknown."""
    base = 2 if resolution & 0x80 else 10
    ticks = base ** (resolution & 0x7F)

    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        length = struct.pack(order + "I", len(body) + 12)
        return struct.pack(order + "I", kind) + length + body + length

    def option(code: int, value: bytes) -> bytes:
        return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)

    options = option(9, bytes([resolution])) + option(14, struct.pack(order + "q", offset))
    options += (option(13, bytes([8 * check])) if check else b"") + option(0, b"")
    pieces = [block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))]
    pieces += [block(1, struct.pack(order + "HHI", link, 0, snap) + options) for link in links]
    pieces.append(block(0x0BAD0000, b"unknown"))
    for frame in frames:
        data, length = _checked(frame, check, snap or 1 << 18)
        stamp = -(-(frame.time - offset * SECOND) * ticks // SECOND)
        times = struct.pack(order + "II", stamp >> 32, stamp & 0xFFFFFFFF)
        sizes = struct.pack(order + "II", len(data), length)
        head = {
            6: struct.pack(order + "I", frame.interface) + times + sizes,
            2: struct.pack(order + "HH", frame.interface, 0) + times + sizes,
            3: struct.pack(order + "I", length),
        }[kind]
        padded = data + bytes(-len(data) % 4)
        pieces.append(block(kind, head + padded + (option(1, b"a comment") if kind == 6 else b"")))
    return b"".join(pieces)


def packed(capture: bytes) -> bytes:
    return gzip.compress(capture, 1, mtime=0)


def _checked(frame: Frame, check: int, snap: int) -> tuple[bytes, int]:
    """The captured bytes with a frame check sequence, and their number on the wire."""
    whole = frame.length is None or frame.length == len(frame.data)
    data = frame.data + (b"\xcc" * check if whole else b"")
    length = (len(frame.data) if frame.length is None else frame.length) + check
    return data[:snap], length
