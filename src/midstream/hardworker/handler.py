"""The user-mode handler: the hardworker's job done with ordinary sockets.

It accepts the sensors' connections, hands their bytes to the application and relays them to the logger:
what a host does where eBPF cannot run, and what every benchmark compares midstream with. The kernel of this
host, and not the logger's, acknowledges the bytes.
"""

import errno
import fcntl
import select
import socket
import struct
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

from midstream.descriptors import raise_limit
from midstream.ebpf.records import FIN, OPEN, RESET
from midstream.errors import NetworkError
from midstream.hardworker.cadence import Cadence
from midstream.hardworker.journal import Snapshot
from midstream.hardworker.source import Beginning, Cycle, Segment, Standing, Status
from midstream.hardworker.streams import Streams
from midstream.hardworker.views import View
from midstream.network import Topology

_CHUNK = 1 << 18  # bytes read at a time
_BACKLOG = 128
_BATCH = 1 << 22  # bytes handed over until the application comes back: a fast sensor must not keep it
_WAITING = 1 << 20  # bytes that wait to be sent on; then nothing more is read, and TCP slows the sender
_SIOCOUTQNSD = 0x894B  # linux/sockios.h: bytes that were not sent yet
_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h, since 3.12
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with time 0 (socket(7))


@dataclass(eq=False)
class _End:
    """One side of a relayed connection."""

    socket: socket.socket
    connected: bool
    waiting: bytearray = field(default_factory=bytearray)  # to be sent on this socket
    done: bool = False  # the peer has sent its last byte
    last: bool = False  # nothing follows what waits
    shut: bool = False  # and the peer has been told so
    polled: bool = True


@dataclass(eq=False)
class _Relay:
    """A sensor's connection and the one to the logger that continues it."""

    number: int
    sensor: int
    port: int
    inner: _End  # towards the sensor
    outer: _End  # towards the logger
    offset: int = 0
    broken: bool = False  # the sensor has reset it


class SocketHandler:
    """Listens on the hardworker's address and relays each connection to the logger.

    Raises NetworkError if it cannot listen. Where the logger cannot be reached, or no descriptor is left,
    the sensor's connection is reset, so that it tries again. A stranger's connection is reset at once.
    """

    def __init__(self, topology: Topology) -> None:
        self._sensors = {str(host.ip): number for number, host in enumerate(topology.sensors)}
        self._logger = (str(topology.logger.ip), topology.port)
        self._tos = topology.tos
        self._relays: dict[int, _Relay] = {}  # by the descriptors of both sockets
        self._segments: deque[Segment] = deque()
        self._opened = 0
        self._taken = 0  # bytes since the last look
        raise_limit()
        self._listener = _listen(topology)
        self._spare = socket.socket()  # for its descriptor
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)

    def look(self) -> None:
        """Up to _BATCH bytes may be read until the next look."""
        self._taken = 0

    def prepare(self, view: View, size: int, cadence: Cadence, attention: int, streams: Streams) -> Cycle:
        """A cycle that does nothing: a socket is read step by step."""
        del view, size, cadence, attention, streams
        return lambda: None

    def last_batch(self) -> None:
        """None: a cycle finds nothing."""

    def next(self, size: int, streams: Streams) -> Segment | None:
        """The next segment, after one look at all sockets if none is at hand: a socket knows no boundaries of
        messages."""
        del size, streams
        if not self._segments and self._taken < _BATCH:
            accepting = False
            for fd, events in self._poll.poll(0):
                if fd == self._listener.fileno():
                    accepting = True
                elif relay := self._relays.get(fd):
                    self._serve(relay, fd, events)
            if accepting:  # last: a new socket may get a descriptor whose old one has events here
                self._accept()
        return self._segments.popleft() if self._segments else None

    def beginnings(self) -> list[Beginning]:
        """None: the logger knows this host's relays, not the sensors' connections."""
        return []

    def restore(self) -> Snapshot | None:
        """None: a socket's bytes are gone with the process that read them."""
        return None

    def commit(self, streams: Streams) -> bool:
        """Nothing to give back: what was read is the application's own."""
        del streams
        return True

    def fileno(self) -> int:
        """The epoll set's descriptor."""
        return self._poll.fileno()

    @property
    def standing(self) -> Standing:
        """Nothing is given again, and the kernel does not tell when it received. Full is what waits for the
        logger, of what may, on the fullest connection. Its sockets are its own: nothing is ever due."""
        fullest = max((len(relay.outer.waiting) for relay in self._relays.values()), default=0)
        return Standing(Status.DECLINED, False, 0, min(1.0, fullest / _WAITING), -1)

    def close(self) -> None:
        """End all connections; a sensor that is not done sees a reset."""
        for relay in set(self._relays.values()):
            self._end(relay)
        self._listener.close()
        self._poll.close()
        self._spare.close()

    def _accept(self) -> None:
        try:
            inner, (ip, port) = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            return  # or it was gone again before we came
        if ip not in self._sensors:
            _reset(inner)
            return
        try:
            outer = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        except OSError:  # no descriptor is left for it
            _reset(inner)
            return
        outer.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, self._tos)
        for end in (inner, outer):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        outer.connect_ex(self._logger)  # a failure shows as an event
        self._opened += 1
        relay = _Relay(self._opened, self._sensors[ip], port, _End(inner, True), _End(outer, False))
        for end in (inner, outer):
            self._relays[end.fileno()] = relay
            self._poll.register(end, 0)
        self._tell(relay, OPEN)
        self._listen_to(relay)

    def _turn_away(self) -> None:
        """No descriptor is left for a connection that waits, and it would wake us for ever: take it with the
        one that was put aside, and reset it. The sensor tries again."""
        self._spare.close()
        with suppress(OSError):
            _reset(self._listener.accept()[0])
        with suppress(OSError):
            self._spare = socket.socket()

    def _serve(self, relay: _Relay, fd: int, events: int) -> None:
        if relay.broken:
            self._send_rest(relay, events)
            return
        inward = fd == relay.inner.socket.fileno()
        end, other = (relay.inner, relay.outer) if inward else (relay.outer, relay.inner)
        try:
            if events & select.EPOLLOUT:
                end.connected = True
                self._send(end)
            if end.done and events & (select.EPOLLHUP | select.EPOLLERR):
                raise ConnectionResetError  # behind the end of its stream, which recv() does not tell
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                data = end.socket.recv(_CHUNK)
                end.done = other.last = not data
                other.waiting += data
                if inward:
                    self._tell(relay, 0 if data else FIN, data)
                self._send(other)
        except BlockingIOError:
            pass
        except OSError:
            if not relay.inner.done:  # else the application has the whole stream, and knows it
                self._tell(relay, RESET)
            if inward:
                self._break_off(relay)
            else:
                self._end(relay)
            return
        if relay.inner.done and relay.outer.done and not relay.inner.waiting and not relay.outer.waiting:
            self._end(relay)
        else:
            self._listen_to(relay)

    def _break_off(self, relay: _Relay) -> None:
        """The sensor has reset the connection. The logger's goes on until what came before has been sent.
        Then it is reset too, or ends, if the stream had."""
        relay.broken = True
        del self._relays[relay.inner.socket.fileno()]
        self._ignore(relay.inner)
        relay.inner.socket.close()
        # Writable when all has been sent.
        relay.outer.socket.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, 1)
        self._poll.modify(relay.outer.socket, select.EPOLLOUT)

    def _send_rest(self, relay: _Relay, events: int) -> None:
        outer = relay.outer
        try:
            self._send(outer)
            unsent = int.from_bytes(fcntl.ioctl(outer.socket, _SIOCOUTQNSD, bytes(4)), "little")
        except OSError:
            unsent = 0
            outer.waiting.clear()
        if events & (select.EPOLLERR | select.EPOLLHUP) or not (unsent or outer.waiting):
            self._end(relay)

    def _send(self, end: _End) -> None:
        """Send what waits, as far as TCP takes it. Raises OSError if the connection is broken."""
        try:
            while end.waiting:
                del end.waiting[: end.socket.send(end.waiting)]
        except BlockingIOError:
            return
        if end.last and end.connected and not end.shut:  # shutting a socket that still connects breaks it off
            end.socket.shutdown(socket.SHUT_WR)
            end.shut = True

    def _listen_to(self, relay: _Relay) -> None:
        """Wait for what each side can do next."""
        for end, other in ((relay.inner, relay.outer), (relay.outer, relay.inner)):
            if end.done and end.shut:  # hung up on both sides, which epoll would report for ever
                self._ignore(end)
                continue
            readable = not end.done and len(other.waiting) < _WAITING
            writable = end.waiting or not end.connected
            events = (select.EPOLLIN if readable else 0) | (select.EPOLLOUT if writable else 0)
            self._poll.modify(end.socket, events)

    def _ignore(self, end: _End) -> None:
        if end.polled:
            self._poll.unregister(end.socket)
            end.polled = False

    def _tell(self, relay: _Relay, flags: int, data: bytes = b"") -> None:
        now = time.monotonic_ns()
        self._segments.append(Segment(relay.number, relay.sensor, relay.port, relay.offset, now, flags, data))
        relay.offset += len(data)
        self._taken += len(data)

    def _end(self, relay: _Relay) -> None:
        ends = (relay.inner, relay.outer)
        unfinished = not all(end.done and not end.waiting for end in ends)
        unfinished = unfinished and not (relay.broken and relay.outer.shut)
        for end in ends:
            if end.socket.fileno() < 0:  # broken off before
                continue
            del self._relays[end.socket.fileno()]
            self._ignore(end)
            if unfinished:
                _reset(end.socket)
            else:
                end.socket.close()


def _listen(topology: Topology) -> socket.socket:
    """A socket that listens where the sensors connect, without blocking. Raises NetworkError."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # inherited: urgent bytes are bytes
    try:
        listener.bind((str(topology.hardworker.ip), topology.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise NetworkError(
            f"{topology.hardworker.ip}:{topology.port}: cannot listen there ({error.strerror}); "
            "is this host the hardworker of const.toml, and is the port free?"
        ) from error
    listener.setblocking(False)
    return listener


def _reset(connection: socket.socket) -> None:
    """Close it by a reset, whatever has not been read or sent."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    connection.close()
