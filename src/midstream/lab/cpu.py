"""Who used the CPU: the hardworker's own core, its NAPI thread, and exact readings of both.

With threaded NAPI the receive work of an interface, XDP program included, runs in one kernel thread instead
of in whatever process a softirq happens to interrupt. The hardworker's thread and application have a core of
their own; what midstream costs the hardworker is exactly the CPU time of those two.
"""

import os
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from midstream.closing import Closing
from midstream.errors import LabError

_ATTEMPTS = 5  # to see which thread a NAPI instance got


class _Lab(Protocol):
    """What is needed of a lab here."""

    @property
    def hardworker_napi(self) -> int: ...


@dataclass(frozen=True)
class Usage:
    """CPU time in microseconds; `lost`: processes that ended, of which only the last sample counts."""

    napi_us: float
    application_us: float
    lost: tuple[int, ...]

    @property
    def total_us(self) -> float:
        """Of both, microseconds."""
        return self.napi_us + self.application_us


class Meter(Closing):
    """The CPU time that the hardworker's NAPI thread and the processes `pids` use from `start` to `stop`.

    Exact to the nanosecond by the kernel's own account (the figure of /proc/PID/schedstat, but up to date
    while the process runs, and with the threads that ended in between). Child processes do not count. A
    process that ended can be read until its parent waits for it; after that its last sample stands, so call
    `sample` before you wait.

        with Meter(lab, [hardworker.pid]) as meter:
            ...
        meter.usage().total_us
    """

    def __init__(self, lab: _Lab, pids: Iterable[int] = ()) -> None:
        self._napi = lab.hardworker_napi
        self._pids = tuple(pids)
        self._first: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._lost: set[int] = set()

    def start(self) -> None:
        """Take the first reading. Raises LabError if a process is not there."""
        self._lost.clear()
        for pid in (self._napi, *self._pids):
            try:
                self._first[pid] = cpu_time_ns(pid)
            except OSError:
                raise LabError(f"process {pid} is not there: nothing to measure") from None
        self._last = dict(self._first)

    def sample(self) -> None:
        """Take another reading; the last one counts."""
        for pid in self._first:
            try:
                self._last[pid] = cpu_time_ns(pid)
            except OSError:
                self._lost.add(pid)

    close = stop = sample

    def usage(self) -> Usage:
        """What was used between `start` and the last reading."""
        used = {pid: (self._last[pid] - first) / 1000 for pid, first in self._first.items()}
        return Usage(used[self._napi], sum(used[pid] for pid in set(self._pids)), tuple(sorted(self._lost)))

    def __enter__(self) -> Self:
        self.start()
        return self


def cpu_time_ns(pid: int) -> int:
    """Nanoseconds of CPU that process `pid` used, with its ended threads. Raises OSError if it is gone."""
    return time.clock_gettime_ns((~pid << 3) | 2)  # the clock that clock_getcpuclockid(3) gives for a process


def cores() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The hardworker's core, and those of all others: the first and the rest (a single core is shared)."""
    first, *rest = sorted(os.sched_getaffinity(0))
    return (first,), tuple(rest) or (first,)


def pin(pid: int, cpus: Collection[int]) -> None:
    """Keep every thread of process `pid` on `cpus`; threads that it starts later inherit that."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            os.sched_setaffinity(int(thread), cpus)
        except ProcessLookupError:
            continue


def start_napi_thread(interface: str, cpus: Collection[int]) -> int:
    """Give `interface` (up, one receive queue) threaded NAPI; return the thread's pid, pinned to `cpus`.

    Raises LabError: the kernel has no threaded NAPI (before 5.12), or the interface no NAPI (GRO is off).
    """
    threaded = Path("/sys/class/net", interface, "threaded")
    for _ in range(_ATTEMPTS):
        before = set(os.listdir("/proc"))
        try:
            threaded.write_text("1")
        except OSError as error:
            raise LabError(
                f"{interface}: no threaded NAPI ({error.strerror}); the lab needs Linux 5.12 or later"
            ) from None
        new = [int(entry) for entry in set(os.listdir("/proc")) - before if entry.isdigit()]
        threads = [pid for pid in new if thread_name(pid).startswith(f"napi/{interface}-")]
        if len(threads) == 1:
            pin(threads[0], cpus)
            return threads[0]
        if threads:  # the lab of another world came up at the same moment
            threaded.write_text("0")
    raise LabError(
        f"{interface}: expected one NAPI thread to start, found {len(threads)}; is it up, with GRO on?"
    )


def prefer(pid: int) -> None:
    """Let a thread run before every ordinary one: a switch and its wires wait for no host's programs."""
    os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))


def thread_name(pid: int) -> str:
    """The name of a process or kernel thread, empty if it is not there."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
