"""Is a ring still written? Nobody tells its reader that the program was detached, so the reader looks.

It looks now and then while nothing arrives: a ring in which something was stored since is a ring in use.
"""

import ctypes
import os
import time

from midstream.ebpf.ring_server import RingDescriptors
from midstream.errors import KernelError

INTERVAL = 0.3  # seconds between two looks

_CLOCK_MONOTONIC = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK, TFD_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class DetachedError(KernelError):
    """Nothing writes into the ring any more, and what was in it has been read.

    gone: it never will be written again; otherwise whoever attaches the program goes on with this ring.
    """

    def __init__(self, message: str, *, gone: bool) -> None:
        super().__init__(message)
        self.gone = gone


class Watch:
    """Looks after a ring. `timer`: a descriptor that polls readable when it is time to look."""

    def __init__(self, ring: RingDescriptors) -> None:
        self._ring = ring
        self._doubt: tuple[int, float] | None = None
        self.timer = _timer()
        self.rest()

    def close(self) -> None:
        """Close the timer."""
        os.close(self.timer)

    def rest(self) -> None:
        """Begin another interval."""
        # Shorter than the timer's: whoever is woken by that finds that it is due.
        self.due = time.monotonic() + INTERVAL / 2
        _start(self.timer, INTERVAL)

    def check(self, stored: int) -> None:
        """Raise DetachedError if nothing writes into the ring.

        stored: the position up to which something did. An interface that lost its program is given one
        interval: the daemon attaches it again.
        """
        if self._ring.is_gone:
            raise self._detached("its program was detached", gone=True)
        if self._ring.is_linked:
            self._doubt = None
            return
        now = time.monotonic()
        if self._doubt is None or self._doubt[0] != stored:
            self._doubt = stored, now
        elif now - self._doubt[1] >= 0.9 * INTERVAL:
            raise self._detached("its program is no longer on the interface", gone=False)

    def _detached(self, why: str, *, gone: bool) -> DetachedError:
        return DetachedError(
            f"{self._ring.place}: this application reads a ring that nothing writes into any more: {why}. "
            "All that was in it has been delivered. Run `midstream attach hardworker`, unless the daemon has "
            "attached it again (`midstream status`); then start this application anew, or let it follow by "
            "itself: Hardworker(..., follow=True)",
            gone=gone,
        )


class _Interval(ctypes.Structure):
    """struct itimerspec: the interval, and the time until the first expiration."""

    _fields_ = tuple(
        (name, ctypes.c_long) for name in ("seconds", "nanoseconds", "first_seconds", "first_nanoseconds")
    )


def _timer() -> int:
    """A timer (timerfd_create(2)); Python has it from 3.13 on."""
    timer: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
    if timer < 0:
        raise KernelError(f"no timer can be made ({os.strerror(ctypes.get_errno())})")
    return timer


def _start(timer: int, interval: float) -> None:
    """Let it expire again and again, from now on."""
    seconds, nanoseconds = divmod(round(interval * 1e9), 10**9)
    spec = _Interval(seconds, nanoseconds, seconds, nanoseconds)
    _libc.timerfd_settime(timer, 0, ctypes.byref(spec), None)
