"""What the hardworker's core did: readings from /proc, taken before and after the measured window.

All of it is counted by the kernel anyway: nothing runs during the window that would weigh on it.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from midstream.lab.cpu import cpu_time_ns

_IDLE = re.compile(r"^cpu: (\d+)$|^ +\.idle_sleeptime +: (\d+) nsecs$", re.MULTILINE)
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PROCESSOR, _FLAGS = 39, 9  # fields of /proc/PID/stat, see proc(5)
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD

Tasks = dict[int, tuple[str, int]]
"""Process ids, with name and CPU time in nanoseconds."""


@dataclass(frozen=True)
class Reading:
    """The core's counters at one moment; nanoseconds, or counts since the machine started.

    voluntary, involuntary: context switches of the processes that were asked for. forks: of the machine.
    """

    time: int
    idle: int
    interrupts: int
    forks: int
    voluntary: int
    involuntary: int


@dataclass(frozen=True)
class Activity:
    """What happened on the core between two readings. busy_ns: time in which it was not idle."""

    seconds: float
    busy_ns: int
    interrupts: int
    forks: int
    voluntary: int
    involuntary: int


def read(core: int, pids: Iterable[int]) -> Reading:
    """Look at a core now; context switches are those of `pids`, all their threads."""
    voluntary, involuntary = switches(pids)
    disturb(core)
    return Reading(
        time=time.monotonic_ns(),
        idle=idle_ns(core),
        interrupts=interrupts(core),
        forks=forks(),
        voluntary=voluntary,
        involuntary=involuntary,
    )


def between(before: Reading, after: Reading) -> Activity:
    """What happened between two readings."""
    elapsed = after.time - before.time
    return Activity(
        seconds=elapsed / 1e9,
        busy_ns=max(0, elapsed - (after.idle - before.idle)),
        interrupts=after.interrupts - before.interrupts,
        forks=after.forks - before.forks,
        voluntary=after.voluntary - before.voluntary,
        involuntary=after.involuntary - before.involuntary,
    )


def foreign(before: Tasks, after: Tasks, own: Iterable[int]) -> dict[str, int]:
    """CPU time (ns) of processes that are not part of the measurement, by name."""
    known = {*own, os.getpid()}
    found: dict[str, int] = {}
    for pid, (name, total) in after.items():
        used = total - before.get(pid, (name, total))[1]
        if pid not in known and used > 0:
            found[name] = found.get(name, 0) + used
    return found


def disturb(core: int) -> None:
    """Wake a core: an idle one counts its idle time only when it ends. Costs it some 50 µs."""
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    os.sched_setaffinity(0, usual)


def idle_ns(core: int) -> int:
    """How long a core was idle: exact where /proc/timer_list says so (as root), else in ticks."""
    try:
        text = Path("/proc/timer_list").read_text()
    except OSError:
        return _idle_ticks(core)
    return parse_idle(text, core) or _idle_ticks(core)


def parse_idle(timer_list: str, core: int) -> int:
    """A core's idle_sleeptime in /proc/timer_list; 0 if there is none."""
    current = -1
    for found in _IDLE.finditer(timer_list):
        if found[1] is not None:
            current = int(found[1])
        elif current == core:
            return int(found[2])
    return 0


def interrupts(core: int) -> int:
    """Interrupts that a core has taken, timers and inter-processor ones included."""
    return parse_interrupts(Path("/proc/interrupts").read_text(), core)


def parse_interrupts(text: str, core: int) -> int:
    """The sum of a core's column in /proc/interrupts."""
    heading, *lines = text.splitlines()
    column = heading.split().index(f"CPU{core}")
    cores = len(heading.split())
    total = 0
    for line in lines:
        counts = line.partition(":")[2].split()[:cores]
        if len(counts) == cores and all(count.isdigit() for count in counts):  # ERR and MIS have one column
            total += int(counts[column])
    return total


def forks() -> int:
    """Processes and threads that the machine has started."""
    found = re.search(r"^processes (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def switches(pids: Iterable[int]) -> tuple[int, int]:
    """Voluntary and involuntary context switches of processes, with all their threads that live."""
    total = {"voluntary": 0, "nonvoluntary": 0}
    for pid in pids:
        for thread in _entries(f"/proc/{pid}/task"):
            text = _text(f"/proc/{pid}/task/{thread}/status")
            for kind, count in re.findall(
                r"^(voluntary|nonvoluntary)_ctxt_switches:\s+(\d+)$", text, re.MULTILINE
            ):
                total[kind] += int(count)
    return total["voluntary"], total["nonvoluntary"]


def memory(pids: Iterable[int]) -> dict[str, int]:
    """Bytes of processes, all together: rss and pss now, and the most rss that each ever had."""
    total: Counter[str] = Counter()
    for pid in pids:
        rollup, status = _text(f"/proc/{pid}/smaps_rollup"), _text(f"/proc/{pid}/status")
        found = {
            "rss": re.search(r"^Rss:\s+(\d+) kB$", rollup, re.MULTILINE),
            "pss": re.search(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE),
            "peak": re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE),
        }
        total.update({name: 1024 * int(match[1]) for name, match in found.items() if match})
    return dict(total)


def tasks(core: int) -> Tasks:
    """The processes that were last on this core, each as a whole; no kernel threads: they work for all."""
    found = {}
    for entry in _entries("/proc"):
        if entry.isdigit() and (stat := _text(f"/proc/{entry}/stat")):
            name, _, rest = stat.partition("(")[2].rpartition(")")
            fields = rest.split()  # from field 3 on, see proc(5)
            if int(fields[_PROCESSOR - 3]) == core and not int(fields[_FLAGS - 3]) & _KERNEL_THREAD:
                try:
                    found[int(entry)] = name, cpu_time_ns(int(entry))
                except OSError:
                    continue
    return found


def _idle_ticks(core: int) -> int:
    found = re.search(rf"^cpu{core} (.*)$", Path("/proc/stat").read_text(), re.MULTILINE)
    if not found:
        return 0
    fields = [int(field) for field in found[1].split()]
    return (fields[3] + fields[4]) * _TICK_NS  # idle, iowait


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # gone by now
        return ""
