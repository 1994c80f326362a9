"""What the sensors' own TCP says of each destination: do streams advance, or does it repeat itself?

A stream advances beyond what its sensor's window admits only if the destination acknowledges. What is sent
again, probes of a closed window and connections that nobody answers are what a sensor does where it does not.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from midstream.ebpf.control import Open
from midstream.ebpf.records import OUTCOMES

UNANSWERED = (0.2, 3.0)  # seconds after its SYN for which a connection without an answer counts
_DUPLICATE, _PURE_ACK = OUTCOMES.index("duplicate"), OUTCOMES.index("pure_ack")


@dataclass
class Trail:
    """Of a destination. advanced: when something last went on there, or the first look was taken."""

    advanced: float
    repeats: int = 0
    probes: int = 0
    unanswered: int = 0
    repeating: float | None = None
    streams: dict[int, tuple[bool, int]] = field(default_factory=dict)

    def follow(self, streams: dict[int, tuple[bool, int]], now: float) -> None:
        """Has anything gone on? Then what was repeated before means nothing."""
        before, self.streams = self.streams, streams
        if any(state > before[number] if number in before else state[0] for number, state in streams.items()):
            self.advanced, self.repeating = now, None
            self.repeats = self.probes = 0


class Witness:
    """Looks at the program's tables while a destination is under suspicion; it costs nothing before."""

    def __init__(self) -> None:
        self._trails: dict[int, Trail] = {}
        self._counted: tuple[int, int] | None = None

    def forget(self) -> None:
        """Nothing is suspected any more."""
        self._trails.clear()
        self._counted = None

    def look(
        self,
        destinations: Collection[int],
        opened: Sequence[Open],
        counters: np.ndarray,
        *,
        now: float,
        ns: int,
    ) -> None:
        """counters: a row for each sensor, and one for strangers. now: this daemon's own time. ns: the
        kernel's (CLOCK_MONOTONIC)."""
        duplicates, pure_acks = (int(counters[:-1, column].sum()) for column in (_DUPLICATE, _PURE_ACK))
        before = self._counted or (duplicates, pure_acks)
        repeats, probes = duplicates - before[0], pure_acks - before[1]
        self._counted = duplicates, pure_acks
        for destination in destinations:
            there = [one for one in opened if one.destination == destination]
            streams = {one.number: (one.acknowledged is not None, one.next) for one in there}
            trail = self._trails.get(destination)
            if trail is None:
                trail = self._trails[destination] = Trail(now, streams=streams)
            else:
                trail.repeats += repeats
                trail.probes += probes
                trail.follow(streams, now)
            shortest, longest = (seconds * 1e9 for seconds in UNANSWERED)
            trail.unanswered = sum(
                one.acknowledged is None and shortest <= ns - one.opened_ns <= longest for one in there
            )
            if trail.repeating is None and trail.repeats + trail.probes + trail.unanswered:
                trail.repeating = now

    def trail(self, destination: int) -> Trail | None:
        """None: nothing is suspected."""
        return self._trails.get(destination)
