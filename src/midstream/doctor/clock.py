"""The clock: messages carry the time of each host, and latencies between hosts compare them."""

import ctypes
from dataclasses import dataclass

from midstream.doctor.finding import Finding, ok, unknown, warning

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


class _Timex(ctypes.Structure):
    """struct timex of linux/timex.h; only `modes` is written, as 0: change nothing."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("rest", ctypes.c_long * 32),
    )


@dataclass(frozen=True, slots=True)
class Clock:
    """synchronised: None if the kernel does not say. error_us: the greatest possible error, by the kernel."""

    synchronised: bool | None
    error_us: int


def read() -> Clock:
    clock = _Timex()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(clock))
    if state < 0:
        return Clock(None, 0)
    return Clock(state != _TIME_ERROR, int(clock.maxerror))


def check(clock: Clock) -> Finding:
    if clock.synchronised is None:
        return unknown("clock", "the kernel does not say whether it is synchronised")
    if clock.synchronised:
        return ok("clock", f"synchronised, within {clock.error_us / 1000:.1f} ms")
    return warning(
        "clock",
        "not synchronised: times of different hosts cannot be compared",
        "NTP or PTP on every host",
        "timedatectl set-ntp true  # or chrony, or ptp4l",
    )
