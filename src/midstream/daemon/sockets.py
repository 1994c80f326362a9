"""What the logger has committed of each connection, told by its kernel, whatever the logger's processes do.

The logger leaves bytes in the receive queues of its sockets until they are stored (logger/peer.py), also
those of a message that is stored in parts. So all that has left a queue is committed. It is sock_diag(7) that
tells.

The kernel counts what has arrived and what is in the queue one after the other. So each socket is looked at
twice: what had arrived at first, less what is in the queue afterwards, is committed at least.
"""

import errno
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple, Self

MOST = 44  # connections in a word: it has to fit into one packet
FIND = 0.5  # seconds from one search for new ones to the next: the kernel's table has many empty places

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_REQUEST, _DUMP = 0x1, 0x300  # NLM_F_REQUEST, NLM_F_DUMP
_ERROR, _DONE = 2, 3
_GONE = errno.ENOENT, errno.ESTALE  # no such socket, or another one of that name
_INFO = 2  # INET_DIAG_INFO: its attribute, and one more than its bit
_BYTECODE = 1  # INET_DIAG_REQ_BYTECODE
_GREATER, _LESS = 2, 3  # INET_DIAG_BC_S_GE, INET_DIAG_BC_S_LE: of the own port
_ESTABLISHED, _CLOSE_WAIT, LISTEN = 1, 8, 10  # tcp_states.h
_STATES = _ESTABLISHED, _CLOSE_WAIT, LISTEN
_HEADER = struct.Struct("=IHHII")
_ASKED = struct.Struct("=BBBxI48s")  # struct inet_diag_req_v2
_OPERATION = struct.Struct("=BBH")
_FOUND = struct.Struct("=xBxx48s4xII8x")  # struct inet_diag_msg
_NAME = struct.Struct("!HH16x4s12x4x4s4x")  # struct inet_diag_sockid: ports, peer, half of the cookie
_ATTRIBUTE = struct.Struct("=HH")
_BYTES_RECEIVED = struct.Struct("=128xQ")  # in struct tcp_info; a FIN counts one, here and in the queue
_SOCKET = struct.Struct("!4sHIQ")  # in a word
_PORT = struct.Struct("!H")
_ASK_AT_ONCE = 64


class Socket(NamedTuple):
    """A connection. port: its sensor's. key: no other one that is there has it. committed: bytes of its
    stream. marked: the logger's port, which tells the stream; 0: a logger's daemon that knows one only."""

    ip: IPv4Address
    port: int
    key: int
    committed: int
    marked: int = 0


@dataclass(frozen=True, slots=True)
class LoggerWord:
    """What is told at a time. run: of the logger, another one after its end; "": none listens. count: so many
    connections are there; of more than MOST some are in each word, in turn."""

    run: str = ""
    count: int = 0
    sockets: tuple[Socket, ...] = ()

    def packed(self) -> bytes:
        return b"".join(
            _SOCKET.pack(each.ip.packed, each.port, each.key, each.committed) for each in self.sockets
        )

    @property
    def marked(self) -> bytes:
        """The connections' ports of the logger, packed likewise."""
        return b"".join(_PORT.pack(each.marked) for each in self.sockets)

    @classmethod
    def unpack(cls, run: str, count: int, data: bytes, marked: bytes = b"") -> Self:
        """Raises ValueError."""
        number, rest = divmod(len(data), _SOCKET.size)
        marked = marked or bytes(number * _PORT.size)
        if rest or len(marked) != number * _PORT.size:
            raise ValueError("no whole number of connections")
        ports = (port for (port,) in _PORT.iter_unpack(marked))
        each = zip(_SOCKET.iter_unpack(data), ports, strict=True)
        found = (
            Socket(IPv4Address(ip), peer, key, committed, port) for (ip, peer, key, committed), port in each
        )
        return cls(run, count, tuple(found))


NOTHING = LoggerWord()


class Seen(NamedTuple):
    """A socket, as the kernel describes it. name: by which it is found again. queued: bytes of its queue.
    received: bytes that have ever arrived. room: of one that listens, how many may wait behind the first."""

    state: int
    name: bytes
    queued: int
    received: int
    room: int


class SocketDiag:
    """What sock_diag(7) says. Everything raises OSError."""

    def find(self, ports: Collection[int]) -> list[Seen]:
        """The sockets of these TCP ports that listen, or hold a stream."""
        code = _condition(_GREATER, min(ports), 20) + _condition(_LESS, max(ports), 12)
        asked = _asked(bytes(48)) + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(code), _BYTECODE) + code
        with _link() as link:
            link.send(_message(asked, _REQUEST | _DUMP))
            found: list[Seen] = []
            while (some := _answers(link))[-1] is not None:
                found += filter(None, some)
            found += filter(None, some)
        return [each for each in found if _port(each.name) in ports]

    def look(self, names: Collection[bytes]) -> list[Seen]:
        """Of these the ones that are still there."""
        found: list[Seen] = []
        with _link() as link:
            for start in range(0, len(names), _ASK_AT_ONCE):
                some = list(names)[start : start + _ASK_AT_ONCE]
                link.send(b"".join(_message(_asked(name), _REQUEST) for name in some))
                answered = 0
                while answered < len(some):
                    answers = _answers(link)
                    answered += len(answers)
                    found += filter(None, answers)
        return [each for each in found if each.state in _STATES]


class Sockets:
    """Those of some ports, of which a logger always has the first. deaf: for so many seconds those that
    listen have let nobody in."""

    def __init__(
        self,
        ports: Collection[int],
        kernel: SocketDiag | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ports, self._first = ports, next(iter(ports))
        self._kernel, self._clock = kernel or SocketDiag(), clock
        self._known: dict[bytes, Seen] = {}
        self._found, self._next = float("-inf"), 0
        self._heard, self.deaf = clock(), 0.0

    def look(self) -> LoggerWord:
        """Nothing, where the kernel does not answer."""
        try:
            now = self._clock()
            if now - self._found >= FIND:
                self._known, self._found = _by_name(self._kernel.find(self._ports)), now
            else:
                self._known = _by_name(self._kernel.look(self._known))
            later = self._kernel.look(self._known)
        except OSError:
            self.deaf = 0.0
            return NOTHING
        listening = [each for each in later if each.state == LISTEN]
        if not listening or any(each.room for each in listening):
            self._heard = now
        self.deaf = now - self._heard
        # By one door: they open, and close, one after the other, and the kernel's keys are in no order.
        if not (runs := [_key(each.name) for each in listening if _port(each.name) == self._first]):
            return NOTHING
        found = sorted(self._committed(each) for each in later if each.state != LISTEN)
        begin = self._next if self._next < len(found) else 0
        self._next = begin + MOST
        return LoggerWord(f"{_boot()}.{min(runs):x}", len(found), tuple(found[begin : self._next]))

    def _committed(self, later: Seen) -> Socket:
        marked, port, ip, _ = _NAME.unpack(later.name)
        committed = self._known[later.name].received - later.queued
        return Socket(IPv4Address(ip), port, _key(later.name), max(0, committed), marked)


def _port(name: bytes) -> int:
    """The own one."""
    own: int = _NAME.unpack(name)[0]
    return own


def _key(name: bytes) -> int:
    """The kernel counts sockets."""
    return int.from_bytes(_NAME.unpack(name)[-1], sys.byteorder)


def _by_name(sockets: Collection[Seen]) -> dict[bytes, Seen]:
    return {each.name: each for each in sockets}


def _link() -> socket.socket:
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    link.settimeout(1.0)
    return link


def _message(content: bytes, flags: int) -> bytes:
    return _HEADER.pack(_HEADER.size + len(content), _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + content


def _asked(name: bytes) -> bytes:
    states = sum(1 << state for state in _STATES)
    return _ASKED.pack(socket.AF_INET, socket.IPPROTO_TCP, 1 << (_INFO - 1), states, name)


def _condition(operation: int, port: int, otherwise: int) -> bytes:
    """One for the kernel to choose by. otherwise: how far it jumps where that does not hold, behind all."""
    return _OPERATION.pack(operation, 8, otherwise) + _OPERATION.pack(0, 0, port)


def _answers(link: socket.socket) -> list[Seen | None]:
    """Some more; None: a socket that is gone, or that all were found."""
    data, at, found = link.recv(1 << 16), 0, list[Seen | None]()
    while at < len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        found.append(None if kind in (_DONE, _ERROR) else _described(data[at + _HEADER.size : at + length]))
        if kind == _ERROR:
            number = -int.from_bytes(data[at + _HEADER.size :][:4], "little", signed=True)
            if number not in _GONE:
                raise OSError(number, os.strerror(number))
        at += (length + 3) & ~3
    return found


def _described(message: bytes) -> Seen:
    state, name, queued, room = _FOUND.unpack_from(message)
    received, at = 0, _FOUND.size
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == _INFO:
            (received,) = _BYTES_RECEIVED.unpack_from(message, at + _ATTRIBUTE.size)
        at += max((length + 3) & ~3, _ATTRIBUTE.size)
    return Seen(state, name, queued, received, room)


@cache
def _boot() -> str:
    """The kernel numbers sockets anew when it starts."""
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
