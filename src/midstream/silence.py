"""Which sensors have been silent for longer than their deadline."""

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

_NANOSECONDS = 10**9


class Silence:
    """deadline: seconds within which data of each sensor is expected; 0: whenever. sensors(): how many there
    are. clock(): CLOCK_MONOTONIC, nanoseconds. all_send: does each of them? Else, as soon as one has sent
    something, only those are missed that have: a stream with a name is not every sensor's."""

    def __init__(
        self,
        deadline: float,
        sensors: Callable[[], int],
        clock: Callable[[], int] = time.monotonic_ns,
        *,
        all_send: bool = True,
    ) -> None:
        self.deadline, self._sensors, self._clock = deadline, sensors, clock
        self._all_send = all_send
        self.begin()

    def begin(self) -> None:
        """Nobody was silent before now."""
        self._since = self._clock()
        self._told: frozenset[int] = frozenset()

    def left(self, heard: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
        """Seconds that each sensor has left. heard: when its last data came, 0: none has."""
        known = heard[: self._sensors()]
        last = np.maximum(known.astype(np.int64), self._since)
        left: npt.NDArray[np.float64] = self.deadline - (self._clock() - last) / _NANOSECONDS
        if not self._all_send and known.any():
            left[known == 0] = np.inf
        return left

    def silent(self, left: npt.NDArray[np.float64]) -> frozenset[int]:
        """The positions of those that have none."""
        return frozenset(np.flatnonzero(left <= 0).tolist()) if self.deadline else frozenset()

    def is_news(self, left: npt.NDArray[np.float64]) -> bool:
        """Has one fallen silent since this was asked?"""
        before, self._told = self._told, self.silent(left)
        return not self._told <= before

    def until_next(self, left: npt.NDArray[np.float64]) -> float:
        """Seconds until the next one falls silent."""
        return float(left[left > 0].min(initial=np.inf))
