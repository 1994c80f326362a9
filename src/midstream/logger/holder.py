"""The holder: keeps the listening sockets and every accepted one, so that the worker may die.

It never looks at a byte. A worker peeks at what the sockets hold and stores it; only when it is committed
the holder takes it out of the kernel, and remembers how far it came. So what a dead worker has not stored is
still there for the next one, and what it has stored is known by its place in the stream. TCP does not notice.

The doors stay shut until a first worker has opened the database. From then on the holder ends only when it is
told to: whatever fails is tried again.
"""

import errno
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

from midstream import errors
from midstream.errors import MidstreamError, StoreError
from midstream.logger import channel
from midstream.logger.door import Door
from midstream.logger.held import Held, unread
from midstream.logger.summary import LoggerSummary
from midstream.logger.syn import first_sequence
from midstream.logger.waiting import WaitingReport
from midstream.storage.run import new_name

POLL = 0.05  # seconds between two looks at `stop`
SILENCE = 10.0  # seconds without a word of the first worker after which that is said
STOP_PATIENCE = (
    10.0  # seconds after a stop in which nothing gets on; the worker gives up earlier, with a reason
)
SEND_PAUSE = 0.1  # seconds until another try where the system has no room for a message
# Seconds before a worker is started again: the first, doubled as long as it commits nothing.
FIRST_DELAY, LAST_DELAY = 0.05, 1.0


class Child(Protocol):
    """A worker that was started; subprocess.Popen is one."""

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


class Holder:
    """doors: by the name of the stream whose messages come in there.
    `start_worker` starts one that talks over the socket it is given, or raises OSError; `settings` is told
    to each. Counts into `summary`. `tell` hears why nothing can be stored, and "" when all can be.
    """

    def __init__(
        self,
        doors: Mapping[str, Door],
        settings: channel.Message,
        start_worker: Callable[[socket.socket], Child],
        summary: LoggerSummary,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._doors = doors
        self._spools = bool(settings.get("spool"))
        self._settings = channel.written(settings)
        self._start_worker = start_worker
        self._summary = summary
        self._run = new_name()
        self._held: dict[int, Held] = {}
        self._numbers = 0
        self._new: deque[Held] = deque()  # to be handed over
        self._outbox: deque[channel.Message] = deque()
        self._channel: socket.socket | None = None
        self._child: Child | None = None
        self._ready = False  # has this worker opened the database?
        self._committed = False  # by this worker
        self._delay = FIRST_DELAY
        self._restart_at = 0.0
        self._send_at = 0.0
        self._waiting = WaitingReport(tell)
        self._opened = False  # has a worker opened the database?
        self._stopping = False
        self._moved_at = 0.0  # when something was stored last, or the stop came

    def start(self) -> None:
        """Start the first worker, and return when it has opened the database or waits for it.

        Raises what only the user can mend: StoreError, ConfigError, NetworkError.
        """
        silent = time.monotonic() + SILENCE
        while not self._opened and not self._waiting.reason:
            self._turn(POLL)
            if time.monotonic() > silent:
                self._wait(f"the database is not open after {SILENCE:g} s. What to do: see that it runs")

    def run(
        self,
        stop: Callable[[], bool],
        deadline: float,
        listening: Callable[[], object],
        hand_back: Callable[[], bool],
    ) -> None:
        """Hold connections until `stop()` or `deadline`; then have everything stored and end them.

        From `hand_back()` on nobody is let in, each sensor sees the end of our side of its stream, and it
        lasts only until the last of them has ended. Calls `listening` when the door is open. Raises
        StoreError if not all could be stored at the end, and before the door is open what `start` raises.
        """
        told = handing_back = False
        try:
            while time.monotonic() < deadline and not stop():
                if handing_back := handing_back or hand_back():
                    self._hand_back()
                    if not self._held and not self._paused:
                        break
                if self._opened and not told:
                    told = True
                    listening()
                self._turn(min(POLL, max(0.0, deadline - time.monotonic())))
        finally:
            self._stop()

    def close(self) -> None:
        """End the worker and all sockets, at once."""
        self._stopping = True
        for held in self._held.values():
            held.socket.close()
        self._held.clear()
        if self._child is not None:
            self._child.kill()
        self._lose_worker()
        self._close_doors()
        self._settings.close()

    @property
    def _paused(self) -> bool:
        """Is there a connection that could not be accepted?"""
        return any(door.paused for door in self._doors.values())

    def _close_doors(self) -> None:
        for door in self._doors.values():
            door.close()

    def _hand_back(self) -> None:
        self._shut_doors()
        for held in self._held.values():
            if not held.shown_end:
                held.shown_end = True
                with suppress(OSError):  # it has just ended
                    held.socket.shutdown(socket.SHUT_WR)

    def _shut_doors(self) -> bool:
        """Accept those who wait, for they are acknowledged. Later ones are refused, and connect elsewhere.
        True if there are some that cannot be accepted now."""
        for door in self._doors.values():
            door.shut()
        self._accept()
        if self._paused:
            return True
        self._close_doors()
        return False

    def _stop(self) -> None:
        """Have all stored that was acknowledged."""
        if not self._opened:
            self.close()
            return
        self._stopping = True
        self._moved_at = time.monotonic()
        self._outbox.append({"stop": True})
        while self._shut_doors() or self._held or self._channel is not None:
            self._turn(POLL)
            if time.monotonic() > self._moved_at + STOP_PATIENCE:
                self._give_up()
                break
        self._close_doors()

    def _give_up(self) -> None:
        """Nothing has moved for long after a stop: StoreError unless everything is stored."""
        if self._paused:
            raise self._lost(
                "connections that wait to be accepted cannot be: no descriptor or memory is left"
            )
        if self._held:
            raise self._lost(self._waiting.reason or f"its worker stores nothing for {STOP_PATIENCE:g} s")

    def _lost(self, reason: str) -> StoreError:
        # A worker that was killed may have stored bytes that it had not yet taken off their socket.
        size = sum(unread(held.socket) for held in self._held.values())
        return StoreError(
            f"{reason}. Up to {size} received bytes were not stored, of {len(self._held)} connections"
        )

    def _turn(self, timeout: float) -> None:
        """One look at everything that may happen, at most for so many seconds."""
        now = time.monotonic()
        if self._channel is None and now >= self._restart_at and (self._held or not self._stopping):
            self._start()
        self._flush(now)
        poll = select.poll()
        if self._waiting.reason and not self._spools:
            for door in self._doors.values():
                door.rest()  # others are there for the sensors; a spool is the last
        else:
            for door in self._letting_in():
                poll.register(door, select.POLLIN)
        if self._channel is not None:
            sends = (self._outbox or self._new) and now >= self._send_at
            poll.register(self._channel, select.POLLIN | (select.POLLOUT if sends else 0))
        for descriptor, events in poll.poll(timeout * 1000):
            if self._channel is not None and descriptor == self._channel.fileno():
                if events & ~select.POLLOUT:
                    self._hear(self._channel)
            else:
                self._accept()

    def _accept(self) -> bool:
        """Take those who wait. True if there was one."""
        before = self._numbers
        for stream, door in self._doors.items():
            while accepted := door.accept(len(self._held)):
                sock, (sensor, port) = accepted
                self._numbers += 1
                token, now = f"{self._run}.{self._numbers}", time.time_ns()
                held = Held(self._numbers, token, sensor, port, stream, now, first_sequence(sock), sock)
                self._held[held.number] = held
                self._new.append(held)
                if door not in self._letting_in() and not door.is_shut:
                    break
        self._summary.connections += self._numbers - before
        return self._numbers > before

    def _letting_in(self) -> list[Door]:
        """All are asked, since each has a part of what is left."""
        return [door for door in self._doors.values() if door.lets_in(len(self._held))]

    def _start(self) -> None:
        try:
            ours, theirs = channel.pair()
        except OSError as error:
            self._put_off(error)
            return
        ours.setblocking(False)
        try:
            with theirs:
                self._child = self._start_worker(theirs)
        except OSError as error:
            ours.close()
            self._put_off(error)
            return
        self._channel, self._ready, self._committed = ours, False, False
        self._new = deque(self._held.values())
        self._outbox = deque([{"opened": self._opened}])
        if self._stopping:
            self._outbox.append({"stop": True})

    def _put_off(self, error: OSError) -> None:
        """No process, memory or descriptor is left for a worker just now."""
        self._try_later()
        self._wait(
            f"its worker cannot be started: {error.strerror}. What to do: see what uses up this host's "
            "processes, memory or files, or raise the limit (TasksMax=, MemoryMax=, LimitNOFILE= of its unit)"
        )

    def _flush(self, now: float) -> None:
        """Send what the channel takes: connections first, then what else there is to say."""
        if self._channel is None or now < self._send_at:
            return
        try:
            while self._outbox or self._new:
                if (self._outbox and "opened" in self._outbox[0]) or not self._new:
                    files = [self._settings] if "opened" in self._outbox[0] else []
                    channel.send(self._channel, self._outbox[0], files)
                    self._outbox.popleft()
                    continue
                some = [self._new[index] for index in range(min(len(self._new), channel.MAX_SOCKETS))]
                rows = [held.described() for held in some]
                channel.send(self._channel, {"connections": rows}, [held.socket for held in some])
                for held in some:
                    held.handed = True
                    self._new.popleft()
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return
        except OSError as error:  # too many descriptors are on their way (unix(7)), or no memory is left
            if error.errno not in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
                raise
            self._send_at = now + SEND_PAUSE

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
                    if not self._opened:
                        self._waiting.over()
                        self._open()
                case "failed":
                    self._fail(*content)
                case "consume":
                    for number, offset, sequence, head in content:
                        self._held[number].consume(offset, sequence, head)
                    self._committed = True
                    self._moved_at = time.monotonic()
                    self._outbox.append({"discarded": len(content)})
                case "close":
                    for number in content:
                        self._held.pop(number).socket.close()
                    self._moved_at = time.monotonic()
                case "count":
                    for name, more in content.items():
                        setattr(self._summary, name, getattr(self._summary, name) + more)
                case "crashed":
                    self._waiting.say(f"logger: its worker failed, another one is started: {content}")
                case "forgetting":
                    self._ready = True
                    self._wait(content, "What comes is forgotten until then, so that the application goes on")
                    if not self._opened:
                        self._open()
                case "waiting" if content:
                    self._wait(content)
                case "waiting":
                    self._waiting.over()

    def _fail(self, kind: str, text: str) -> None:
        """The worker gives up: at the start, because only the user can mend it, or some time after a stop."""
        if self._stopping:
            raise self._lost(text)
        error: type[MidstreamError] = getattr(errors, kind, StoreError)
        raise error(text)

    def _open(self) -> None:
        self._opened = True
        for door in self._doors.values():
            door.open()

    def _wait(self, reason: str, comfort: str = "") -> None:
        waits = "Nothing is lost: the sensors wait too" if self._opened else "No sensor is let in"
        self._waiting.because(reason, comfort or waits)
        self._summary.waits = self._waiting.times

    def _lose_worker(self) -> None:
        """The worker is gone. Unless that was wanted another one starts, sooner if this one got anywhere."""
        if self._channel is None:
            return
        self._channel.close()
        self._channel = None
        code = self._child.wait() if self._child is not None else 0
        if self._stopping and not self._held:
            return
        if self._committed:
            self._delay = FIRST_DELAY
            self._waiting.all_well()
        self._summary.restarts += 1
        self._try_later()
        if not self._ready:
            how = f"it was killed by {_signal(-code)}" if code < 0 else f"exit code {code}"
            self._wait(f"its worker ended before it had opened the database ({how}), another one is started")

    def _try_later(self) -> None:
        self._restart_at = time.monotonic() + self._delay
        self._delay = min(2 * self._delay, LAST_DELAY)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
