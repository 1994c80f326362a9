"""The processes that this worker's tests have started: other workers' labs, and other people's, have the same
names."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from midstream.lab.hosts import namespace

_NAMES = ("PYTEST_XDIST_TESTRUNUID", "PYTEST_XDIST_WORKER")  # pytest-xdist's, and so its workers' children's


def processes() -> Iterator[Path]:
    """Their folders in /proc; without workers those of all processes."""
    ours = [f"{name}={os.environ[name]}\0".encode() for name in _NAMES if name in os.environ]
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has just ended
            folder = Path("/proc", entry)
            environment = folder.joinpath("environ").read_bytes()
            if all(variable in environment for variable in ours):
                yield folder


def on_host(name: str) -> list[int]:
    """All that run on a host of this lab. Who is dead, and not waited for, has no namespace any more."""
    inode = Path("/run/netns", namespace(name)).stat().st_ino
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if Path("/proc", entry, "ns", "net").stat().st_ino == inode:
                found.append(int(entry))
    return found
