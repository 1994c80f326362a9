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
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from midstream.descriptors import raise_limit
from midstream.errors import FramingError, NetworkError
from midstream.framing import Decoder, decoder
from midstream.hardworker.cadence import Cadence
from midstream.hardworker.messages import Format, Message, Totals, batch_dtype
from midstream.hardworker.source import DECLINED, Beginning, Cycle, Standing
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
    decoder: Decoder
    sequence: int = 0  # of the next message
    broken: bool = False  # the sensor has reset it
    ended: bool = False  # for the application


class SocketHandler:
    """Listens on the hardworker's address and relays each connection to the logger.

    Raises NetworkError if it cannot listen. Where the logger cannot be reached, or no descriptor is left,
    the sensor's connection is reset, so that it tries again. A stranger's connection is reset at once.
    numbers: of the connections; by default from 1 on.
    """

    def __init__(self, topology: Topology, numbers: Iterator[int] | None = None) -> None:
        self._numbers = count(1) if numbers is None else numbers
        self._sensors = {str(host.ip): number for number, host in enumerate(topology.sensors)}
        self._logger = (str(topology.logger.ip), topology.port)
        self._tos = topology.tos
        self._relays: dict[int, _Relay] = {}  # by the descriptors of both sockets
        self._messages: deque[tuple[_Relay, int, int, bytes]] = deque()  # with sequence and time
        self._form: Format
        self._totals = Totals()
        self._heard = np.zeros(len(self._sensors), "<u8")
        self._taken = 0  # bytes since the last look
        raise_limit()
        self._listener = _listen(topology)
        self._spare = socket.socket()  # for its descriptor
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)

    def look(self) -> bool:
        """Up to _BATCH bytes may be read until the next look. What waits in the sockets, `fileno` tells."""
        self._taken = 0
        return bool(self._messages)

    def begin(self, form: Format, cadence: Cadence, attention: int) -> None:
        """Say what messages are; a reader of sockets waits by itself."""
        del cadence, attention
        self._form = form

    def prepare(self, view: View | None) -> Cycle:
        """A socket is read step by step."""
        del view
        return DECLINED

    def rows(self) -> np.ndarray:
        """Whatever has arrived, copied."""
        while self._read():
            pass
        messages, size = self._messages, self._form.size
        rows = np.zeros(len(messages), batch_dtype(size))
        if len(rows):
            relays, sequences, times, payloads = zip(*messages, strict=True)
            messages.clear()
            rows["sensor"] = [relay.sensor for relay in relays]
            rows["port"] = [relay.port for relay in relays]
            rows["connection"] = [relay.number for relay in relays]
            rows["length"] = size
            rows["offset"] = np.array(sequences, "<u8") * size
            rows["time"] = times
            rows["payload"] = np.frombuffer(b"".join(payloads), np.uint8).reshape(-1, size)
            self._count(len(rows), rows["payload"].nbytes)
        return rows

    def message(self) -> Message | None:
        """The next message, after one look at all sockets if none is at hand."""
        while not self._messages:
            if not self._read():
                return None
        relay, sequence, moment, payload = self._messages.popleft()
        self._count(1, len(payload))
        form = self._form
        return Message(form.addresses[relay.sensor], relay.number, sequence, moment, payload, form.stream)

    def _count(self, messages: int, size: int) -> None:
        self._totals.messages += messages
        self._totals.bytes += size

    def _read(self) -> bool:
        """Look at all sockets; False if nothing was there, or if the next look is to come first."""
        if self._taken >= _BATCH:
            return False
        accepting, before = False, self._taken
        for fd, events in self._poll.poll(0):
            if fd == self._listener.fileno():
                accepting = True
            elif relay := self._relays.get(fd):
                self._serve(relay, fd, events)
        if accepting:  # last: a new socket may get a descriptor whose old one has events here
            self._accept()
        return self._taken > before

    def beginnings(self) -> list[Beginning]:
        """None: the logger knows this host's relays, not the sensors' connections."""
        return []

    def commit(self) -> bool:
        """Nothing to give back: what was read is the application's own."""
        return True

    def fileno(self) -> int:
        """The epoll set's descriptor."""
        return self._poll.fileno()

    @property
    def standing(self) -> Standing:
        """Nothing is given again, and the kernel does not tell when it received. Full is what waits for the
        logger, of what may, on the fullest connection. Its sockets are its own: nothing is ever due."""
        fullest = max((len(relay.outer.waiting) for relay in self._relays.values()), default=0)
        totals = self._totals
        return Standing(
            False,
            0,
            min(1.0, fullest / _WAITING),
            -1,
            totals.opened - totals.finished - totals.reset,
            replace(totals),
            self._heard.copy,
        )

    def close(self) -> None:
        """End all connections; a sensor that is not done sees a reset."""
        for relay in set(self._relays.values()):
            self._close(relay, reset=True)
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
        relay = self._open(self._sensors[ip], port, inner, outer)
        for end in (inner, outer):
            self._relays[end.fileno()] = relay
            self._poll.register(end, 0)
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
                if inward and data:
                    self._take(relay, data)
                elif inward:
                    self._close(relay, reset=False)
                self._send(other)
        except BlockingIOError:
            pass
        except OSError:
            self._close(relay, reset=True)  # unless the application has the whole stream
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

    def _open(self, sensor: int, port: int, inner: socket.socket, outer: socket.socket) -> _Relay:
        self._totals.opened += 1
        form, ends = self._form, (_End(inner, connected=True), _End(outer, connected=False))
        frames = decoder(form.framing, size=form.size, max_size=form.size)
        return _Relay(next(self._numbers), sensor, port, *ends, frames)

    def _take(self, relay: _Relay, data: bytes) -> None:
        """Bytes of a sensor: to messages."""
        self._taken += len(data)
        frames = relay.decoder
        if frames.error:
            self._totals.skipped += len(data)
            return
        now = self._heard[relay.sensor] = time.monotonic_ns()
        with suppress(FramingError):
            for payload in frames.feed(data):
                self._messages.append((relay, relay.sequence, now, payload))
                relay.sequence += 1
        if frames.error:
            self._totals.broken += 1

    def _close(self, relay: _Relay, *, reset: bool) -> None:
        """For the application the connection is over."""
        if relay.ended:
            return
        relay.ended = True
        self._totals.skipped += relay.decoder.pending
        self._totals.reset += reset
        self._totals.finished += not reset

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
