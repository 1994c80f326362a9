"""A clock that stands still while this daemon does not run: what it missed meanwhile is no evidence.

A daemon that was stopped, or that waited for a busy core, has heard nothing, and asked nothing. So each beat
counts at most twice what it should have taken, whatever the clocks of the host did.
"""

import time
from collections.abc import Callable


class Awake:
    """Seconds of this daemon's own time. `longest`: what may lie between two ticks and counts."""

    def __init__(self, longest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest, self._clock = longest, clock
        self._passed, self._ticked = 0.0, clock()

    def now(self) -> float:
        return self._passed + min(self._clock() - self._ticked, self._longest)

    def tick(self) -> None:
        """This daemon runs."""
        self._passed, self._ticked = self.now(), self._clock()
