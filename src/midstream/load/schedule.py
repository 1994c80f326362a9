"""When each message is due.

A plan becomes a stream of events, sorted by time, made a second at a time: a plan without end needs no more
memory than a short one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import Protocol

import numpy as np

from midstream.errors import ConfigError
from midstream.framing import Framing
from midstream.load.message import CONNECTIONS, sizes
from midstream.load.timing import Timing

EVENT = np.dtype([("at", "<u8"), ("until", "<u8"), ("connection", "<u4"), ("size", "<u4")])
"""struct event of load.c; times in nanoseconds after the start."""

_SECOND = 1_000_000_000
_FASTEST = 0.01  # messages a nanosecond, of a recording that is repeated


class Phase(StrEnum):
    """How the sensors' periods lie to each other."""

    SPREAD = "spread"  # evenly, as with clocks that know nothing of each other
    ALIGNED = "aligned"  # all at once, as with a common trigger


class Schedule(Protocol):
    """When each message of some connections is due: a `Plan`, or several."""

    @property
    def framings(self) -> Sequence[Framing]:
        """Of each connection."""

    @property
    def is_flood(self) -> bool:
        """Whether the receiver's TCP sets the rate of a connection."""

    def events(self) -> Iterator[np.ndarray]:
        """All events (EVENT) in the order of their times, in pieces of about a second."""


@dataclass(frozen=True)
class Plan:
    """`sensors` connections, each with `rate` messages a second of `size` bytes, for `seconds`.

    rate 0: as many as TCP takes. jitter: each message comes up to so many seconds after its time. burst: so
    many messages at once, in as many periods. timing: the times of a recording instead of a rate; a sensor
    has those of one of its flows, and they begin anew when they end. seed: of jitter and sizes. size: without
    the bytes of the frame. varies: in length framing, sizes differ from `size` by up to this part of it.
    Raises ConfigError.
    """

    sensors: int = 1
    rate: float = 1000.0
    size: int = 1024
    seconds: float = 10.0
    phase: Phase = Phase.SPREAD
    jitter: float = 0.0
    burst: int = 1
    timing: Timing | None = None
    seed: int = 0
    framing: Framing = "fixed"
    varies: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.sensors <= CONNECTIONS:
            raise ConfigError(f"sensors = {self.sensors}: expected 1 to {CONNECTIONS}")
        possible = sizes(self.framing)
        if self.size not in possible:
            odd = f" in steps of {possible.step}" if possible.step > 1 else ""
            raise ConfigError(
                f"size = {self.size}: expected {possible[0]} (sequence and time) to {possible[-1]} bytes a "
                f"message{odd}, with {self.framing} framing"
            )
        if self.varies and not (
            self.framing == "length"
            and 0 < self.varies < 1
            and self._sizes[0] in possible
            and self._sizes[1] in possible
        ):
            raise ConfigError(
                f"varies = {self.varies}: expected a part below 1 with length framing, which leaves sizes "
                f"from {possible[0]} to {possible[-1]} bytes"
            )
        if not 0 <= self.rate <= 1e6:
            raise ConfigError(f"rate = {self.rate}: expected messages a second up to 1e6, or 0 for no pause")
        if not 0 < self.seconds <= 1e9:
            raise ConfigError(f"seconds = {self.seconds}: expected more than 0")
        if self.timing and self.timing.messages / self.timing.period > _FASTEST and self.seconds > 1:
            raise ConfigError(
                f"seconds = {self.seconds}: the recording lasts {self.timing.period / _SECOND:g} s, too "
                "short to begin anew so often; replay it once"
            )
        if self.burst < 1:
            raise ConfigError(f"burst = {self.burst}: expected 1 (none) or more messages at once")
        if self.jitter and not 0 <= self.jitter <= self.burst / (self.rate or 1):
            raise ConfigError(
                f"jitter = {self.jitter} s: expected 0 up to the time between two bursts, "
                f"{self.burst / (self.rate or 1):g} s, so that messages keep their order"
            )

    @property
    def framings(self) -> Sequence[Framing]:
        return [self.framing] * self.sensors

    @property
    def is_flood(self) -> bool:
        return self.timing is None and self.rate == 0

    @property
    def messages(self) -> int:
        """How many messages are due, of all sensors; 0 for a flood, which has no plan."""
        return 0 if self.is_flood else sum(len(chunk) for chunk in self.events())

    def events(self) -> Iterator[np.ndarray]:
        if self.is_flood:
            yield self._flood()
            return
        random = np.random.default_rng(self.seed)
        end = round(self.seconds * _SECOND)
        reach = round(self.jitter * _SECOND)
        held = np.empty(0, EVENT)  # what jitter may have put behind the next piece's first message
        for begin in range(0, end, _SECOND):
            piece = self._between(begin, min(begin + _SECOND, end))
            if reach:
                groups = -(-len(piece) // self.burst)
                late = random.integers(0, reach, groups + 1, dtype=np.uint64)
                # a burst stays together: those of a connection that have the same time
                _, which = np.unique(piece[["at", "connection"]], return_inverse=True)
                piece["at"] += late[which.ravel() % len(late)]
            ready = np.concatenate([held, piece])
            ready = ready[np.argsort(ready["at"], kind="stable")]
            cut = np.searchsorted(ready["at"], begin + _SECOND)
            held = ready[cut:]
            yield ready[:cut]
        yield held

    def _between(self, begin: int, end: int) -> np.ndarray:
        """The events whose times, without jitter, are in [begin, end), sorted."""
        pieces = []
        for connection in range(self.sensors):
            times = self._times(connection, begin, end)
            piece = np.zeros(len(times), EVENT)
            piece["at"], piece["connection"], piece["size"] = times, connection, self.size
            if self.varies:
                random = np.random.default_rng((self.seed, connection, begin))
                smallest, largest = self._sizes
                piece["size"] = random.integers(smallest, largest + 1, len(times))
            pieces.append(piece)
        events = np.concatenate(pieces)
        return events[np.argsort(events["at"], kind="stable")]

    def _times(self, connection: int, begin: int, end: int) -> np.ndarray:
        if self.timing is not None:
            return self.timing.between(connection, begin, end)
        gap = self.burst * _SECOND / self.rate  # between two bursts
        phase = gap * connection / self.sensors if self.phase == Phase.SPREAD else 0.0
        # Computed from the burst's number, never added up: message n is due at phase + n * gap.
        first, last = (int(np.ceil(max(0.0, time - phase) / gap)) for time in (begin, end))
        numbers = np.arange(max(0, first - 1), last + 1)
        times = np.floor(phase + numbers * gap).astype(np.uint64)
        times = times[(times >= begin) & (times < end)]
        return np.repeat(times, self.burst)

    @property
    def _sizes(self) -> tuple[int, int]:
        """The smallest and the largest message."""
        difference = int(self.size * self.varies)
        return self.size - difference, self.size + difference

    def _flood(self) -> np.ndarray:
        events = np.zeros(self.sensors, EVENT)
        events["until"] = round(self.seconds * _SECOND)
        events["connection"], events["size"] = np.arange(self.sensors), self.size
        return events


@dataclass(frozen=True)
class JointPlan:
    """Plans at once, of the same length: the connections of the first, then those of the next."""

    plans: Sequence[Plan]

    def __post_init__(self) -> None:
        if len({plan.seconds for plan in self.plans}) != 1:
            raise ConfigError("plans at once: all have to last the same number of seconds")

    @property
    def sensors(self) -> int:
        """Connections."""
        return sum(plan.sensors for plan in self.plans)

    @property
    def framings(self) -> Sequence[Framing]:
        return [framing for plan in self.plans for framing in plan.framings]

    @property
    def is_flood(self) -> bool:
        return any(plan.is_flood for plan in self.plans)

    def events(self) -> Iterator[np.ndarray]:
        first = np.cumsum([0, *(plan.sensors for plan in self.plans)])
        nothing = np.empty(0, EVENT)
        # The pieces of all are of the same seconds.
        for pieces in zip_longest(*(plan.events() for plan in self.plans), fillvalue=nothing):
            moved = [piece.copy() for piece in pieces]
            for piece, offset in zip(moved, first, strict=False):
                piece["connection"] += np.uint32(offset)
            every = np.concatenate(moved)
            yield every[np.argsort(every["at"], kind="stable")]
