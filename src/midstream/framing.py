"""Bytes to messages: the same code on the hardworker and on the logger.

 fixed    every message has `size` bytes
 length   a 4-byte big-endian length, then the message
 line     the message, then one newline (0x0A), which is not part of it

A decoder takes the stream in pieces of any size, in time linear in the number of bytes.
"""

from abc import ABC, abstractmethod
from typing import Literal

from midstream.errors import FramingError

Framing = Literal["fixed", "length", "line"]
Buffer = bytes | bytearray | memoryview

PREFIX = 4  # bytes of the length in front of a message
NEWLINE = b"\n"


class Decoder(ABC):
    """The messages of one connection.

    The stream so far is always: the messages returned, each in its frame, followed by `unfinished`.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.error: FramingError | None = None

    def feed(self, data: Buffer) -> list[bytes]:
        """Take the next bytes of the stream and return the messages that they complete, in order.

        Where the stream breaks its framing, the messages in front of the fault are still returned and `error`
        is set at once; FramingError is raised by this call if there were none, else by every later one.
        """
        if self.error is not None:
            raise self.error
        self._buffer += data
        messages, self.error = self._take()
        if self.error is not None and not messages:
            raise self.error
        return messages

    @property
    def pending(self) -> int:
        """Bytes of the stream that belong to no whole message yet (a length prefix included)."""
        return len(self._buffer)

    @property
    def unfinished(self) -> bytes:
        """The pending bytes themselves, as they arrived."""
        return bytes(self._buffer)

    def newest(self, count: int) -> bytes:
        """The last so many of the pending bytes; no others are copied."""
        return bytes(self._buffer[len(self._buffer) - count :])

    @abstractmethod
    def _take(self) -> tuple[list[bytes], FramingError | None]:
        """Move the whole messages out of the buffer; with the fault of what follows them, if it has one."""


def decoder(kind: Framing, *, size: int, max_size: int) -> Decoder:
    """A decoder for one connection. `size` is used by fixed framing, `max_size` (bytes) by the other two."""
    if kind == "fixed":
        return _FixedDecoder(size)
    if kind == "length":
        return _LengthDecoder(max_size)
    return _LineDecoder(max_size)


def encode(kind: Framing, payload: bytes, *, size: int, max_size: int) -> bytes:
    """One message in its frame. FramingError if the framing cannot carry this payload."""
    if kind == "fixed":
        if len(payload) != size:
            raise FramingError(
                f"fixed framing carries messages of {size} bytes, this one has {len(payload)}: "
                "pad it, or use length framing ([data] framing in config.toml)"
            )
        return payload
    if len(payload) > max_size:
        raise _too_long(kind, f"{len(payload)} bytes", max_size)
    if kind == "length":
        return len(payload).to_bytes(PREFIX, "big") + payload
    if NEWLINE in payload:
        raise FramingError(
            "line framing cannot carry a message that contains a newline: "
            "use length framing ([data] framing in config.toml)"
        )
    return payload + NEWLINE


class _FixedDecoder(Decoder):
    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise FramingError(
                f"fixed framing needs messages of at least 1 byte, not {size}: set [data] size"
            )
        self._size = size

    def _take(self) -> tuple[list[bytes], FramingError | None]:
        size = self._size
        end = len(self._buffer) - len(self._buffer) % size
        if not end:
            return [], None
        with memoryview(self._buffer) as view:
            messages = [bytes(view[start : start + size]) for start in range(0, end, size)]
        del self._buffer[:end]  # from the front: CPython moves a pointer, not the bytes
        return messages, None


class _LengthDecoder(Decoder):
    def __init__(self, max_size: int) -> None:
        super().__init__()
        self._max_size = max_size

    def _take(self) -> tuple[list[bytes], FramingError | None]:
        messages: list[bytes] = []
        fault = None
        position = 0
        with memoryview(self._buffer) as view:
            while len(view) - position >= PREFIX:
                start = position + PREFIX
                length = int.from_bytes(view[position:start], "big")
                if length > self._max_size:
                    fault = _too_long("length", f"{length} bytes", self._max_size)
                    break
                if start + length > len(view):
                    break
                messages.append(bytes(view[start : start + length]))
                position = start + length
        del self._buffer[:position]
        return messages, fault


class _LineDecoder(Decoder):
    def __init__(self, max_size: int) -> None:
        super().__init__()
        self._max_size = max_size
        self._searched = 0  # bytes of the buffer known to hold no newline: a long line is searched once

    def _take(self) -> tuple[list[bytes], FramingError | None]:
        messages: list[bytes] = []
        fault = None
        start = 0
        with memoryview(self._buffer) as view:
            while (end := self._buffer.find(NEWLINE, max(start, self._searched))) >= 0:
                if end - start > self._max_size:
                    break
                messages.append(bytes(view[start:end]))
                start = end + 1
            longest = (end if end >= 0 else len(view)) - start
        if longest > self._max_size:
            fault = _too_long("line", f"at least {longest} bytes without a newline", self._max_size)
        del self._buffer[:start]
        self._searched = len(self._buffer)
        return messages, fault


def _too_long(kind: Framing, found: str, max_size: int) -> FramingError:
    return FramingError(
        f"{kind} framing: a message of {found}, but the longest allowed is {max_size}: does the sender use "
        "the same framing? If it does, raise [data] max_size in config.toml"
    )
