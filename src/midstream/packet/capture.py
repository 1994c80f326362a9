"""Frames from a capture: pcap and pcapng, also compressed with gzip, or hexadecimal digits.

Formats: draft-ietf-opsawg-pcap-04 and draft-ietf-opsawg-pcapng-02 (https://www.ietf.org/archive/id/). Times
are whole nanoseconds: a floating-point number cannot hold those of today.
"""

import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Protocol, cast

from midstream.errors import ConfigError
from midstream.packet.link import ETHERNET

_SECOND = 1_000_000_000

# The first four bytes tell byte order and unit of the time stamps (microseconds, nanoseconds).
_PCAP = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
_GZIP = b"\x1f\x8b"
_SECTION = b"\x0a\x0d\x0d\x0a"
_SECTION_ORDER = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
_INTERFACE, _OLD_PACKET, _SIMPLE_PACKET, _PACKET = 1, 2, 3, 6  # types of blocks
_RESOLUTION, _FCS_LENGTH, _OFFSET = 9, 13, 14  # options of an interface
_LARGEST = 1 << 26  # bytes of a packet or block: a larger number is damage


@dataclass(frozen=True, slots=True)
class Captured:
    """A frame as it was captured, from its first byte on and without its frame check sequence.

    `length`: of the whole frame on the wire. `time`: nanoseconds since 1970; None where the file tells none.
    `link`: its link type (https://www.tcpdump.org/linktypes.html). `interface`: counted from 0.
    """

    data: bytes
    length: int
    time: int | None = None
    link: int = ETHERNET
    interface: int = 0


class Readable(Protocol):
    """As much of a binary file as is needed of one."""

    def read(self, size: int = -1, /) -> bytes: ...


def read_capture(stream: Readable, name: str) -> Iterator[Captured]:
    """The frames of a pcap or pcapng file, one after the other.

    Raises ConfigError, naming `name`, for anything else; for a damaged file after what is before the damage.
    """
    start = stream.read(4)
    if start in _PCAP:
        yield from _pcap(_Reader(stream, name), *_PCAP[start])
    elif start == _SECTION:
        yield from _pcapng(_Reader(stream, name))
    elif start[:2] == _GZIP:
        try:
            whole = cast(IO[bytes], _Resumed(start, stream))  # all that is asked of it here is to read
            with gzip.GzipFile(fileobj=whole, mode="rb") as unpacked:
                yield from read_capture(unpacked, name)
        except (EOFError, OSError, zlib.error) as error:
            raise ConfigError(f"{name}: its compression (gzip) is damaged or cut short: {error}") from None
    else:
        raise ConfigError(f"{name}: no pcap or pcapng file, which begin with other bytes; expected a capture")


def read_frames(stream: Readable, name: str) -> Iterator[Captured]:
    """The frames of a capture, or of hexadecimal text.

    In text, white space, colons and a leading 0x are ignored, and an empty line separates frames. Raises
    ConfigError as `read_capture` does.
    """
    start = stream.read(4)
    if start in _PCAP or start == _SECTION or start[:2] == _GZIP:
        yield from read_capture(_Resumed(start, stream), name)
    else:
        yield from _hexadecimal(start + stream.read(), name)


class _Resumed:
    """A stream of which the first bytes are read already."""

    def __init__(self, start: bytes, stream: Readable) -> None:
        self._start, self._stream = start, stream

    def read(self, size: int = -1, /) -> bytes:
        if not self._start:
            return self._stream.read(size)
        start, self._start = (self._start, b"") if size < 0 else (self._start[:size], self._start[size:])
        return start + self._stream.read(size - len(start) if size >= 0 else -1)


class _Reader:
    """Reads pieces of a capture, and knows at which of its packets it is."""

    def __init__(self, stream: Readable, name: str) -> None:
        self._stream, self._name = stream, name
        self.packet = 0  # the file's own header

    def take(self, size: int) -> bytes:
        """So many bytes; none at all at the end of the file. Raises ConfigError."""
        if size > _LARGEST:
            raise self.damaged(f"a length of {size} bytes")
        data = self._stream.read(size)
        if 0 < len(data) < size:
            raise self.cut()
        return data

    def need(self, size: int) -> bytes:
        """So many bytes, which have to be there. Raises ConfigError."""
        data = self.take(size)
        if len(data) < size:
            raise self.cut()
        return data

    def cut(self) -> ConfigError:
        if not self.packet:
            return ConfigError(
                f"{self._name}: the file ends within its header; expected a capture (pcap, pcapng)"
            )
        return ConfigError(
            f"{self._name}: the file ends within packet {self.packet}; was its capture interrupted? "
            f"What is whole is kept by: tcpdump -r {self._name} -w NEW"
        )

    def damaged(self, what: str) -> ConfigError:
        return ConfigError(
            f"{self._name}: damaged at packet {self.packet}: {what}; capture anew, "
            "or keep what is before that packet with: editcap -r FILE NEW 1-NUMBER"
        )


def _pcap(reader: _Reader, order: str, unit: int) -> Iterator[Captured]:
    (kind,) = struct.unpack_from(order + "I", reader.need(20), 16)
    # The upper bits may hold the length of a frame check sequence, in units of two bytes.
    link, check = kind & 0xFFFF, (kind >> 28) * 2 if kind & 0x04000000 else 0
    record = struct.Struct(order + "IIII")
    reader.packet = 1
    while head := reader.take(16):
        seconds, fraction, captured, length = record.unpack(head)
        data = reader.need(captured)
        yield _without_check(data, length, check, seconds * _SECOND + fraction * unit, link, 0)
        reader.packet += 1


def _without_check(data: bytes, length: int, check: int, time: int | None, link: int, at: int) -> Captured:
    """The frame without the `check` bytes at its end on the wire."""
    length = max(length - check, len(data) - check, 0)
    return Captured(data[:length], length, time, link, at)


@dataclass(frozen=True, slots=True)
class _Interface:
    number: int
    link: int
    most: int  # bytes captured of a frame; 0: all
    check: int  # bytes of its frame check sequence
    ticks: int  # a second
    offset: int  # seconds

    def time(self, high: int, low: int) -> int:
        return (high << 32 | low) * _SECOND // self.ticks + self.offset * _SECOND


def _pcapng(reader: _Reader) -> Iterator[Captured]:
    """A section has its own byte order and interfaces. Blocks of other kinds are passed over."""
    order, interfaces, seen = "<", list[_Interface](), 0
    kind = _SECTION
    while kind:
        size = reader.need(4)
        if kind == _SECTION:
            magic = reader.need(4)
            if magic not in _SECTION_ORDER:
                raise reader.damaged("a section without its byte order")
            order, interfaces = _SECTION_ORDER[magic], []
            reader.packet = reader.packet or 1
        (length,) = struct.unpack(order + "I", size)
        before = 12 if kind == _SECTION else 8
        if length % 4 or length < before + 4:
            raise reader.damaged(f"a block of {length} bytes")
        body = reader.need(length - before)
        if body[-4:] != size:
            raise reader.damaged("a block whose two lengths differ")
        try:
            (number,) = struct.unpack(order + "I", kind)
            if number == _INTERFACE:
                interfaces.append(_interface(body[:-4], order, seen))
                seen += 1
            elif number in (_PACKET, _OLD_PACKET, _SIMPLE_PACKET):
                yield _packet(number, body[:-4], order, interfaces)
                reader.packet += 1
        except IndexError:
            raise reader.damaged("a packet of an interface that was not described") from None
        except struct.error:
            raise reader.damaged("a block that is too short for its kind") from None
        kind = reader.take(4)


def _interface(body: bytes, order: str, number: int) -> _Interface:
    link, most = struct.unpack_from(order + "HxxI", body)
    resolution, check, offset, place = 6, 0, 0, 8
    while place + 4 <= len(body):
        code, size = struct.unpack_from(order + "HH", body, place)
        value = body[place + 4 : place + 4 + size]
        if code == _RESOLUTION:
            (resolution,) = struct.unpack("B", value)
        elif code == _FCS_LENGTH:
            check = struct.unpack("B", value)[0] // 8  # said in bits
        elif code == _OFFSET:
            (offset,) = struct.unpack(order + "q", value)
        elif code == 0:
            break
        place += 4 + (size + 3) // 4 * 4
    base = 2 if resolution & 0x80 else 10
    return _Interface(number, link, most, check, base ** (resolution & 0x7F), offset)


def _packet(kind: int, body: bytes, order: str, interfaces: list[_Interface]) -> Captured:
    if kind == _SIMPLE_PACKET:  # of the first interface, without a time
        (length,) = struct.unpack_from(order + "I", body)
        where, time, start = interfaces[0], None, 4
        size = min(length, where.most or length)
    else:
        layout = "HxxIIII" if kind == _OLD_PACKET else "IIIII"
        number, high, low, size, length = struct.unpack_from(order + layout, body)
        where, start = interfaces[number], 20
        time = where.time(high, low)
    if start + size > len(body):
        raise struct.error
    return _without_check(body[start : start + size], length, where.check, time, where.link, where.number)


def _hexadecimal(data: bytes, name: str) -> Iterator[Captured]:
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: neither a capture (pcap, pcapng) nor hexadecimal digits") from None
    blocks = [block for block in re.split(r"\n\s*\n", text) if block.strip()]
    if not blocks:
        raise ConfigError(f"{name}: empty, expected a capture (pcap, pcapng) or hexadecimal digits")
    for block in blocks:
        frame = _from_hex(block, name)
        yield Captured(frame, len(frame))


def _from_hex(text: str, name: str) -> bytes:
    digits = re.sub(r"\s|:", "", text).removeprefix("0x")
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise ConfigError(
            f"{name}: not a file, and not hexadecimal digits in pairs: {text.strip()[:40]!r}"
        ) from None
