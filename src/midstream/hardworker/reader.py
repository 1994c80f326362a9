"""What is read from a source, and how far the application is done with it."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from enum import Enum, auto
from itertools import chain
from typing import Any

import numpy as np

from midstream import network
from midstream.config import Config
from midstream.errors import ConfigError, MidstreamError
from midstream.hardworker.assembly import Assembly
from midstream.hardworker.cadence import Cadence
from midstream.hardworker.messages import Message, batch_dtype
from midstream.hardworker.source import Cycle, Segment, Source, Status
from midstream.hardworker.views import Rows, View
from midstream.hardworker.waiting import Waiting
from midstream.hardworker.watch import INTERVAL, DetachedError


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
    """Reads one source, for one application. size: bytes of a message, for fixed framing.

    reopen(): another source, if the one that was read is gone; None: there is none yet. It raises what it was
    given if there never will be one.
    """

    def __init__(
        self,
        config: Config,
        size: int,
        reopen: Callable[[DetachedError], Source | None],
        *,
        autocommit: bool,
    ) -> None:
        self.assembly = Assembly(config.data, size, lambda: network.load(config.const_path))
        self.waiting = Waiting()
        self._size = size = size if config.data.framing == "fixed" else 0  # 0: any
        self._cadence = Cadence.of(config.hardworker)
        self._reopen, self._autocommit = reopen, autocommit
        self._nothing = np.empty(0, batch_dtype(size or 1))
        self._rows = Rows(size or 1, np.dtype((np.void, size or 1)))  # its bytes become bytes
        self._latest: dict[str, Message] = {}
        self._source: Source | None = None
        self._state = State.COMMITTED
        self._rest: Iterator[Message] | None = None  # of the messages that are iterated over
        self._batch: np.ndarray | None = None  # of this cycle, if its messages were put together here
        self._view: View | None = None  # as cycles give messages, once they are prepared,
        self._cycle: Cycle = _declined  # each by a call of this

    def open(self, source: Source) -> None:
        """Read from this source from now on, where an earlier reader of it stopped."""
        if not self.waiting.is_open:
            try:
                self.waiting.open()
            except BaseException:
                source.close()
                raise
        old, self._source = self._source, source
        self._view, self._cycle, self._batch = None, _declined, None
        self.waiting.see_to(source.standing.timer, instead_of=old.standing.timer if old else -1)
        if snapshot := source.restore():
            self.assembly.restore(snapshot)
        if old:
            old.close()

    def close(self) -> None:
        """Let go of the source. What was not committed is delivered again to the next reader."""
        self._view, self._cycle, self._batch = None, _declined, None
        if self._source:
            self._source.close()
            self._source = None
        self.waiting.close()

    @property
    def source(self) -> Source:
        """The one that is read. Raises ConfigError if none is open."""
        if self._source is None or not self.waiting.is_open:
            raise ConfigError("this Hardworker is closed; use it inside its `with` block")
        return self._source

    # the commit point

    def commit(self) -> bool:
        """The application is done with all that it was given; see Hardworker.commit."""
        source = self.source
        if self._state is State.BROKEN:
            return False
        if self._state is not State.COMMITTED:
            self._state = State.READ
            if self._rest is None and source.commit(self.assembly.streams):
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

    def _need_no_rest(self, asked: str) -> None:
        """asked: a method that gives arrays, which an iteration over messages must not be left for."""
        self._need_whole()
        if self._rest is None:
            return
        if (message := next(self._rest, None)) is None:  # it may have been broken off at its last
            self._rest = None
            return
        self._rest = chain((message,), self._rest)
        raise ConfigError(
            f"{asked}() was called after an iteration over messages was broken off: "
            "take the rest of them with messages() first"
        )

    def _interrupted(self, error: BaseException) -> None:
        """This came while something was read. What may not have been given must not be committed."""
        if self._source is None or isinstance(error, GeneratorExit | MidstreamError):
            return
        found = self._source.last_batch()
        is_found = found is not None and len(found) > 0
        if self._source.standing.uncommitted and (self._state is State.DELIVERING or is_found):
            self._state = State.BROKEN

    # arrays

    def read(self) -> np.ndarray:
        """Every message of fixed size that has arrived, without waiting."""
        self._need_no_rest("read")
        try:
            self._come_back()
            return self._gather([])
        except BaseException as error:
            self._interrupted(error)
            raise

    def _gather(self, pieces: list[np.ndarray]) -> np.ndarray:
        """These messages, and those that have arrived after them."""
        self._look(raises=not pieces)
        before, self._state = self._state, State.DELIVERING
        source = self.source
        while (piece := source.next(self._size, self.assembly.streams)) is not None:
            rows = self.assembly.rows(piece) if isinstance(piece, Segment) else piece
            if len(rows):
                pieces.append(rows)
        if not pieces:
            self._state = _without_messages(before)
            return self._nothing
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def cycles(self, view: View, asked: str) -> Iterator[Any]:
        """In each cycle the messages in this view, until the end."""
        waiting, delivering, delivered, broken = self.waiting, State.DELIVERING, State.DELIVERED, State.BROKEN
        while not waiting.stopped:
            if self._rest is not None or self._state is broken:  # asked here, a cycle costs no call more
                self._need_no_rest(asked)
            cycle = self._cycle if self._view is view else self._prepare(view)
            self._state = delivered  # until the cycle commits that
            try:
                given = cycle()
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
        self._view, self._cycle = view, _declined
        if self._size and self._autocommit:
            attention, streams = self.waiting.attention, self.assembly.streams
            self._cycle = self.source.prepare(view, self._size, self._cadence, attention, streams)
        return self._cycle

    def _finish(self) -> np.ndarray:
        """The messages of a cycle that did not give them itself."""
        batch = self._found()
        if batch is None:
            self.wait()
            batch = self._nothing if self.waiting.stopped else self.read()
        self._batch = batch
        return batch

    def _found(self) -> np.ndarray | None:
        """What such a cycle has found, and what is behind it; None if it found nothing."""
        source = self.source
        if source.standing.status not in (Status.MORE, Status.UNFIT):
            return None
        batch = source.last_batch()
        return None if batch is None else self._gather([batch] if len(batch) else [])

    @property
    def batch(self) -> np.ndarray:
        """The messages of this cycle."""
        found = self.source.last_batch() if self._batch is None else self._batch
        return self._nothing if found is None else found

    # messages

    def messages(self) -> Iterator[Message]:
        """The messages that have arrived, one by one, without waiting."""
        if self._rest is None or self._state is State.BROKEN:
            self._come_back()
            self._rest = self._arrived()
        try:
            while (message := next(self._rest, None)) is not None:
                self._state = State.DELIVERING
                yield message
            self._rest = None
        except BaseException as error:
            self._interrupted(error)
            raise

    def _arrived(self) -> Iterator[Message]:
        if self._size:
            yield from self._each(self._rows.of(self._gather([])))
            return
        self._look()
        while True:
            before, self._state = self._state, State.DELIVERING
            segment = self.source.next(0, self.assembly.streams)
            messages = self.assembly.messages(segment) if isinstance(segment, Segment) else []
            if not messages:
                self._state = _without_messages(before)
            if segment is None:
                return
            yield from messages

    def _each(self, batch: np.ndarray) -> Iterator[Message]:
        """The messages of a batch of `_rows`, one by one."""
        size, name = self._size, self.assembly.sensor
        for offset, moment, connection, _, sensor, _, _, _, payload in batch.tolist():
            yield Message(name(sensor), connection, offset // size, moment, payload)

    def latest(self, sensor: str | None) -> Message | None:
        """The newest message of a sensor, or of any; None before the first."""
        for message in self.messages():
            self._latest[message.sensor] = message
        if sensor is not None:
            return self._latest.get(sensor)
        return max(self._latest.values(), key=lambda message: message.time, default=None)

    def iterate(self) -> Iterator[Message]:
        """Every message, until the end."""
        while not self.waiting.stopped:
            yield from self.messages()
            cycle = self._cycle if self._view is self._rows else self._prepare(self._rows)
            if self._state is State.DELIVERING:
                self._state = State.DELIVERED  # until the cycle commits that
            try:
                batch = cycle()
                if batch is None and (found := self._found()) is not None:
                    batch = self._rows.of(found)
                if batch is not None:
                    self._state, self._batch = State.DELIVERING, None
                    self._rest = self._each(batch)
            except BaseException as error:
                self._interrupted(error)
                raise
            if batch is None:
                self.wait()

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
        if self._rest is not None:
            return not waiting.stopped
        end = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            left = end - time.monotonic()
            ready = waiting.poll(self.source.fileno(), None if timeout is None else left)
            if waiting.stopped or ready or left <= 0:
                return ready and not waiting.stopped
            self._look()

    @property
    def _left(self) -> float:
        """Seconds until the application looks again, with a period."""
        return self._cadence.left(self.source.standing.newest if self._cadence.follow else 0)

    def _look(self, *, raises: bool = True) -> None:
        """Look at what has arrived. raises: if nothing ever will, which else is found by the next look."""
        try:
            self.source.look()
        except DetachedError as error:
            if raises and (opened := self._reopen(error)):
                self.assembly.abandon()
                self.open(opened)

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


def _declined() -> None:
    """A cycle, where each step is Python's."""
