"""A connection, as the holder has it."""

import array
import fcntl
import socket
import termios
from dataclasses import dataclass

from midstream.logger.channel import Message

_DISCARD = bytearray(1 << 20)  # MSG_TRUNC writes nothing into it (tcp(7)), but must be told of a buffer
_TOLD = (
    *("number", "token", "sensor", "port", "stream", "opened_ns", "first"),
    *("handed", "consumed", "sequence", "head"),
)


@dataclass(slots=True, eq=False)
class Held:
    """consumed, sequence, head: how far it left the kernel, which message is next, and how many bytes of that
    one left already. handed: a worker has had it. shown_end: our side of its stream has ended."""

    number: int
    token: str
    sensor: str
    port: int
    stream: str
    opened_ns: int
    first: int | None  # see ConnectionRow
    socket: socket.socket
    handed: bool = False
    shown_end: bool = False
    consumed: int = 0
    sequence: int = 0
    head: int = 0

    def consume(self, offset: int, sequence: int, head: int) -> None:
        """Take the bytes in front of `offset` out of the kernel."""
        discard(self.socket, offset - self.consumed)
        self.consumed, self.sequence, self.head = offset, sequence, head

    def described(self) -> Message:
        """What a worker must know of it."""
        return {name: getattr(self, name) for name in _TOLD}


def discard(sock: socket.socket, size: int) -> None:
    """Take so many bytes out of the kernel, which are there."""
    while size > 0:
        size -= sock.recv_into(_DISCARD, min(size, len(_DISCARD)), socket.MSG_TRUNC)


def unread(sock: socket.socket) -> int:
    """Bytes that wait in the kernel."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]
