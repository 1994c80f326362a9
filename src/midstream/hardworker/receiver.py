"""Hardworker: the application's view of what the sensors send."""

import os
import select
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from functools import partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from midstream import config as configuration
from midstream import fields, network
from midstream.config import Config
from midstream.ebpf import irq_mitigation
from midstream.errors import ConfigError, MidstreamError
from midstream.hardworker.assembly import Assembly, Totals
from midstream.hardworker.forms import Columns, Form, Rows, Turn
from midstream.hardworker.handler import SocketHandler
from midstream.hardworker.messages import Message, batch_dtype
from midstream.hardworker.pinned import open_ring, reopen
from midstream.hardworker.source import Pace, Source
from midstream.hardworker.watch import INTERVAL, DetachedError


class Hardworker:
    """Receives every sensor's messages, each once and in order.

        with Hardworker("config.toml") as hardworker:
            for message in hardworker:
                ...

    Iterating waits for messages: until there are some, or, with `[hardworker] period`, until the period is
    over. `async for` does the same in an event loop. `batches` gives arrays instead, one at each turn, and
    `columns` one of each value that is needed; `read` takes everything that has arrived as one array without
    waiting, and `latest` the newest message. Where the messages come from is config.toml's `[hardworker]
    receiver`: the eBPF program's ring, or the user-mode handler.

    A message is delivered when it has been handed out, and done when that is committed. By default a batch is
    committed when the next one is asked for, so an application that is killed gets its last batch again, with
    the same connection and sequence numbers, when it is started anew; everything before never again. So it
    does after an exception that the handler of a signal raises in the midst of reading: this Hardworker then
    raises ConfigError and commits nothing more.

    When the program is detached, what is in its ring is delivered to the end, and then whatever was called
    raises KernelError within a second. With `follow` it waits instead for the program to be attached again,
    and goes on: numbers of connections do not come twice, those that were open are counted as reset, and what
    was delivered from the old ring is never delivered again, committed or not.

    Entering raises ConfigError, KernelError (nothing attached, or made from other files) or NetworkError.
    """

    def __init__(
        self,
        config: str | Path | Config,
        *,
        source: Source | None = None,
        autocommit: bool = True,
        follow: bool = False,
    ) -> None:
        self.config = config if isinstance(config, Config) else configuration.load(config)
        self.topology = network.load(self.config.const_path)
        self._size = self.config.message_size(self.topology.size)
        self._fixed = self.config.data.framing == "fixed"
        self._assembly = Assembly(self.config.data, self._size, lambda: network.load(self.config.const_path))
        self.layout = fields.layout(self.config, self._size)
        settings = self.config.hardworker
        self._period = settings.period
        self._follow = settings.irq_mitigation and settings.receiver == "ebpf"
        self._reopen = partial(reopen, reload=not isinstance(config, Config)) if follow else None
        self._source = source
        self._autocommit = autocommit
        self._turns = self._fixed and autocommit
        self._rest: Iterator[Message] | None = None
        self._committed = True
        self._reading = False  # maybe, that is, in the midst of it
        self._undone = False  # was a message delivered that the application has not committed?
        self._rows = Rows(self._size, np.dtype((np.void, self._size)))  # its bytes become bytes
        self._paced: object = None  # the form of what turns give, once they are prepared,
        self._turn: Turn = _no_turn  # each by a call of this
        self._batch: np.ndarray | None = None  # of this turn, if its messages were put together here
        self._latest: dict[str, Message] = {}
        self._stop = self._polled = -1
        self._poll = select.poll()
        self._attention: select.epoll | None = None  # to stop, or when the source's timer expires
        self._running = threading.Lock()  # held until `stop`
        self._running.acquire()
        self._stopped = False

    def __enter__(self) -> Self:
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            if self._source is None:
                ebpf = self.config.hardworker.receiver == "ebpf"
                self._source = open_ring(self.config, self.topology) if ebpf else SocketHandler(self.topology)
        except BaseException:
            os.close(self._stop)
            raise
        self._attention = select.epoll()
        self._attention.register(self._stop, select.EPOLLIN)
        self._poll.register(self._attention, select.POLLIN)
        self._begin(self._source)
        return self

    def _begin(self, source: Source) -> None:
        """Read from this source from now on, where an earlier reader of it stopped."""
        self._source = source
        self._paced, self._turn, self._batch = None, _no_turn, None
        if self._attention and source.timer >= 0:
            self._attention.register(source.timer, select.EPOLLIN)
        if snapshot := source.restore():
            self._assembly.restore(snapshot)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._autocommit and self._source is not None:
            self.commit()
        self.close()

    def close(self) -> None:
        """Let go of the source. What was not committed is delivered again to the next reader."""
        self._paced, self._turn, self._batch = None, _no_turn, None
        if self._source is not None:
            self._source.close()
            self._source = None
        if self._attention:
            self._attention.close()
            self._attention = None
        if self._stop >= 0:
            descriptor, self._stop = self._stop, -1
            os.close(descriptor)

    def stop(self) -> None:
        """Let iterations end, also from a signal handler or another thread."""
        if not self._stopped:
            self._stopped = True
            self._running.release()
        if self._stop >= 0:
            os.eventfd_write(self._stop, 1)

    def commit(self) -> bool:
        """All messages delivered so far have been acted upon: never deliver them again, give their room back.

        Called at the start of `read`, `messages` and `wait`, at each turn, and when the `with`
        block ends without an error; with `autocommit=False` only if no message was delivered since the
        application did. False if it has to wait: for the rest of a batch that is being iterated over (done
        then, unless more was delivered), or for more of a large message. Raises KernelError if there is no
        memory for unfinished messages.
        """
        source = self._opened_source()
        self._undone = False
        if self._rest is None and not self._committed:
            self._committed = source.commit(self._assembly.streams)
            if self._committed:
                self._batch, self._reading = None, False
        return self._committed

    def read(self) -> np.ndarray:
        """Every message that has arrived between the last call and this one, as a structured array.

        For fixed framing; the fields are those of `batch_dtype`. Usually the array is a view of the ring:
        nothing is copied, and it is valid until the next `commit`, which gives its room back to the program.
        Where segments and messages do not coincide, the messages are copied together.
        """
        self._need_fixed("read")
        self._need_no_rest("read")
        try:
            return self._read()
        except BaseException as error:
            self._interrupt(error)
            raise

    def _read(self) -> np.ndarray:
        self._opened_source()
        self._settle()
        self._committed = False
        return self._gathered([])

    def _gathered(self, pieces: list[np.ndarray]) -> np.ndarray:
        """These messages, and those that have arrived after them."""
        self._reading = True
        source = self._look(raises=not pieces)
        while True:
            run = source.regular(self._size, self._assembly.streams)
            if len(run):
                pieces.append(run)
            segment = source.next()
            if segment is None:
                break
            rows = self._assembly.rows(segment)
            if len(rows):
                pieces.append(rows)
        self._undone |= bool(pieces)
        if not pieces:
            return np.empty(0, batch_dtype(self._size))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def batches(self, payload: npt.DTypeLike | None = None) -> Iterator[np.ndarray]:
        """At every turn what `wait` and then `read` give, until `stop`: maybe an empty array.

        A turn in which whole messages came in order is a single step of C. A batch is valid until the next is
        asked for. payload: as what its field `payload` is seen, a dtype of `message_size` bytes, for example
        `layout.dtype`, config.toml's fields.
        """
        self._need_fixed("batches")
        return self._take_turns("batches", Rows(self._size, self._seen("batches", payload)))

    def columns(self, *names: str, payload: npt.DTypeLike | None = None) -> Iterator[tuple[np.ndarray, ...]]:
        """At each turn an array for each name, with a value of each message, until `stop`; maybe empty ones.

            for sequence, temperature in hardworker.columns("sequence", "temperature"):

        From the ring the cheapest way to receive, if an application needs some bytes of every message and not
        all: a step of C copies them end to end. names: config.toml's fields, or those of another dtype of
        `message_size` bytes for the payload; `sequence`, as in Message; and the fields of `batch_dtype`,
        unless the message has one of that name. Values are as they were sent.

        Until the next turn the values are the application's, which may change them. The arrays are not: for a
        number of messages below 256 the same ones come at every turn. `batch` has the messages whole.
        """
        self._need_fixed("columns")
        if not names:
            raise ConfigError("columns() was asked for nothing; name at least one field of a message")
        if payload is None and self.layout is not None:
            payload = self.layout.dtype
        try:
            form = Columns(self._size, self._seen("columns", payload), names)
        except KeyError as error:
            raise ConfigError(
                f"{self.config.path}: columns() was asked for {error}, which no message has; "
                "describe it by a [[data.field]] table, or give a dtype for the payload that has it"
            ) from None
        return self._take_turns("columns", form)

    @property
    def batch(self) -> np.ndarray:
        """The messages of this turn of `columns` or `batches`, as `read` gives them; valid until the next.

        Empty if they were committed, and in an iteration over messages.
        """
        found = self._opened_source().found() if self._batch is None else self._batch
        return np.empty(0, batch_dtype(self._size)) if found is None else found

    def _take_turns(self, method: str, form: Form) -> Iterator[Any]:
        while not self._stopped:
            if self._rest is not None:  # asked here, a turn costs no call more
                self._need_no_rest(method)
            turn = self._turn if self._paced is form else self._pace(form)
            self._committed, self._batch = False, None
            try:
                given = turn()
                if given is None:
                    given = form.of(self._go_on())
            except BaseException as error:
                self._interrupt(error)
                raise
            yield given

    def _go_on(self) -> np.ndarray:
        """The messages of a turn that gave None."""
        self._reading = False
        batch = self._found()
        if batch is None:
            self.wait()
            batch = np.empty(0, batch_dtype(self._size)) if self._stopped else self._read()
        self._batch = batch
        return batch

    def _found(self) -> np.ndarray | None:
        """What such a turn found, with what is behind it; None if it did nothing."""
        found = self._opened_source().found()
        return None if found is None else self._gathered([found] if len(found) else [])

    def _look(self, *, raises: bool = True) -> Source:
        """The source, after a look at what has arrived. raises: if nothing ever will, which else is found by
        the next look."""
        source = self._opened_source()
        try:
            source.look()
        except DetachedError as error:
            if raises:
                self._go_over(error)
        return self._opened_source()

    def _tend(self) -> None:
        """See whether anything may still come."""
        try:
            self._opened_source().tend()
        except DetachedError as error:
            self._go_over(error)

    def _go_over(self, error: DetachedError) -> None:
        """To the ring of the program that was attached after this one's was detached, if there is one."""
        if self._reopen is None:
            raise error
        if not error.gone:  # it may be attached again, with this ring
            return
        old = self._opened_source()
        if (opened := self._reopen(self.config, self._size)) is None:
            return
        self.config, self.topology, source = opened
        self._assembly.abandon()
        if self._attention:
            self._attention.unregister(old.timer)
        self._begin(source)
        old.close()

    def _interrupt(self, error: BaseException) -> None:
        """The handler of a signal raised this. If something was read that was not given yet, it must not be
        committed."""
        source = self._source
        if source is None or isinstance(error, GeneratorExit | MidstreamError):
            return
        found = source.found()
        if source.has_uncommitted and (self._reading or (found is not None and len(found))):
            self._rest = _Interrupted()

    def _pace(self, form: Form) -> Turn:
        """What commits, waits and reads as a single step; it gives None if that takes more."""
        source = self._opened_source()
        if self._turns:
            follow = irq_mitigation.follow(self._period) if self._follow and self._period else 0.0
            stop = self._attention.fileno() if self._attention else self._stop
            pace = Pace(self._size, round(self._period * 1e9), round(follow * 1e9), stop)
            self._turn = source.pace(form, pace, self._assembly.streams)
        self._paced = form
        return self._turn

    def fields(self, batch: np.ndarray) -> np.ndarray:
        """The messages of a batch that `read` gave, as rows with config.toml's [[data.field]] by name.

        A view of the batch, valid as long as it is; values as they were sent (`layout.scaled` gives units).
        """
        if self.layout is None:
            raise ConfigError(
                f"{self.config.path}: data.field = []: no fields are described; add [[data.field]] tables"
            )
        return self.layout.view(batch)

    def messages(self) -> Iterator[Message]:
        """The messages that have arrived since the last call, one by one; it does not wait for more.

        A caller that breaks off gets the rest from the next call; nothing is committed before, and `read`,
        `batches` and `columns` raise ConfigError.
        """
        if self._rest is None:
            self._settle()
            self._committed = False
            self._rest = self._arrived()
        try:
            while (message := next(self._rest, None)) is not None:
                self._undone = True
                yield message
            self._rest = None
        except BaseException as error:
            self._interrupt(error)
            raise

    def replay(self, since: datetime | None = None) -> Iterator[Message]:
        """What the logger stored before this ring began and then, without a seam, what arrives.

        For an application whose host was restarted, or that wants to know the past: every stored message that
        the logger received at or after `since` (its clock; None: all), of connections that came before the
        first that the ring has had. They have negative connection numbers, and as time the logger's, in
        nanoseconds since 1970. Every later connection is in the ring from its first byte. Ask before reading
        anything else; meanwhile the ring fills. Raises ConfigError and NetworkError, see `history`.
        """
        source = self._opened_source()
        from midstream.hardworker.history import history

        yield from history(
            self.config,
            str(self.topology.logger.ip),
            [str(host.ip) for host in self.topology.sensors],
            since,
            source.beginnings,
        )
        yield from self

    def latest(self, sensor: str | None = None) -> Message | None:
        """The newest message of a sensor (by IP address), or of any; None before the first.

        Takes everything that has arrived, so that older messages are passed over.
        """
        for message in self.messages():
            self._latest[message.sensor] = message
        if sensor is not None:
            return self._latest.get(sensor)
        return max(self._latest.values(), key=lambda message: message.time, default=None)

    def __iter__(self) -> Iterator[Message]:
        while not self._stopped:
            yield from self.messages()
            turn = self._turn if self._paced is self._rows else self._pace(self._rows)
            self._committed, self._batch, self._reading = False, None, False
            try:
                batch = turn()
                if batch is None and (found := self._found()) is not None:
                    batch = self._rows.of(found)
                if batch is not None:
                    self._rest = self._each(batch)
            except BaseException as error:
                self._interrupt(error)
                raise
            if batch is None:
                self.wait()

    async def __aiter__(self) -> AsyncIterator[Message]:
        import asyncio  # here, and the history too: they load slowly, and few applications need them

        loop = asyncio.get_running_loop()
        while not self._stopped:
            for message in self.messages():
                yield message
            if self._period:
                end = time.monotonic() + self._left()
                while (left := end - time.monotonic()) > INTERVAL and not self._stopped:
                    await asyncio.sleep(INTERVAL)
                    self._look()
                await asyncio.sleep(left)
                continue
            self._settle()
            ready = asyncio.Event()
            source = self._opened_source()
            descriptors = [fd for fd in (source.fileno(), source.timer, self._stop) if fd >= 0]
            for fd in descriptors:
                loop.add_reader(fd, ready.set)
            try:
                await ready.wait()
            finally:
                for fd in descriptors:
                    loop.remove_reader(fd)
            self._tend()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there may be something to read, at most `timeout` seconds; False if that time ran out or
        `stop` was called.

        With a period it waits for the next multiple of the period instead, and nothing wakes it before. Where
        the interface's interrupts wait too (`hardworker.irq_mitigation`) it follows the interface: it waits
        until shortly after that is going to look for packets, at most a period after it last found some.
        """
        self._opened_source()
        self._settle()
        if self._period:
            left = self._left()
            late = timeout is not None and timeout < left
            self._sleep(max(0.0, timeout) if late and timeout is not None else left)
            return not self._stopped and not late
        if self._rest is not None:
            return not self._stopped
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            self._follow_descriptor()
            left = end - time.monotonic()
            ready = dict(self._poll.poll(None if timeout is None else max(0.0, left) * 1000))
            if self._stopped or self._polled in ready or left <= 0:
                return not self._stopped and self._polled in ready
            self._tend()

    def _sleep(self, seconds: float) -> None:
        """Until the time is over or `stop` is called."""
        end = time.monotonic() + seconds
        while not self._running.acquire(timeout=min(max(0.0, end - time.monotonic()), INTERVAL)):
            if time.monotonic() >= end:
                return
            self._look()
        self._running.release()

    def _follow_descriptor(self) -> None:
        """Poll the source's descriptor, and no longer that of the one before."""
        if (fd := self._opened_source().fileno()) != self._polled:
            if self._polled >= 0:
                self._poll.unregister(self._polled)
            self._poll.register(fd, select.POLLIN)
            self._polled = fd

    @property
    def totals(self) -> Totals:
        """What was received since this Hardworker was made, as of now: ask again for later."""
        return self._assembly.totals

    @property
    def stopped(self) -> bool:
        """Has `stop` been called?"""
        return self._stopped

    @property
    def message_size(self) -> int:
        """Bytes a message, for fixed framing."""
        return self._size

    @property
    def fill(self) -> float:
        """How full the buffer between the network and the application is, from 0 to 1."""
        return self._opened_source().fill

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._assembly.streams)

    def _need_fixed(self, method: str) -> None:
        if not self._fixed:
            raise ConfigError(
                f'{self.config.path}: data.framing = "{self.config.data.framing}": {method}() gives arrays, '
                "which need fixed framing; iterate over the messages instead"
            )

    def _seen(self, method: str, payload: npt.DTypeLike | None) -> np.dtype | None:
        """The dtype as which the payload is to be seen."""
        if payload is None:
            return None
        dtype = np.dtype(payload)
        if dtype.itemsize != self._size:
            raise ConfigError(
                f"{self.config.path}: a message has {self._size} bytes, and the dtype given to {method}() "
                f"{dtype.itemsize}; give one of {self._size} bytes"
            )
        if dtype.hasobject:
            raise ConfigError(f"the dtype given to {method}() has Python objects, which no message holds")
        return dtype

    def _need_no_rest(self, method: str) -> None:
        if self._rest is None:
            return
        if (message := next(self._rest, None)) is None:  # it may have been broken off at its last
            self._rest = None
            return
        self._rest = chain((message,), self._rest)
        raise ConfigError(
            f"{method}() was called after an iteration over messages was broken off: "
            "take the rest of them with messages() first"
        )

    def _opened_source(self) -> Source:
        if self._source is None or self._stop < 0:
            raise ConfigError("this Hardworker is closed; use it inside its `with` block")
        return self._source

    def _left(self) -> float:
        """Seconds until the application looks again, with a period."""
        newest = self._opened_source().newest if self._follow else 0
        begun = newest / 1e9 + irq_mitigation.follow(self._period) if newest else 0.0
        return self._period - (time.monotonic() - begun) % self._period

    def _settle(self) -> None:
        """Commit, if the application wants that or has nothing to say."""
        if self._autocommit or not self._undone:
            self.commit()

    def _arrived(self) -> Iterator[Message]:
        if self._fixed:
            yield from self._each(self._rows.of(self._read()))
            return
        self._reading = True
        source = self._look()
        while segment := source.next():
            yield from self._assembly.messages(segment)

    def _each(self, batch: np.ndarray) -> Iterator[Message]:
        """The messages of a batch of `_rows`, one by one."""
        size, name = self._size, self._assembly.sensor
        for offset, moment, connection, _, sensor, _, _, _, payload in batch.tolist():
            yield Message(name(sensor), connection, offset // size, moment, payload)


class _Interrupted(Iterator[Message]):
    """The rest, where nobody knows what it is."""

    def __next__(self) -> Message:
        raise ConfigError(
            "an exception, of a signal's handler maybe, came in the midst of reading: close this Hardworker; "
            "the next one gives again what was not committed"
        )


def _no_turn() -> None:
    """Where a turn takes more than one step."""
