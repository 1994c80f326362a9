"""Some messages of one connection, as bytes on a line: the numbers of each, then the payloads end to end.

The head of the line's message says how many they are: {"messages": COUNT}.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

from midstream.errors import NetworkError

_NUMBERS = struct.Struct("<qqqqI")  # sequence, offset, received_ns, crc and bytes of payload; -1: not known


class Row(NamedTuple):
    """A message as a logger has stored it. offset: of its frame in the stream. offset and crc are None where
    an old logger did not write them down."""

    sequence: int
    offset: int | None
    received_ns: int
    crc: int | None
    payload: bytes


def pack(rows: Iterable[Row]) -> list[bytes]:
    """The parts of a page."""
    numbers, payloads = [], []
    for sequence, offset, received, crc, payload in rows:
        known = (-1 if offset is None else offset, received, -1 if crc is None else crc)
        numbers.append(_NUMBERS.pack(sequence, *known, len(payload)))
        payloads.append(payload)
    return numbers + payloads


def unpack(count: int, data: memoryview) -> list[Row]:
    """The messages of a page. NetworkError if it does not have so many."""
    begin = count * _NUMBERS.size
    if not 0 <= begin <= len(data):
        raise NetworkError("a page has fewer messages than it says")
    rows = []
    for sequence, offset, received, crc, size in _NUMBERS.iter_unpack(data[:begin]):
        payload = bytes(data[begin : begin + size])
        begin += size
        rows.append(
            Row(sequence, None if offset < 0 else offset, received, None if crc < 0 else crc, payload)
        )
    if begin != len(data):
        raise NetworkError("a page has other bytes than its messages")
    return rows
