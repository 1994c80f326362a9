"""What a message of the load looks like: message.h for NumPy.

u64 sequence, u64 time (CLOCK_REALTIME, nanoseconds), then filler: a function of connection, sequence and
place, so that whoever receives a message can verify every byte of it but the time. All little-endian. A line
is an NMEA sentence that holds such a message in hexadecimal digits.
"""

import functools
import operator

import numpy as np

from midstream.framing import Framing

HEADER = 16  # bytes: sequence and time
LARGEST = 1 << 20
CONNECTIONS = 1 << 16
_SENTENCE = b"$PMID,"
_AROUND = (
    len(_SENTENCE) + 3
)  # characters of a line beside the digits: behind them are * and two of a checksum
LEAST_LINE = _AROUND + 2 * HEADER


def sizes(framing: Framing) -> range:
    """The sizes that a message of this framing may have: bytes without those of the frame."""
    return range(LEAST_LINE, LARGEST + 1, 2) if framing == "line" else range(HEADER, LARGEST + 1)


def payload(framing: Framing, connection: int, sequence: int, time_ns: int, size: int) -> bytes:
    """One message of the load as this framing carries it."""
    if framing != "line":
        return message(connection, sequence, time_ns, size)
    content = message(connection, sequence, time_ns, (size - _AROUND) // 2)
    between = _SENTENCE[1:] + content.hex().upper().encode()
    return b"$%b*%02X" % (between, _checksum(between))


def carried(framing: Framing, payload: bytes) -> bytes:
    """The message in a payload; empty if there is none."""
    if framing != "line":
        return payload if len(payload) >= HEADER else b""
    between, _, checksum = payload[1:].partition(b"*")
    if len(payload) not in sizes("line") or payload[: len(_SENTENCE)] != _SENTENCE:
        return b""
    try:
        content = bytes.fromhex(between[len(_SENTENCE) - 1 :].decode("ascii"))
    except ValueError:
        return b""
    return content if checksum == b"%02X" % _checksum(between) else b""


def filler(connection: int, sequences: np.ndarray, size: int) -> np.ndarray:
    """The bytes after the header of these messages of `size` bytes: an array of (messages, size - HEADER)."""
    words = -(-(size - HEADER) // 8)
    first = np.uint64(connection << 48) + (sequences.astype(np.uint64) << np.uint64(17))
    mixed = _mix(first[:, None] + np.arange(words, dtype=np.uint64))
    return mixed.astype("<u8").view(np.uint8)[:, : size - HEADER]


def message(connection: int, sequence: int, time_ns: int, size: int) -> bytes:
    """One message."""
    header = np.array([sequence, time_ns], "<u8").tobytes()
    return header + filler(connection, np.array([sequence]), size).tobytes()


def find_connection(payload: bytes, most: int = CONNECTIONS) -> int:
    """The connection to which a message belongs, -1 if it is none of the load's."""
    size = min(len(payload), HEADER + 8)
    sequence = int(np.frombuffer(payload, "<u8", 1)[0])
    first = (np.arange(most, dtype=np.uint64) << np.uint64(48)) + np.uint64(sequence << 17)
    words = _mix(first).astype("<u8").view(np.uint8).reshape(most, 8)[:, : size - HEADER]
    found = np.flatnonzero((words == np.frombuffer(payload[HEADER:size], np.uint8)).all(axis=1))
    return int(found[0]) if len(found) else -1


def _checksum(between: bytes) -> int:
    """Of an NMEA sentence: of what is between $ and *."""
    return functools.reduce(operator.xor, between, 0)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
