"""Hand the ring to an application that has no privileges.

Opening a pin needs privileges, and so may every bpf(2) call; mapping a ring by its descriptor needs none. So
a privileged process, `midstream attach --serve`, listens on a Unix socket whose owner and mode decide who may
have the ring, and passes the descriptors. One reader has the ring at a time: two would take each other's
messages. What keeps others away is a lock on the folder of the pins, and the lock goes with the descriptors:
the reader has it as long as it lives, whatever becomes of the process that served it.
"""

import errno
import fcntl
import grp
import json
import mmap
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from midstream import modes
from midstream.ebpf import control, libbpf, pins, records
from midstream.errors import ConfigError, KernelError

_POLL = 0.1  # seconds between two looks at `stop`
_PATIENCE = 5.0  # seconds that an application waits for the server's answer,
_QUESTION = 0.5  # and the server for its question
_ANSWER = 1 << 16  # bytes, more than any answer has
_MAPS = ("ring", "journal", "unfinished", "committed", "control", "beginnings")  # of a RingDescriptors
_DESCRIPTORS = len(_MAPS) + 1
_UNSERVED = "`midstream attach hardworker --serve` has to run (`systemctl start midstream-ring`, or as root)"


@dataclass(frozen=True)
class RingDescriptors:
    """Descriptors of the ring, of what its reader remembers (hardworker/ring.h and spill.py), of what it
    is told (retained.py, control.py, beginning.h), and of the lock that keeps others away; the ring's bytes,
    how many sensors there is room for, and its place. host: the hardworker's folder, from the lock's."""

    ring: int
    journal: int
    unfinished: int
    committed: int
    control: int
    beginnings: int
    lock: int
    size: int
    sensors: int
    place: Path
    host: str = "."

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All of them."""
        maps = self.ring, self.journal, self.unfinished, self.committed, self.control, self.beginnings
        return *maps, self.lock

    @property
    def is_gone(self) -> bool:
        """Have the pins been removed, so that nobody finds this ring any more?"""
        # An application without privileges may ask only this: a removed folder has no links.
        return os.fstat(self.lock).st_nlink == 0

    @property
    def is_linked(self) -> bool:
        """Is the ring's program on its interface? Where this user may not look, the process that serves the
        ring has told. Raises KernelError if what it told cannot be read."""
        found = pins.is_linked(Path(f"/proc/self/fd/{self.lock}", self.host), "hardworker")
        return not self._is_told_unlinked() if found is None else found

    def _is_told_unlinked(self) -> bool:
        try:
            with mmap.mmap(self.control, mmap.PAGESIZE, prot=mmap.PROT_READ) as told:
                (words,) = np.frombuffer(told[: records.CONTROL.itemsize], records.CONTROL)
                return bool(words["unlinked"])
        except (OSError, ValueError) as error:
            raise KernelError(
                f"what the daemon tells cannot be mapped ({error}); is it pinned by this midstream?"
            ) from error

    def close(self) -> None:
        """Close the descriptors and let another reader in. What is mapped stays mapped."""
        for descriptor in self.descriptors:
            os.close(descriptor)


def open_pinned(folder: Path, layout: bytes) -> RingDescriptors:
    """The ring pinned in folder. Raises KernelError: nothing attached (ENOENT), no rights, other pins than
    expected, another reader."""
    try:
        pins.verify(folder, layout=layout)
        with ExitStack() as undo:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            maps = []
            for name in _MAPS:
                maps.append(pins.open_map(folder, name))
                undo.callback(os.close, maps[-1])
            ring, journal, unfinished, committed, control, beginnings = maps
            size, sensors = (libbpf.map_info(fd).max_entries for fd in (ring, beginnings))
            host = os.path.relpath(pins.host_folder(folder), folder)
            undo.pop_all()
            return RingDescriptors(
                ring, journal, unfinished, committed, control, beginnings, lock, size, sensors, folder, host
            )
    except BlockingIOError as error:
        raise KernelError(
            f"{folder}: another application reads this ring already; end it first, for two would take "
            "each other's messages"
        ) from error
    except OSError as error:
        raise KernelError(
            f"{folder}: cannot be opened ({error.strerror}){_advice(error.errno)}", errno=error.errno or 0
        ) from error
    except KernelError as error:
        if advice := _advice(error.errno):
            raise KernelError(f"{error}{advice}", errno=error.errno) from error
        raise


def request(path: Path, layout: bytes, stream: str = "") -> RingDescriptors:
    """The ring of a stream, "" for one without a name, from the process that serves it at path.

    Raises KernelError: nobody serves (ENOENT, as if nothing is attached), no permission, other pins than
    expected, another reader.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(os.fspath(path))
            connection.send(json.dumps({"stream": stream}).encode())
            message, descriptors, flags, _ = socket.recv_fds(connection, _ANSWER, _DESCRIPTORS)
        except (ConnectionResetError, BrokenPipeError):
            message, descriptors, flags = b"", [], 0
        except OSError as error:
            advice = {
                PermissionError: "its owner and mode decide who may have the ring: hardworker.socket_group "
                "and hardworker.socket_mode in config.toml",
                FileNotFoundError: _UNSERVED,
                ConnectionRefusedError: _UNSERVED,
            }.get(type(error), "is `midstream attach hardworker --serve` running?")
            reason = error.strerror or error
            missing = isinstance(error, FileNotFoundError | ConnectionRefusedError)
            raise KernelError(
                f"{path}: the ring cannot be had there ({reason}); {advice}",
                errno=errno.ENOENT if missing else 0,
            ) from error
    for descriptor in descriptors:  # no program that the application executes shall hold the lock
        os.set_inheritable(descriptor, False)
    answer: dict[str, Any] = json.loads(message) if message else {"error": "the server went away; try again"}
    fault = answer.get("error")
    if not fault and (len(descriptors) < _DESCRIPTORS or flags & socket.MSG_CTRUNC):
        fault = "this process has no room for seven more descriptors; raise its limit (`ulimit -n`)"
    elif not fault and bytes.fromhex(answer["layout"]) != layout:
        fault = (
            f"the attached program was made from other files (stamp {answer['layout'][:12]}, this "
            f"config.toml and const.toml give {layout.hex()[:12]}); use the same files as `midstream attach`"
        )
    if fault:
        for descriptor in descriptors:
            os.close(descriptor)
        raise KernelError(f"{path}: {fault}", errno=answer.get("errno", 0))
    ring, journal, unfinished, committed, control, beginnings, lock = descriptors
    size, sensors, host = answer["size"], answer["sensors"], answer["host"]
    return RingDescriptors(
        ring, journal, unfinished, committed, control, beginnings, lock, size, sensors, path, host
    )


def serve(
    rings: Mapping[str, tuple[Path, bytes]], path: Path, *, mode: int, group: str, stop: Callable[[], bool]
) -> None:
    """Hand each ring to one application at a time, until `stop()`; and tell it when the program is no longer
    on its interface. rings: the folder and the layout of each stream's pins, by its name.

    Raises ConfigError (no such group, the socket cannot be made) and KernelError (not our pins).
    """
    for folder, layout in rings.values():
        pins.verify(folder, layout=layout)
    while True:
        with _listening(path, mode, group) as listener:
            _serve(listener, rings, lambda: stop() or not path.exists())
        if stop():
            return


def _advice(code: int | None) -> str:
    """What an application needs that may not open the pins."""
    if code not in (errno.EPERM, errno.EACCES):
        return ""
    return (
        "; an application without privileges needs hardworker.socket in config.toml, and "
        "`midstream attach hardworker --serve`"
    )


def _serve(
    listener: socket.socket, rings: Mapping[str, tuple[Path, bytes]], stop: Callable[[], bool]
) -> None:
    host = pins.host_folder(next(iter(rings.values()))[0])
    while not stop():
        if select.select([listener], [], [], _POLL)[0]:
            try:
                connection, _ = listener.accept()
            except OSError:  # it is gone already, or no descriptor is left: then it waits for its turn
                time.sleep(_POLL)
                continue
            with connection, suppress(OSError, ValueError):  # it may be gone, or says something else
                _answer(connection, rings)
        with suppress(KernelError):  # all is gone, which the application sees by itself
            control.tell_unlinked(host, pins.is_linked(host, "hardworker") is False)


def _answer(connection: socket.socket, rings: Mapping[str, tuple[Path, bytes]]) -> None:
    """Give the application the ring of the stream that it names, or say why not."""
    connection.settimeout(_QUESTION)
    asked = json.loads(connection.recv(_ANSWER))
    stream = str(asked.get("stream", "")) if isinstance(asked, dict) else ""
    try:
        if stream not in rings:
            there = f"are {', '.join(rings)}" if all(rings) else "is one without a name"
            raise KernelError(
                f'no stream "{stream}" is served here; there {there}. What to do: start `midstream attach '
                "hardworker --serve` again, if config.toml has changed"
            )
        folder, layout = rings[stream]
        ring = open_pinned(folder, layout)
    except KernelError as error:
        connection.send(json.dumps({"error": str(error), "errno": error.errno}).encode())
        return
    try:
        facts = {"layout": layout.hex(), "size": ring.size, "sensors": ring.sensors, "host": ring.host}
        socket.send_fds(connection, [json.dumps(facts).encode()], ring.descriptors)
    finally:
        ring.close()  # the application, or the message on its way to it, has its own


@contextmanager
def _listening(path: Path, mode: int, group: str) -> Iterator[socket.socket]:
    """A socket that listens at path, whose name goes when it is closed."""
    number = _group(group)
    with ExitStack() as undo:
        listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        try:
            modes.make_folder(path.parent)
            _remove_stale(path)
            # Nobody may connect before owner and mode are as they shall be.
            mask = os.umask(0o177)
            try:
                listener.bind(os.fspath(path))
            finally:
                os.umask(mask)
            undo.callback(path.unlink, missing_ok=True)
            os.chown(path, -1, number)
            path.chmod(mode)
            listener.listen()
        except OSError as error:
            raise ConfigError(
                f'hardworker.socket = "{path}": no socket can be made there ({error.strerror}); '
                "name another path in config.toml"
            ) from error
        yield listener


def _group(name: str) -> int:
    """A group's number; -1, as chown takes it, for none."""
    try:
        return grp.getgrnam(name).gr_gid if name else -1
    except KeyError as error:
        raise ConfigError(
            f'hardworker.socket_group = "{name}": there is no such group on this host; '
            "make it (`groupadd`), or name another in config.toml"
        ) from error


def _remove_stale(path: Path) -> None:
    """Remove the socket that a killed server left. Raises ConfigError if a server lives there."""
    if not path.is_socket():
        return
    # A socket of another type cannot connect, and so does not disturb a server that lives.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        if probe.connect_ex(os.fspath(path)) == errno.ECONNREFUSED:
            path.unlink()
            return
    raise ConfigError(
        f'hardworker.socket = "{path}": another process serves there already; end it first, '
        "or name another path in config.toml"
    )
