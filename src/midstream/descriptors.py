"""How many files this process may have open, and how many are left."""

import os
import resource
import sys
from contextlib import suppress


def raise_limit() -> None:
    """The soft limit on open files is often 1024, fewer than there may be sensors: make it the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # a hard limit above what the kernel admits (fs.nr_open)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limit() -> int:
    """The soft limit: the number of descriptors that this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else sys.maxsize


def in_use() -> int:
    """The number of descriptors that this process has."""
    return len(os.listdir("/proc/self/fd")) - 1  # without the one that looks
