"""What a hardworker has told a logger: how far it held each connection, and what waits in its spool.

The logger keeps it beside what it stores, so that a log knows what it lacks. Nothing here says what is in
the log.
"""

import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from midstream.config import DATA
from midstream.values import stream_name

OPEN, CLOSED, RESET, LOST, UNTOLD = "open", "closed", "reset", "lost", "untold"
"""States of what was held. lost: nobody saw its end, and the hardworker has it no more. untold: a sum of
connections that the hardworker could not tell one by one."""

STEP = struct.Struct("<II")
"""Of ArrivalTimes: how many bytes came at once, and how many nanoseconds after those before them."""

UNKNOWN = -1  # in the place of a connection's first sequence number


@dataclass(frozen=True, slots=True)
class HeldConnection:
    """A connection as the hardworker had it. opened_ns is by its clock; first is TCP's sequence number of the
    connection's first byte. here: it went to the hardworker's own spool. Every byte before `bytes` was held.
    stream: the kind of its messages."""

    sensor: str
    port: int
    first: int
    opened_ns: int
    bytes: int
    state: str
    here: bool
    stream: str = DATA

    @classmethod
    def parse(cls, told: Any) -> Self:
        """What was said on the line. Raises ValueError."""
        sensor, port, first, opened_ns, held, state, here, *stream = told
        numbers = (port, first, opened_ns, held)
        if not (isinstance(sensor, str) and all(type(each) is int for each in numbers)):
            raise ValueError(f"no connection: {told}")
        if state not in (OPEN, CLOSED, RESET, LOST, UNTOLD) or held < 0:
            raise ValueError(f"no connection: {told}")
        return cls(sensor, port, first, opened_ns, held, state, bool(here), _stream(stream))

    @property
    def said(self) -> tuple[Any, ...]:
        """As it is said on the line."""
        return _spoken(self.values)

    @property
    def values(self) -> tuple[Any, ...]:
        """As columns of the table `held`."""
        place = (self.sensor, self.port, self.first, self.opened_ns)
        return *place, self.bytes, self.state, self.here, self.stream


@dataclass(frozen=True, slots=True)
class Pending:
    """Bytes `start` to `end` of a connection are in the spool, and not all of them in the log yet. first is
    UNKNOWN where the spool does not know it; opened_ns and oldest_ns are by the hardworker's clock."""

    sensor: str
    port: int
    first: int
    opened_ns: int
    start: int
    end: int
    messages: int
    oldest_ns: int
    stream: str = DATA

    @classmethod
    def parse(cls, told: Any) -> Self:
        """What was said on the line. Raises ValueError."""
        return cls(*_parted(told, 7, "nothing pending"))

    @property
    def said(self) -> tuple[Any, ...]:
        """As it is said on the line."""
        return _spoken(self.values)

    @property
    def values(self) -> tuple[Any, ...]:
        """As columns of the table `pending`."""
        place = (self.sensor, self.port, self.first, self.opened_ns)
        return *place, self.start, self.end, self.messages, self.oldest_ns, self.stream


@dataclass(frozen=True, slots=True)
class ArrivalTimes:
    """When bytes `start` to `end` of a connection came to the hardworker. steps: each as STEP, the first at
    time_ns, since 1970 by the hardworker's clock; opened_ns is by it too. ahead_ns: by how much the logger's
    clock was ahead of it then, and error_ns by how much that may be wrong."""

    sensor: str
    port: int
    first: int
    opened_ns: int
    start: int
    end: int
    time_ns: int
    ahead_ns: int
    error_ns: int
    steps: bytes
    stream: str = DATA

    @classmethod
    def parse(cls, told: Any) -> Self:
        """What was said on the line, and the steps behind it. Raises ValueError."""
        *said, steps = told
        *known, stream = _parted(said, 8, "no arrivals")
        found = cls(*(*known, steps, stream))
        whole = len(steps) % STEP.size == 0
        if not whole or sum(size for size, _ in STEP.iter_unpack(steps)) != found.end - found.start:
            raise ValueError(f"no arrivals: {told}")
        return found

    @property
    def count(self) -> int:
        """How many steps there are."""
        return len(self.steps) // STEP.size

    @property
    def said(self) -> tuple[Any, ...]:
        """As it is said on the line, where the steps follow."""
        return _spoken(self._columns)

    @property
    def _columns(self) -> tuple[Any, ...]:
        place = (self.sensor, self.port, self.first, self.opened_ns, self.start, self.end)
        return *place, self.time_ns, self.ahead_ns, self.error_ns, self.stream

    @property
    def values(self) -> tuple[Any, ...]:
        """As columns of the table `arrivals`."""
        *said, stream = self._columns
        return *said, self.steps, stream


class Forgotten(NamedTuple):
    """Messages of a sensor's stream that a full spool has forgotten, in the order of the columns of that
    name.

    first_ns and last_ns: when the first and the last of them was received. It is known by its sensor, its
    stream and first_ns, and grows. bytes: of their payload.
    """

    sensor: str
    first_ns: int
    last_ns: int
    messages: int
    bytes: int
    stream: str = DATA

    @classmethod
    def parse(cls, told: Any) -> Self:
        """What was said on the line. Raises ValueError."""
        return cls(*_parted(told, 4, "nothing forgotten"))


def _spoken(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A logger's daemon of a version before knows one stream only, and expects no name of it."""
    return values[:-1] if values[-1] == DATA else values


def _parted(said: Any, count: int, fault: str) -> tuple[Any, ...]:
    """A sensor, so many numbers, and the stream. Raises ValueError, which begins with `fault`."""
    sensor, numbers = said[0], said[1 : count + 1]
    if not (isinstance(sensor, str) and len(numbers) == count and all(type(each) is int for each in numbers)):
        raise ValueError(f"{fault}: {said}")
    return sensor, *numbers, _stream(said[count + 1 :])


def _stream(said: Any) -> str:
    """The last word: a version before has said none, as it had only one stream."""
    if not said:
        return DATA
    (name,) = said
    if not isinstance(name, str):
        raise ValueError(f"no name of a stream: {name!r}")
    return stream_name(name)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """All that a log was told. Empty: no hardworker has ever told it anything."""

    held: list[HeldConnection] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    forgotten: list[Forgotten] = field(default_factory=list)
