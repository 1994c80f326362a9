"""The clock: messages carry the time of each host, and latencies between hosts compare them."""

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from midstream.doctor.finding import Finding, ok, unknown, warning

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_COMM = 15  # bytes of a program's name that the kernel keeps

# What may set the clock, and how each is asked what it does.
_SERVICES = {
    "chronyd": "chronyc sources",
    "ntpd": "ntpq -p",
    "systemd-timesyncd": "timedatectl timesync-status",
    "ptp4l": "pmc -u -b 0 'GET TIME_STATUS_NP'",
}
_UNITS = {
    "chronyd": ("chrony", "chronyd"),
    "ntpd": ("ntpsec", "ntpd"),
    "ptp4l": ("ptp4l", "ptp4l@eth0"),
}
_FOLDERS = [Path(name) for name in ("/usr/sbin", "/usr/bin", "/sbin", "/usr/lib/systemd", "/lib/systemd")]


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
    """synchronised: None if the kernel does not say. error_us: the greatest possible error, by the kernel.
    running, installed: a program of _SERVICES, "" if there is none. systemd: whether that is in charge."""

    synchronised: bool | None
    error_us: int
    running: str = ""
    installed: str = ""
    systemd: bool = False


def read() -> Clock:
    clock = _Timex()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(clock))
    if state < 0:
        return Clock(None, 0)
    found = set(_programs())
    return Clock(
        state != _TIME_ERROR,
        int(clock.maxerror),
        next((name for name in _SERVICES if name[:_COMM] in found), ""),
        next((name for name in _SERVICES if any((folder / name).exists() for folder in _FOLDERS)), ""),
        Path("/run/systemd/system").is_dir(),
    )


def check(clock: Clock) -> Finding:
    if clock.synchronised is None:
        return unknown("clock", "the kernel does not say whether it is synchronised")
    if clock.synchronised:
        return ok("clock", f"synchronised, within {clock.error_us / 1000:.1f} ms")
    return warning(
        "clock",
        "not synchronised: times of different hosts cannot be compared",
        "NTP or PTP on every host",
        _advice(clock),
    )


def _advice(clock: Clock) -> str:
    if clock.running:
        return f"{_SERVICES[clock.running]}  # {clock.running} runs: does it reach a server?"
    if clock.installed == "systemd-timesyncd" and clock.systemd:
        return "timedatectl set-ntp true"
    if clock.installed and clock.systemd:
        # Distributions call its unit by one name or the other.
        return " || ".join(f"systemctl enable --now {unit}" for unit in _UNITS[clock.installed])
    if clock.installed:
        return f"start {clock.installed}: nothing here starts services by itself"
    return "install chrony or, for PTP, linuxptp; in a container, set the clock of the machine that it is on"


def _programs() -> Iterator[str]:
    """The names of the programs that run."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it has just ended
            yield path.read_text().strip()
