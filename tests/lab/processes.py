"""The processes that these tests have started: the labs of other workers and runs have the same names."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from midstream.lab.hosts import namespace

_NAME = "MIDSTREAM_TESTS"
_OURS = f"{_NAME}={os.getpid()}.{time.monotonic_ns()}"
os.environ[_NAME] = _OURS.partition("=")[2]  # for all that is started from now on


def processes() -> Iterator[Path]:
    """Their folders in /proc."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has just ended
            folder = Path("/proc", entry)
            if f"{_OURS}\0".encode() in folder.joinpath("environ").read_bytes():
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
