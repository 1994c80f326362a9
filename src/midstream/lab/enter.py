"""Enter a network namespace the way a host would see it, and become a command.

`ip netns exec` mounts a new bpffs, in which nothing that was pinned outside exists. Here a process gets

- the namespace's network,
- its own mounts, and on /sys a sysfs of that namespace, so that /sys/class/net lists that host's interfaces,
- everything that was mounted below /sys before (the same bpffs, cgroups, tracefs) in its old place.

The file is also a program: `python enter.py NAMESPACE PARENT CPUS COMMAND…`. It is run by its path and needs
only the standard library, because importing midstream would cost more time than most commands take. It
prepares, then executes COMMAND in its own place: the process id stays, so signals and exit codes are the
command's own.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

NAMESPACES = "/run/netns"

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace: str) -> None:
    """Move this thread into `namespace` (a name in /run/netns); there is no way back.

    For a process with one thread: a child just forked, or one that executes a program next.
    Raises OSError: no such namespace, or no permission (CAP_SYS_ADMIN).
    """
    network = os.open(f"{NAMESPACES}/{namespace}", os.O_RDONLY)
    try:
        _check(_libc.setns(network, CLONE_NEWNET), f"enter namespace {namespace}")
    finally:
        os.close(network)
    unshare(CLONE_NEWNS)
    # Slave, not private: what is mounted here stays here, but what the machine unmounts later (a namespace
    # that `lab down` removes) also disappears here, instead of being held by the longest-living process of
    # the lab.
    mount("none", "/", "", MS_REC | MS_SLAVE)
    kept = {point: os.open(point, os.O_PATH) for point in _mounts_directly_below("/sys/")}
    mount("sysfs", "/sys", "sysfs")
    for point, old in kept.items():
        mount(f"/proc/self/fd/{old}", point, "", MS_BIND | MS_REC)
        os.close(old)


def execute(command: Sequence[str], cpus: Iterable[int]) -> NoReturn:
    """Become `command`, on `cpus` (none given: wherever this process may run). Raises OSError."""
    if cpus := set(cpus):
        os.sched_setaffinity(0, cpus)
    # Python ignores these two, and an ignored signal stays ignored across exec: `yes | head` would never end.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execvp(command[0], [*command])


def die_with(parent: int) -> None:
    """Let the kernel send this process SIGTERM when the thread that started it, of process `parent`, ends."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0), "ask for the parent-death signal")
    if os.getppid() != parent:  # it ended before we could ask
        os.kill(os.getpid(), signal.SIGTERM)


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError."""
    done = _libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _check(done, f"mount {kind or source} on {target}")


def unshare(flags: int) -> None:
    """unshare(2). Raises OSError."""
    _check(_libc.unshare(flags), "unshare")


def mounts() -> dict[str, str]:
    """Every mount point of this process and the type of the file system that is seen there."""
    with open("/proc/self/mountinfo") as lines:
        split = (line.split(" - ") for line in lines)
        return {left.split()[4]: right.split()[0] for left, right in split}


def _mounts_directly_below(folder: str) -> list[str]:
    chosen: list[str] = []
    for point in sorted(point for point in mounts() if point.startswith(folder)):
        if not any(point.startswith(f"{parent}/") for parent in chosen):
            chosen.append(point)
    return chosen


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{os.strerror(code)}: cannot {what}")


def _main(arguments: Sequence[str]) -> NoReturn:
    namespace, parent, cpus, *command = arguments
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        die_with(int(parent))
        enter(namespace)
    except OSError as error:
        sys.exit(f"midstream lab: {error}")
    try:
        execute(command, [int(cpu) for cpu in cpus.split(",") if cpu])
    except OSError as error:  # as a shell reports it
        print(f"midstream lab: {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    _main(sys.argv[1:])
