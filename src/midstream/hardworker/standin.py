"""The application in the logger's place: it takes the sensors' connections itself while there is no logger.

No relay, for there is nobody to relay to: this host's own TCP acknowledges what the application has read or
will read, and nothing is stored elsewhere. When the logger is back, each sensor is shown the end of the
stream from our side: one that looks for it ends its connection in order and opens another, which goes the
fast way.
"""

import select
import socket
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from midstream.ebpf.records import FIN, OPEN, RESET
from midstream.hardworker.handler import listen, reset
from midstream.hardworker.source import Segment
from midstream.network import Topology

FIRST = 1 << 31
"""Connections of the ring have numbers below this one, those taken here from it on."""

_CHUNK = 1 << 18  # bytes read at a time
_BATCH = 1 << 22  # bytes handed over until the application comes back


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    number: int
    sensor: int
    port: int
    offset: int = 0


class StandIn:
    """Listens on the hardworker's address. Raises NetworkError if it cannot.

    Connections are numbered from the milliseconds since the machine was started, so that an application that
    is killed and started anew does not use a number again.
    """

    def __init__(self, topology: Topology) -> None:
        self._sensors = {str(host.ip): number for number, host in enumerate(topology.sensors)}
        self._connections: dict[int, _Connection] = {}  # by descriptor
        self._segments: deque[Segment] = deque()
        self._number = FIRST + time.monotonic_ns() // 10**6 % FIRST
        self._taken = 0  # bytes since the last look
        self._listener: socket.socket | None = listen(topology)
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)

    @property
    def is_done(self) -> bool:
        """Has it handed back, and did every connection end?"""
        return not (self._listener or self._connections or self._segments)

    def look(self) -> None:
        """Up to _BATCH bytes may be read until the next look."""
        self._taken = 0

    def next(self) -> Segment | None:
        """The next segment, after one look at all sockets if none is at hand."""
        if not self._segments and self._taken < _BATCH:
            accepting = False
            for fd, _ in self._poll.poll(0):
                if self._listener and fd == self._listener.fileno():
                    accepting = True
                elif connection := self._connections.get(fd):
                    self._receive(connection)
            if accepting:  # last: a new socket may get a descriptor whose old one has events here
                self._accept()
        return self._segments.popleft() if self._segments else None

    def fileno(self) -> int:
        return self._poll.fileno()

    def hand_back(self) -> None:
        """Take no more connections, and show the sensors the end of ours."""
        if self._listener:
            self._poll.unregister(self._listener)
            self._listener.close()
            self._listener = None
            for connection in self._connections.values():
                with suppress(OSError):  # it has just ended
                    connection.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End all connections; a sensor that is not done sees a reset."""
        for connection in self._connections.values():
            reset(connection.socket)
        self._connections.clear()
        if self._listener:
            self._listener.close()
        self._poll.close()

    def _accept(self) -> None:
        if not self._listener:
            return
        try:
            accepted, (ip, port) = self._listener.accept()
        except OSError:  # it was gone again before we came
            return
        if ip not in self._sensors:
            reset(accepted)
            return
        accepted.setblocking(False)
        connection = _Connection(accepted, self._number, self._sensors[ip], port)
        self._number = FIRST + (self._number + 1) % FIRST
        self._connections[accepted.fileno()] = connection
        self._poll.register(accepted, select.EPOLLIN)
        self._tell(connection, OPEN)

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._end(connection, RESET)
            return
        if data:
            self._tell(connection, 0, data)
        else:
            self._end(connection, FIN)

    def _end(self, connection: _Connection, flag: int) -> None:
        self._tell(connection, flag)
        del self._connections[connection.socket.fileno()]
        self._poll.unregister(connection.socket)
        connection.socket.close()

    def _tell(self, connection: _Connection, flags: int, data: bytes = b"") -> None:
        self._segments.append(
            Segment(
                connection.number,
                connection.sensor,
                connection.port,
                connection.offset,
                time.monotonic_ns(),
                flags,
                data,
            )
        )
        connection.offset += len(data)
        self._taken += len(data)
