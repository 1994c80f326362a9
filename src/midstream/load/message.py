"""What a message of the load looks like: message.h for NumPy.

u64 sequence, u64 time (CLOCK_REALTIME, nanoseconds), then filler: a function of connection, sequence and
place, so that whoever receives a message can verify every byte of it but the time. All little-endian.
"""

import numpy as np

HEADER = 16  # bytes: sequence and time
LARGEST = 1 << 20
CONNECTIONS = 1 << 16


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


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
