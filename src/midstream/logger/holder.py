"""The holder: keeps the listening socket and every accepted one, so that the worker may die.

It never looks at a byte. A worker peeks at what the sockets hold and stores it; only when it is committed
the holder takes it out of the kernel, and remembers how far it came. So what a dead worker has not stored is
still there for the next one, and what it has stored is known by its place in the stream. TCP does not notice.
"""

import errno
import logging
import secrets
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from midstream import errors
from midstream.errors import MidstreamError, StoreError
from midstream.logger import channel
from midstream.logger.summary import LoggerSummary

POLL = 0.05  # seconds between two looks at `stop`
READY_TIMEOUT = 60.0  # seconds for a worker to open its database; servers time out earlier
ACCEPT_PAUSE = 1.0  # seconds until another try where the process has no descriptor left
# Seconds before a worker is started again: the first, doubled as long as it commits nothing.
FIRST_DELAY, LAST_DELAY = 0.05, 1.0

_DISCARD = bytearray(1 << 20)  # MSG_TRUNC writes nothing into it (tcp(7)), but must be told of a buffer

log = logging.getLogger("midstream.logger")


class Child(Protocol):
    """A worker that was started; subprocess.Popen is one."""

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Held:
    """A connection. consumed, sequence, head: how far it left the kernel, which message is next, and how many
    bytes of that one left already."""

    number: int
    token: str
    sensor: str
    port: int
    opened_ns: int
    socket: socket.socket
    handed: bool = False
    consumed: int = 0
    sequence: int = 0
    head: int = 0

    def consume(self, offset: int, sequence: int, head: int) -> None:
        """Take the bytes in front of `offset` out of the kernel."""
        while self.consumed < offset:
            size = min(offset - self.consumed, len(_DISCARD))
            self.consumed += self.socket.recv_into(_DISCARD, size, socket.MSG_TRUNC)
        self.sequence, self.head = sequence, head


class Holder:
    """`start_worker` starts one that talks over the socket it is given; `settings` is told to each.

    Counts into `summary`.
    """

    def __init__(
        self,
        listener: socket.socket,
        settings: channel.Message,
        start_worker: Callable[[socket.socket], Child],
        summary: LoggerSummary,
    ) -> None:
        self._listener = listener
        self._settings = settings
        self._start_worker = start_worker
        self._summary = summary
        self._run = secrets.token_hex(8)
        self._held: dict[int, _Held] = {}
        self._numbers = 0
        self._new: deque[_Held] = deque()  # to be handed over
        self._outbox: deque[channel.Message] = deque()
        self._channel: socket.socket | None = None
        self._child: Child | None = None
        self._ready = False
        self._committed = False  # by this worker
        self._delay = FIRST_DELAY
        self._restart_at = 0.0
        self._accept_at = 0.0
        self._waiting = ""
        self._started = False
        self._stopping = False

    def start(self) -> None:
        """Start the first worker, and return when its database is open or waited for. Raises what it fails
        with: StoreError, ConfigError."""
        self._start()
        deadline = time.monotonic() + READY_TIMEOUT
        while not self._ready:
            if self._channel is None:
                raise StoreError(
                    "the logger's worker ended before it had opened the database; see its words above"
                )
            if time.monotonic() > deadline:
                raise StoreError(f"the database did not open within {READY_TIMEOUT:g} s; see that it runs")
            self._turn(POLL)
        self._started = True

    def run(self, stop: Callable[[], bool], deadline: float) -> None:
        """Hold connections until `stop()` or `deadline`; then have everything stored and end them.

        StoreError if it could not be stored then.
        """
        try:
            while time.monotonic() < deadline and not stop():
                self._turn(min(POLL, max(0.0, deadline - time.monotonic())))
        finally:
            self._stop()

    def close(self) -> None:
        """End the worker and all sockets, at once."""
        if self._child is not None:
            self._child.kill()
        self._lose_worker()
        self._listener.close()
        for held in self._held.values():
            held.socket.close()
        self._held.clear()

    def _stop(self) -> None:
        while self._listener.fileno() >= 0 and self._accept():
            pass  # what waits to be accepted has been acknowledged
        self._listener.close()
        self._stopping = True
        self._outbox.append({"stop": True})
        while self._channel is not None or self._held:
            self._turn(POLL)
            if self._waiting and not self._ready:
                raise StoreError(f"{self._waiting}. What was received last was not stored")

    def _turn(self, timeout: float) -> None:
        """One look at everything that may happen, at most for so many seconds."""
        now = time.monotonic()
        if self._channel is None and now >= self._restart_at:
            self._start()
        self._flush()
        poll = select.poll()
        if self._listener.fileno() >= 0 and now >= self._accept_at:
            poll.register(self._listener, select.POLLIN)
        if self._channel is not None:
            events = select.POLLIN | (select.POLLOUT if self._outbox or self._new else 0)
            poll.register(self._channel, events)
        for descriptor, events in poll.poll(timeout * 1000):
            if self._channel is not None and descriptor == self._channel.fileno():
                if events & ~select.POLLOUT:
                    self._hear(self._channel)
            else:
                self._accept()

    def _accept(self) -> bool:
        try:
            accepted, (sensor, port) = self._listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                log.warning("logger: a connection cannot be accepted: %s; tried again", error.strerror)
                self._accept_at = time.monotonic() + ACCEPT_PAUSE
                return False
            return True  # it was gone again before we came
        accepted.setblocking(False)
        self._numbers += 1
        token = f"{self._run}.{self._numbers}"
        held = _Held(self._numbers, token, sensor, port, time.time_ns(), accepted)
        self._held[held.number] = held
        self._new.append(held)
        self._summary.connections += 1
        return True

    def _start(self) -> None:
        ours, theirs = channel.pair()
        ours.setblocking(False)
        with theirs:
            self._child = self._start_worker(theirs)
        self._channel, self._ready, self._committed = ours, False, False
        self._new = deque(self._held.values())
        self._outbox = deque([{"settings": self._settings}])
        if self._stopping:
            self._outbox.append({"stop": True})

    def _flush(self) -> None:
        """Send what the channel takes: connections first, then what else there is to say."""
        if self._channel is None:
            return
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self._outbox or self._new:
                if (self._outbox and "settings" in self._outbox[0]) or not self._new:
                    channel.send(self._channel, self._outbox[0])
                    self._outbox.popleft()
                    continue
                some = [self._new[index] for index in range(min(len(self._new), channel.MAX_SOCKETS))]
                fields = (
                    "number",
                    "token",
                    "sensor",
                    "port",
                    "opened_ns",
                    "handed",
                    "consumed",
                    "sequence",
                    "head",
                )
                rows = [{name: getattr(held, name) for name in fields} for held in some]
                channel.send(self._channel, {"connections": rows}, [held.socket for held in some])
                for held in some:
                    held.handed = True
                    self._new.popleft()

    def _hear(self, from_worker: socket.socket) -> None:
        try:
            received = channel.receive(from_worker)
        except BlockingIOError:
            return
        if received is None:
            self._lose_worker()
            return
        message, _ = received
        for what, content in message.items():
            match what:
                case "ready":
                    self._ready = True
                case "failed":
                    self._fail(*content)
                case "consume":
                    for number, offset, sequence, head in content:
                        self._held[number].consume(offset, sequence, head)
                    self._committed = True
                    self._outbox.append({"discarded": len(content)})
                case "close":
                    for number in content:
                        self._held.pop(number).socket.close()
                    self._accept_at = 0.0
                case "count":
                    for name, more in content.items():
                        setattr(self._summary, name, getattr(self._summary, name) + more)
                case "crashed":
                    log.error("logger: its worker failed, another one is started: %s", content)
                case "waiting":
                    self._say_waiting(content)

    def _fail(self, kind: str, text: str) -> None:
        """The worker gives up. At the start and at the end the caller is told; in between others try."""
        self._ready = False
        if not self._started:
            error: type[MidstreamError] = getattr(errors, kind, StoreError)
            raise error(text)
        self._say_waiting(text)

    def _say_waiting(self, reason: str) -> None:
        if reason and reason != self._waiting:
            self._summary.waits += not self._waiting
            log.warning("logger: waiting: %s. Nothing is lost: the sensors wait too", reason)
        elif self._waiting and not reason:
            log.warning("logger: goes on: the database takes everything again")
        self._waiting = reason

    def _lose_worker(self) -> None:
        """The worker is gone. Unless that was wanted another one starts, sooner if this one got anywhere."""
        if self._channel is None:
            return
        self._channel.close()
        self._channel = None
        if self._child is not None:
            self._child.wait()
        if self._stopping and not self._held:
            return
        if self._committed:
            self._delay = FIRST_DELAY
        self._restart_at = time.monotonic() + self._delay
        self._delay = min(2 * self._delay, LAST_DELAY)
        self._summary.restarts += 1
