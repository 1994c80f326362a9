"""What a sensor sends: numbered messages with their time, or those of a file."""

import struct
import time
from collections.abc import Iterator
from random import Random
from typing import BinaryIO

from midstream.errors import ConfigError, FramingError
from midstream.framing import Framing, decoder

_CHUNK = 65536  # bytes read at a time
_PIECE = 1 << 14  # bytes, a multiple of the four that a step of the generator gives
_HEADER = struct.Struct("<QQ")  # sequence and time at the start of a numbered message


def numbered_messages(size: int, count: int | None, seed: int = 0) -> Iterator[bytes]:
    """`count` messages (None: no end) of `size` bytes: number from 0, time (both u64 little-endian), filler.

    The time is time.time_ns() when the message is taken, right before it is sent; a seed repeats the filler.
    ConfigError if `size` has no room for number and time.
    """
    if size < _HEADER.size:
        raise ConfigError(
            f"[data] size = {size}: a numbered message needs {_HEADER.size} for its number and time"
        )
    return _numbered(size, count, Random(seed))


def numbered_lines(count: int | None) -> Iterator[bytes]:
    """`count` texts (None: no end): number from 0, a space, and time.time_ns() when the message is taken."""
    sequence = 0
    while count is None or sequence < count:
        yield f"{sequence} {time.time_ns()}".encode()
        sequence += 1


def file_messages(stream: BinaryIO, kind: Framing, size: int, *, max_size: int = 1 << 20) -> Iterator[bytes]:
    """The messages in a file: pieces of `size` bytes (the last may be shorter), lines or length frames.

    FramingError for a line or frame longer than `max_size` bytes, or a last frame that is not whole.
    """
    messages = decoder(kind, size=size, max_size=max_size)
    read = getattr(stream, "read1", stream.read)  # read1: what a pipe already holds, without waiting for more
    while data := read(_CHUNK):
        yield from messages.feed(data)
    if messages.error is not None:
        raise messages.error
    if not messages.pending:
        return
    if kind == "length":
        raise FramingError(
            f"the input ends {messages.pending} bytes into a length frame: is it complete and length-framed?"
        )
    yield messages.unfinished


def _numbered(size: int, count: int | None, random: Random) -> Iterator[bytes]:
    sequence = 0
    while count is None or sequence < count:
        yield _HEADER.pack(sequence, time.time_ns()) + _filler(size - _HEADER.size, random)
        sequence += 1


def _filler(size: int, random: Random) -> bytes:
    """As `random.randbytes` gives it. In pieces: another stream's thread may have its turn meanwhile."""
    if size <= _PIECE:
        return random.randbytes(size)
    return b"".join(random.randbytes(min(_PIECE, size - start)) for start in range(0, size, _PIECE))
