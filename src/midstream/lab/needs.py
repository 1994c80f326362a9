"""What the lab needs of the machine, and the real cause where it is missing."""

import errno
import os
import time
from pathlib import Path

from midstream.errors import LabError
from midstream.lab import enter

_STUCK = 60.0  # seconds in which a process that works uses some CPU, however slow the machine is


def check(command: str) -> None:
    """Raise LabError unless this is root, sees its own processes in /proc, and can start others."""
    if os.geteuid() != 0:
        raise LabError(f"the lab needs root: run `sudo midstream lab {command}`")
    if fault := _processes():
        raise LabError(fault)


def explain(error: OSError) -> str:
    """Why something of the lab was refused, and what to do."""
    if fault := _processes():
        return f"{error}; {fault}"
    if error.errno in (errno.EPERM, errno.EACCES):
        if os.geteuid() != 0:
            return f"{error}; the lab needs root"
        return f"{error}; this root may not (no CAP_SYS_ADMIN): a container has to be privileged for the lab"
    if error.errno == errno.ENOENT and str(error.filename).startswith(enter.NAMESPACES):
        return f"{error.filename} is missing; is the lab up (`midstream lab status`)?"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EROFS):
        return (
            f"{error}; that folder is missing or cannot be mounted on: `mount -t sysfs sysfs /sys` may help"
        )
    return str(error)


class ProcessProgress:
    """Does another process get on? It does as long as it uses CPU time, alone or by its children."""

    def __init__(self, pid: int) -> None:
        self._path = Path("/proc", str(pid), "stat")
        self._used, self._since = "", time.monotonic()

    @property
    def is_alive(self) -> bool:
        """Has it not ended?"""
        return self._path.exists()

    @property
    def is_stuck(self) -> bool:
        """Has it used none for a minute, as seen by those who ask now and then?"""
        used = self._read()
        if used != self._used:
            self._used, self._since = used, time.monotonic()
        return time.monotonic() - self._since > _STUCK

    def _read(self) -> str:
        try:
            return " ".join(
                self._path.read_text().rpartition(")")[2].split()[11:15]
            )  # proc(5): utime to cstime
        except OSError:
            return ""


def _processes() -> str:
    """What is wrong with this process's view of others; "" if nothing is."""
    try:
        called = os.readlink("/proc/self")
    except OSError:
        called = ""
    if called != str(os.getpid()):
        return (
            f"/proc belongs to another PID namespace, where this process is {called or 'unknown'} instead "
            f"of {os.getpid()}: run `mount -t proc proc /proc`, or begin with "
            "`unshare --fork --pid --mount-proc`"
        )
    try:
        own, childrens = (os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "pid_for_children"))
    except OSError:
        own, childrens = "this one", "one without processes"
    if own != childrens:
        return (
            f"this process is in {own}, but what it starts is in another PID namespace ({childrens}), whose "
            "first process ends it all: begin with `unshare --fork --pid --mount-proc`"
        )
    return ""
