"""The lab's network namespaces: make and remove them, call a function in one, end the processes in them."""

import contextlib
import errno
import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

from pyroute2 import IPRoute, netns  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream.errors import LabError
from midstream.lab import enter, needs

P = ParamSpec("P")
T = TypeVar("T")

# The alias of a namespace's loopback interface. It is set before the namespace gets its name, so that
# at no time a namespace of ours is taken for a foreign one, nor a foreign one for ours.
MARK = "midstream lab"

# Between fork and the parent's close of the pipe's write end, a second fork would inherit that end
# and hold back the end of file that tells the parent that its child is gone.
_forking = threading.Lock()


@dataclass(frozen=True)
class Process:
    """A process that runs inside the lab."""

    pid: int
    namespace: str
    command: str


def create(names: Iterable[str]) -> None:
    """Make the namespaces: loopback up, IPv6 off, no forwarding. Raises LabError."""
    call_here(_create, tuple(names))


def remove(names: Iterable[str]) -> None:
    """Remove the names; the kernel removes a namespace when its last process is gone."""
    for name in names:
        netns.remove(name)


def ours(candidates: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """The existing namespaces with a name that `candidates` accepts: those of the lab, and foreign ones."""
    owned: list[str] = []
    foreign: list[str] = []
    for name in sorted(filter(candidates, netns.listnetns())):
        if not _is_unfinished(name):
            (owned if call(name, (), _mark) == MARK else foreign).append(name)
    return owned, foreign


def remove_unfinished(candidates: Callable[[str], bool]) -> None:
    """Remove the mount points that are left where making or removing a namespace was interrupted."""
    for name in filter(candidates, netns.listnetns()):
        if _is_unfinished(name):
            Path(enter.NAMESPACES, name).unlink()


def call(
    namespace: str, cpus: Collection[int], function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Run `function` in a forked child inside `namespace`, on `cpus`; return its result, raise its exception.

    Result and exception are pickled. The child has only the thread that calls, so the function must not need
    locks that other threads may hold. Raises LabError if the child dies, or if what it has to say cannot be
    pickled.
    """

    def inside() -> T:
        try:
            enter.enter(namespace)
        except OSError as error:
            raise LabError(needs.explain(error)) from None
        if cpus:
            os.sched_setaffinity(0, cpus)
        return function(*args, **kwargs)

    return _in_child(inside, f"{_name(function)} in {namespace}")


def call_here(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `call`, in a child that stays in this namespace: for a function that changes its own process."""
    return _in_child(lambda: function(*args, **kwargs), _name(function))


def processes(names: Collection[str]) -> list[Process]:
    """The processes inside the named namespaces, without this one."""
    inodes = {Path(enter.NAMESPACES, name).stat().st_ino: name for name in names}
    return list(_processes_in(inodes))


def end(running: Collection[Process], grace: float = 3.0) -> None:
    """SIGTERM to each process, SIGKILL after `grace` seconds to those left; wait until all are gone."""
    handles: dict[int, int] = {}
    for process in running:
        try:
            handles[os.pidfd_open(process.pid)] = process.pid
        except ProcessLookupError:
            continue
    try:
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
            for handle in handles:
                _signal(handle, number)
            _wait(handles, patience)
        if handles:
            raise LabError(
                f"processes {sorted(handles.values())} of the lab do not end, not even by SIGKILL: "
                "they hang in the kernel; see /proc/PID/stack, then run `midstream lab down` again"
            )
    finally:
        for handle in handles:
            os.close(handle)


def _create(names: tuple[str, ...]) -> None:
    for name in names:
        try:
            enter.unshare(enter.CLONE_NEWNET)
        except OSError as error:
            need = "; the lab needs a kernel with CONFIG_NET_NS" if error.errno == errno.EINVAL else ""
            raise LabError(f"cannot make namespace {name}: {needs.explain(error)}{need}") from None
        _quiet()
        with IPRoute() as ipr:
            ipr.link("set", index=1, ifalias=MARK, state="up")
        try:
            netns.attach(name, os.getpid())
        except OSError as error:
            raise LabError(f"cannot name namespace {name}: {needs.explain(error)}") from None


def _quiet() -> None:
    """Only the lab's own packets, none forwarded behind midstream's back, whatever the machine's defaults."""
    for key, value in {
        "ipv6/conf/all/disable_ipv6": "1",
        "ipv6/conf/default/disable_ipv6": "1",
        "ipv4/ip_forward": "0",
        "bridge/bridge-nf-call-iptables": "0",
        "bridge/bridge-nf-call-arptables": "0",
    }.items():
        path = Path("/proc/sys/net", key)
        if path.exists():  # a kernel without IPv6 or br_netfilter has nothing to turn off
            path.write_text(value)


def _is_unfinished(name: str) -> bool:
    path = Path(enter.NAMESPACES, name)
    return path.stat().st_dev == path.parent.stat().st_dev and path.stat().st_size == 0


def _mark() -> str:
    return Path("/sys/class/net/lo/ifalias").read_text().strip()


def _in_child(function: Callable[[], T], what: str) -> T:
    sys.stdout.flush()
    sys.stderr.flush()
    with _forking:
        reader, writer = os.pipe()
        parent = os.getpid()
        with warnings.catch_warnings():
            # Python 3.12 warns of every fork of a process with threads, and NumPy alone starts some. What the
            # child does needs no lock of theirs (see `call`).
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                child = os.fork()
            except OSError as refused:
                os.close(reader)
                os.close(writer)
                raise LabError(f"no process can be started: {needs.explain(refused)}") from None
        if child == 0:
            _forking.release()
            os.close(reader)
            _answer(writer, parent, function, what)
        os.close(writer)
    try:
        with open(reader, "rb") as pipe:
            answer = pipe.read()
    except BaseException:  # Ctrl-C while waiting
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    if not answer:
        raise LabError(
            f"{what}: the child ended without an answer (exit {os.waitstatus_to_exitcode(status)})"
        )
    error, result = pickle.loads(answer)
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]  # pickle cannot know T


def _answer(writer: int, parent: int, function: Callable[[], T], what: str) -> NoReturn:
    try:
        enter.die_with(parent)
        answer = pickle.dumps((None, function()))
    except BaseException as error:
        error.add_note(f"{what}:\n{traceback.format_exc()}")
        try:
            answer = pickle.dumps((error, None))
            pickle.loads(answer)  # some exceptions can be pickled, but not be made again
        except Exception:
            answer = pickle.dumps((LabError(f"{what}: {error!r}, which cannot be pickled"), None))
    with open(writer, "wb") as pipe:
        pipe.write(answer)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _name(function: Callable[..., object]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _processes_in(inodes: dict[int, str]) -> Iterator[Process]:
    device = Path("/proc/self/ns/net").stat().st_dev
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            status = os.stat(f"/proc/{entry}/ns/net")
            if status.st_dev == device and status.st_ino in inodes:
                command = (
                    Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                yield Process(int(entry), inodes[status.st_ino], command.strip())
        except OSError:
            continue  # it ended while we looked


def _signal(handle: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, number)


def _wait(handles: dict[int, int], seconds: float) -> None:
    """Wait until the processes end; close and take away the handles of those that did."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    for handle in handles:
        poll.register(handle, select.POLLIN)
    while handles:
        left = deadline - time.monotonic()
        if left <= 0:
            return
        for handle, _ in poll.poll(left * 1000):
            poll.unregister(handle)
            os.close(handle)
            del handles[handle]
