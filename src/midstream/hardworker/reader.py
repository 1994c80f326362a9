"""What is read from a source, and how far the application is done with it."""

import time
from collections.abc import AsyncIterator, Iterator
from enum import Enum, auto
from typing import Any, cast

import numpy as np

from midstream.errors import ConfigError, MidstreamError
from midstream.hardworker.messages import Message, Totals, batch_dtype, joined
from midstream.hardworker.source import DECLINED, Cycle, Source, Status
from midstream.hardworker.sources import Sources
from midstream.hardworker.views import View
from midstream.hardworker.waiting import Waiting
from midstream.hardworker.watch import INTERVAL, DetachedError
from midstream.silence import Silence


class State(Enum):
    """What is not committed, and whether it was delivered."""

    COMMITTED = auto()
    """Nothing was read since the last commit."""
    READ = auto()
    """What was read holds no whole message, or the application is done with all that it was given."""
    DELIVERING = auto()
    """Messages are being given. If an exception comes now, nobody knows whether the application has them."""
    DELIVERED = auto()
    """The application has come back, and so has them."""
    BROKEN = auto()
    """Such an exception came. Nothing may be committed any more."""


class Reader:
    """Reads one source, for one application."""

    def __init__(self, sources: Sources, *, autocommit: bool) -> None:
        self.waiting = Waiting()
        self._sources, self._autocommit = sources, autocommit
        form = self._form = sources.form
        self._cadence = sources.cadence
        self._silence = Silence(sources.deadline, lambda: len(form.addresses), all_send=not sources.are_named)
        self._nothing = np.empty(0, batch_dtype(form.size if form.framing == "fixed" else 1))
        self._latest: dict[str, Message] = {}
        self._source: Source | None = None
        self._before = Totals()  # of sources that were read before
        self._state = State.COMMITTED
        self._batch: np.ndarray | None = None  # of this cycle, if it did not find its messages itself
        self._view: View | None = None  # as cycles give messages, once they are prepared
        self._cycle = self._messages_cycle = DECLINED

    def begin(self) -> None:
        """Open the source, if it is not; that of several streams only when it is needed."""
        if self.waiting.is_open:
            return
        self.waiting.open()
        if len(self._sources.names) == 1:
            try:
                self._open(self._sources.open())
            except BaseException:
                self.close()
                raise

    def _open(self, source: Source) -> None:
        """Read from this source from now on, where an earlier reader of it stopped."""
        old, self._source = self._source, source
        self._silence.begin()
        self.waiting.see_to(source.standing.timer, instead_of=old.standing.timer if old else -1)
        source.begin(self._form, self._cadence, self.waiting.attention)
        self._unprepare()
        self._messages_cycle = source.prepare(None) if self._autocommit else DECLINED
        if old:
            old.close()
            self._before += old.standing.totals
            self._form.addresses.renew()  # sensors may have other numbers

    def end(self) -> None:
        """The application is done with all that it was given, if it says so by coming to its end."""
        if self._autocommit and self.is_reading:
            self.commit()

    def close(self) -> None:
        """Let go of the source. What was not committed is delivered again to the next reader."""
        self._unprepare()
        self._messages_cycle = DECLINED
        self._sources.close()
        self.waiting.close()
        if self._source:
            self._before += self._source.standing.totals
            self._source.close()
            self._source = None

    def _unprepare(self) -> None:
        self._view, self._cycle, self._batch = None, DECLINED, None

    @property
    def totals(self) -> Totals:
        """Of all sources that were read, as of now."""
        return self._before + self._source.standing.totals if self._source else self._before

    @property
    def source(self) -> Source:
        """The one that is read. Raises ConfigError if this is closed."""
        self.need_open()
        if self._source is None:
            self._open(self._sources.open())
        return cast(Source, self._source)

    @property
    def is_reading(self) -> bool:
        """Is its source open?"""
        return self._source is not None and self.waiting.is_open

    def need_open(self) -> None:
        """Raises ConfigError if this is closed."""
        if not self.waiting.is_open:
            raise ConfigError("this Hardworker is closed; use it inside its `with` block")

    # the commit point

    def commit(self) -> bool:
        """The application is done with all that it was given; see Hardworker.commit."""
        source = self.source
        if self._state is State.BROKEN:
            return False
        if self._state is not State.COMMITTED:
            self._state = State.READ
            if source.commit():
                self._state, self._batch = State.COMMITTED, None
        return self._state is State.COMMITTED

    def _come_back(self) -> None:
        """The application asks for more: it has what it was given. Commit, if it wants that, or was given
        nothing."""
        self._need_whole()
        if self._state is State.DELIVERING:
            self._state = State.DELIVERED
        if self._autocommit or self._state is State.READ:
            self.commit()

    def _need_whole(self) -> None:
        if self._state is State.BROKEN:
            raise ConfigError(
                "an exception, of a signal's handler maybe, came in the midst of reading: close this "
                "Hardworker; the next one gives again what was not committed"
            )

    def _interrupted(self, error: BaseException) -> None:
        """This came while something was read. What may not have been given must not be committed."""
        if self._source is None or isinstance(error, GeneratorExit | MidstreamError):
            return
        found = self._cycle.batch()
        is_found = found is not None and len(found) > 0
        if self._source.standing.uncommitted and (self._state is State.DELIVERING or is_found):
            self._state = State.BROKEN

    # arrays

    def read(self) -> np.ndarray:
        """Every message of fixed size that has arrived, without waiting."""
        try:
            self._come_back()
            self._look()
            return self._rows()
        except BaseException as error:
            self._interrupted(error)
            raise

    def _rows(self) -> np.ndarray:
        before, self._state = self._state, State.DELIVERING
        rows = self.source.rows()
        if not len(rows):
            self._state = _without_messages(before)
        return rows

    def cycles(self, view: View) -> Iterator[Any]:
        """In each cycle the messages in this view, until the end."""
        waiting, delivering, delivered, broken = self.waiting, State.DELIVERING, State.DELIVERED, State.BROKEN
        while not waiting.stopped:
            if self._state is broken:  # asked here, a cycle costs no call more
                self._need_whole()
            run = (self._cycle if self._view is view else self._prepare(view)).run
            self._state = delivered  # until the cycle commits that
            try:
                given = run()
                if given is None:
                    given = view.of(self._finish())
                else:
                    self._state, self._batch = delivering, None
            except BaseException as error:
                self._interrupted(error)
                raise
            yield given

    def _prepare(self, view: View) -> Cycle:
        """What commits, waits and reads as a single step."""
        self._unprepare()
        self._view = view
        if self._form.framing == "fixed" and self._autocommit:
            self._cycle = self.source.prepare(view)
        return self._cycle

    def _finish(self) -> np.ndarray:
        """The messages of a cycle that did not give them itself."""
        found = self._cycle.batch()
        if found is None or self._cycle.status() not in (Status.MORE, Status.UNFIT):
            self.wait()
            self._batch = self._nothing if self.waiting.stopped else self.read()
            return self._batch
        if len(found):
            self._state = State.DELIVERING
        self._look(raises=not len(found))
        rest = self._rows()
        self._batch = joined(found, rest)
        return self._batch

    @property
    def batch(self) -> np.ndarray:
        """The messages of this cycle."""
        found = self._cycle.batch() if self._batch is None else self._batch
        return self._nothing if found is None else found

    # messages

    def messages(self) -> Iterator[Message]:
        """The messages that have arrived, one by one, without waiting."""
        try:
            self._come_back()
            self._look()
            yield from self._arrived()
        except BaseException as error:
            self._interrupted(error)
            raise

    def _arrived(self) -> Iterator[Message]:
        take, delivering = self.source.message, State.DELIVERING
        while True:
            before, self._state = self._state, delivering
            if (message := take()) is None:
                self._state = _without_messages(before)
                return
            yield message

    def latest(self, sensor: str | None) -> Message | None:
        """The newest message of a sensor, or of any; None before the first."""
        latest, in_order = self._latest, len(self._sources.names) == 1
        for message in self.messages():
            if in_order or message.time >= latest.get(message.sensor, message).time:
                latest[message.sensor] = message
        if sensor is not None:
            return self._latest.get(sensor)
        return max(self._latest.values(), key=lambda message: message.time, default=None)

    def iterate(self) -> Iterator[Message]:
        """Every message, until the end."""
        if not self.waiting.stopped:
            yield from self.messages()
        while not self.waiting.stopped:
            if self._state is State.DELIVERING:
                self._state = State.DELIVERED  # until the cycle commits that
            try:
                if looked := self._messages_cycle.run():
                    self._state = State.COMMITTED
                    yield from self._arrived()
            except BaseException as error:
                self._interrupted(error)
                raise
            if not looked:
                self.wait()
                if not self.waiting.stopped:
                    yield from self.messages()

    # waiting

    def wait(self, timeout: float | None = None) -> bool:
        """Until there may be something to read; see Hardworker.wait."""
        self._come_back()
        waiting = self.waiting
        if self._cadence.period:
            left = self._left
            late = timeout is not None and timeout < left
            waiting.sleep(max(0.0, timeout) if late and timeout is not None else left, self._look)
            return not waiting.stopped and not late
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            if self._look():
                return not waiting.stopped
            left = patience = end - time.monotonic()
            if self._silence.deadline:
                each = self._silence.left(self.source.standing.heard())
                if self._silence.is_news(each):
                    return False
                patience = min(left, self._silence.until_next(each))
            ready = waiting.poll(self.source.fileno(), None if patience == float("inf") else patience)
            if waiting.stopped or ready or left <= 0:
                return ready and not waiting.stopped

    @property
    def silent(self) -> tuple[str, ...]:
        """The addresses of the sensors that have missed their deadline."""
        silent = self._silence.silent(self._silence.left(self.source.standing.heard()))
        return tuple(self._form.addresses[number] for number in sorted(silent))

    @property
    def _left(self) -> float:
        """Seconds until the application looks again, with a period."""
        return self._cadence.left(self.source.standing.newest if self._cadence.follow else 0)

    def _look(self, *, raises: bool = True) -> bool:
        """Look at what has arrived: is there anything? raises: if nothing ever will be, which else is found
        by the next look."""
        try:
            return self.source.look()
        except DetachedError as error:
            if raises and (opened := self._sources.reopen(error)):
                self._open(opened)
            return False

    async def arrivals(self) -> AsyncIterator[Message]:
        """Every message, until the end, in an event loop."""
        import asyncio  # here: it loads slowly, and few applications need it

        loop = asyncio.get_running_loop()
        while not self.waiting.stopped:
            for message in self.messages():
                yield message
            if self._cadence.period:
                end = time.monotonic() + self._left
                while (left := end - time.monotonic()) > INTERVAL and not self.waiting.stopped:
                    await asyncio.sleep(INTERVAL)
                    self._look()
                await asyncio.sleep(left)
                continue
            self._come_back()
            ready = asyncio.Event()
            descriptors = self.source.fileno(), self.waiting.attention
            for fd in descriptors:
                loop.add_reader(fd, ready.set)
            try:
                await ready.wait()
            finally:
                for fd in descriptors:
                    loop.remove_reader(fd)
            self._look()


def _without_messages(before: State) -> State:
    """After something was read in which no message ended; a discarded record, maybe."""
    return State.READ if before is State.COMMITTED else before
