"""Several sources as one: the streams of a Hardworker that reads them all."""

import select
import time
from collections import deque
from collections.abc import Callable, Mapping

import numpy as np

from midstream.errors import ConfigError
from midstream.hardworker.cadence import Cadence
from midstream.hardworker.messages import Format, Message, SensorAddresses, Totals
from midstream.hardworker.source import DECLINED, Beginning, Cycle, Source, Standing
from midstream.hardworker.views import View
from midstream.hardworker.watch import DetachedError

_GLANCE = 0.001  # seconds between two looks at streams of which nothing is left, while others are read
_NEVER = np.iinfo(np.uint64).max


class MergedSource:
    """The messages of several streams, of which each keeps its order.

    They take turns: where there is something of several, each gives a message. So none waits for more than
    one message of each other, however much of those there is.

    sources: by the names of their streams. form(): of a stream's messages. deadlines: seconds, by stream; 0:
    it has none. reopen(): a stream's source in the place of one that is gone; as a Reader's.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        form: Callable[[str, SensorAddresses], Format],
        deadlines: Mapping[str, float],
        reopen: Callable[[str, DetachedError], Source | None],
    ) -> None:
        self._sources, self._form, self._deadlines = dict(sources), form, deadlines
        self._reopen = reopen
        self._before = Totals()  # of sources that are gone
        self._turns: deque[Source] = deque()  # those to be asked, in turn,
        self._left: set[Source] = set()  # and of these those that are not at the end of the look
        self._due = 0.0  # when the others are looked at
        self._timers, self._events = select.epoll(), select.epoll()
        for source in self._sources.values():
            self._watch(source)

    def _watch(self, source: Source) -> None:
        self._events.register(source.fileno(), select.EPOLLIN)
        if (timer := source.standing.timer) >= 0:
            self._timers.register(timer, select.EPOLLIN)

    def begin(self, form: Format, cadence: Cadence, attention: int) -> None:
        """Each stream has a form of its own; see Source."""
        self._addresses, self._cadence, self._attention = form.addresses, cadence, attention
        for name in self._sources:
            self._begin(name)

    def _begin(self, name: str) -> None:
        form = self._form(name, self._addresses)
        self._sources[name].begin(form, self._cadence, self._attention)

    def look(self) -> bool:
        """Raises DetachedError once there is nothing of the others either; see Source."""
        found, lost = False, None
        for name, source in list(self._sources.items()):
            try:
                found |= source.look()
            except DetachedError as error:
                try:
                    self._renew(name, error)
                except DetachedError as never:
                    lost = never
        if lost and not found:
            raise lost
        self._turns.extend(source for source in self._sources.values() if source not in self._turns)
        self._left = set(self._turns)
        self._due = time.monotonic() + _GLANCE
        return found

    def _renew(self, name: str, error: DetachedError) -> None:
        """Go on with another source, if there is one."""
        if opened := self._reopen(name, error):
            old, self._sources[name] = self._sources[name], opened
            self._watch(opened)
            self._begin(name)
            if old in self._turns:
                self._turns.remove(old)
            old.close()
            self._before += old.standing.totals
            self._addresses.renew()

    def message(self) -> Message | None:
        """The next message of the stream whose turn it is; None at the end of what `look` found.

        What has come since of streams that were at their end is given, too: they do not wait for the others.
        """
        turns, left = self._turns, self._left
        while left:
            if time.monotonic() >= self._due:
                self._glance()
            source = turns[0]
            if message := source.message():
                turns.rotate(-1)
                return message
            turns.popleft()
            left.discard(source)
        return None

    def _glance(self) -> None:
        for source in self._sources.values():
            if source not in self._turns:
                try:
                    source.look()
                except DetachedError:
                    continue  # `look` is told, too
                self._turns.appendleft(source)
        self._due = time.monotonic() + _GLANCE

    def rows(self) -> np.ndarray:
        """There are none: raises ConfigError."""
        raise ConfigError("the rows of an array are messages of one stream; read one by itself")

    def prepare(self, view: View | None) -> Cycle:
        """What spans sources is done step by step."""
        del view
        return DECLINED

    def commit(self) -> bool:
        """Each stream is committed by itself. Whoever is killed meanwhile gets what was read of the others
        again."""
        done = [source.commit() for source in self._sources.values()]
        return all(done)

    @property
    def standing(self) -> Standing:
        """Full is the fullest."""
        each = [source.standing for source in self._sources.values()]
        return Standing(
            any(one.uncommitted for one in each),
            max(one.newest for one in each),
            max(one.fill for one in each),
            self._timers.fileno(),
            sum(one.connections for one in each),
            sum((one.totals for one in each), self._before),
            self._heard,
        )

    def _heard(self) -> np.ndarray:
        """As if each stream had the shortest deadline: of a sensor the time by which it is silent first. It
        is not missed in a stream that it never sent."""
        deadlines = {name: deadline for name, deadline in self._deadlines.items() if deadline}
        times = []
        for name, deadline in deadlines.items():
            heard = self._sources[name].standing.heard()
            later = np.uint64(round((deadline - min(deadlines.values())) * 1e9))
            times.append(np.where(heard, heard + later, _NEVER))
        earliest = np.minimum.reduce(times) if times else np.zeros(0, "<u8")
        return np.where(earliest == _NEVER, 0, earliest)

    def fileno(self) -> int:
        """Of an epoll set of all of them."""
        return self._events.fileno()

    def beginnings(self) -> list[Beginning]:
        """Of all streams."""
        return [begun for source in self._sources.values() for begun in source.beginnings()]

    def close(self) -> None:
        """Let go of all."""
        for source in self._sources.values():
            source.close()
        self._events.close()
        self._timers.close()
