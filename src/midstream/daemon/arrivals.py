"""When the sensors' bytes came to the hardworker, for the logs to tell it beside their own times.

The ring's records have the program's time stamps, and nobody else does. They are read once a second, cost the
program and the application nothing, and are told by teller.py. What is not told in time is not known to the
log: nothing here is kept on disk.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from midstream.ebpf.records import RECORD
from midstream.network import MAX_SENSORS
from midstream.told import ArrivalTimes, HeldConnection

MOST = 1 << 18  # records of which no logger has heard yet, and as many whose connection is not known yet
AT_ONCE = 1 << 15  # records in a message
PIECES = 256  # of a message
LARGEST = 1 << 12  # records of a piece

_STEP = np.dtype([("bytes", "<u4"), ("ns", "<u4")])  # as told.STEP
_LONGEST = (1 << 32) - 1  # nanoseconds from one step to the next

Known = tuple[HeldConnection, int]
"""A connection, and where it goes."""


class ArrivalBook:
    """`read` gives the heads of the records that are new in each stream's ring (ebpf/heads.py). heard: when
    the last data of each sensor came, per stream, as of looked_ns: both CLOCK_MONOTONIC, nanoseconds."""

    def __init__(
        self,
        read: Callable[[], Mapping[str, npt.NDArray[np.void]]],
        *,
        most: int = MOST,
        clocks: Callable[[], tuple[int, int]] = lambda: (time.time_ns(), time.monotonic_ns()),
    ) -> None:
        self._read, self._most, self._clocks = read, most, clocks
        self.heard = defaultdict[str, npt.NDArray[np.uint64]](lambda: np.zeros(MAX_SENSORS, np.uint64))
        self.looked_ns = self._clocks()[1]
        self._known: dict[int, Known] = {}
        self._strange = np.empty(0, RECORD)  # of connections of which the program has not been asked since
        self._untold: deque[tuple[int, ArrivalTimes]] = deque()  # by destination
        self._steps = 0

    def see(self, known: Mapping[int, Known]) -> None:
        """The connections that are open now, or have ended since this was said last, by their numbers."""
        self._known = dict(known)
        self._note(self._strange)
        self._strange = self._strange[:0]

    def collect(self) -> None:
        """What has come since. Raises KernelError."""
        now, rings = self._clocks()[1], self._read()
        for stream, heads in rings.items():
            data = heads[heads["length"] > 0]
            self.heard[stream][data["sensor"]] = data["time"]  # of several the last one stays
            strange = self._note(data)
            self._strange = np.concatenate([self._strange, strange])[-self._most :]
        self.looked_ns = now

    def untold(self, concerns: Callable[[int], bool]) -> list[ArrivalTimes]:
        """What no logger has heard of connections whose destination is of concern: what a message holds."""
        found: list[ArrivalTimes] = []
        steps = 0
        for destination, arrivals in self._untold:
            if concerns(destination):
                steps += arrivals.count
                if found and (steps > AT_ONCE or len(found) == PIECES):
                    break
                found.append(arrivals)
        return found

    def confirm(self, told: Iterable[ArrivalTimes]) -> None:
        """A logger has them."""
        gone = {id(each) for each in told}
        self._untold = deque(each for each in self._untold if id(each[1]) not in gone)
        self._steps = sum(each.count for _, each in self._untold)

    def _note(self, heads: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Those whose connection is not known are given back."""
        numbers = heads["connection"]
        for number in np.unique(numbers).tolist():
            if number in self._known:
                stream, destination = self._known[number]
                for arrivals in self._pieces(stream, heads[numbers == number]):
                    self._untold.append((destination, arrivals))
                    self._steps += arrivals.count
        while self._steps > self._most:
            self._steps -= self._untold.popleft()[1].count
        return heads[~np.isin(numbers, list(self._known))]

    def _pieces(self, stream: HeldConnection, heads: npt.NDArray[np.void]) -> Iterator[ArrivalTimes]:
        """What lies one behind the other in the stream, and came in this order."""
        wall, running = self._clocks()
        starts, times = heads["offset"].astype("i8"), heads["time"].astype("i8")
        ends = starts + heads["length"]
        passed = np.diff(times)
        breaks = np.flatnonzero((starts[1:] != ends[:-1]) | (passed < 0) | (passed > _LONGEST)) + 1
        bounds = [0, *breaks.tolist(), len(heads)]
        for first, stop in pairwise(bounds):
            for begin in range(first, stop, LARGEST):
                part = slice(begin, min(begin + LARGEST, stop))
                steps = np.zeros(part.stop - begin, _STEP)
                steps["bytes"] = heads["length"][part]
                steps["ns"][1:] = passed[begin : part.stop - 1]
                yield ArrivalTimes(
                    stream.sensor,
                    stream.port,
                    stream.first,
                    stream.opened_ns,
                    start=int(starts[begin]),
                    end=int(ends[part.stop - 1]),
                    time_ns=int(times[begin]) + wall - running,
                    ahead_ns=0,
                    error_ns=0,
                    steps=steps.tobytes(),
                    stream=stream.stream,
                )
