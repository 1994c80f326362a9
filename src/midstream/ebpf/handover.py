"""Hand the ring to an application that has no privileges.

Opening a pin needs privileges, and so may every bpf(2) call; mapping a ring by its descriptor needs none. So
a privileged process, `midstream attach --serve`, listens on a Unix socket whose owner and mode decide who may
have the ring, and passes the descriptors. One reader has the ring at a time: two would take each other's
messages. It has it as long as its connection to the socket, and so at most as long as it lives.
"""

import fcntl
import grp
import json
import os
import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midstream.ebpf import libbpf, pins
from midstream.errors import ConfigError, KernelError

_POLL = 0.1  # seconds between two looks at `stop`
_ANSWER = 4096  # bytes, more than any answer has


@dataclass(frozen=True)
class Ring:
    """Descriptors of the ring and of its journal, the ring's bytes, and what keeps others away while open."""

    ring: int
    journal: int
    size: int
    lease: int | socket.socket

    def close(self) -> None:
        """Close the descriptors and let another reader in. What is mapped stays mapped."""
        os.close(self.ring)
        os.close(self.journal)
        if isinstance(self.lease, socket.socket):
            self.lease.close()
        else:
            os.close(self.lease)


def open_pinned(folder: Path, stamp: bytes) -> Ring:
    """The ring pinned in folder. Raises KernelError: no rights, other pins than expected, another reader."""
    pins.verify(folder, stamp)
    lease = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ring = pins.open_map(folder, "ring")
        journal = pins.open_map(folder, "journal")
        return Ring(ring, journal, libbpf.map_info(ring).max_entries, lease)
    except BaseException as error:
        os.close(lease)
        if isinstance(error, BlockingIOError):
            raise KernelError(
                f"{folder}: another application reads this ring already; end it first, for two would take "
                "each other's messages"
            ) from error
        raise


def request(path: Path, stamp: bytes) -> Ring:
    """The ring from the process that serves it at path.

    Raises KernelError: nobody serves, no permission, other pins than expected, another reader.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(os.fspath(path))
        message, descriptors, _, _ = socket.recv_fds(connection, _ANSWER, 2)
    except OSError as error:
        connection.close()
        advice = {
            PermissionError: "its owner and mode decide who may have the ring: hardworker.socket_group "
            "and hardworker.socket_mode in config.toml",
            FileNotFoundError: "start `midstream attach hardworker --serve` as root",
            ConnectionRefusedError: "start `midstream attach hardworker --serve` as root",
        }.get(type(error), "is `midstream attach hardworker --serve` running?")
        raise KernelError(f"{path}: the ring cannot be had there ({error.strerror}); {advice}") from error
    answer: dict[str, Any] = json.loads(message) if message else {"error": "the server went away"}
    fault = answer.get("error")
    if not fault and bytes.fromhex(answer["stamp"]) != stamp:
        fault = (
            f"the attached program was made from other files (stamp {answer['stamp'][:12]}, this "
            f"config.toml and const.toml give {stamp.hex()[:12]}); use the same files as `midstream attach`"
        )
    if fault:
        for descriptor in descriptors:
            os.close(descriptor)
        connection.close()
        raise KernelError(f"{path}: {fault}")
    ring, journal = descriptors
    return Ring(ring, journal, answer["size"], connection)


def serve(folder: Path, stamp: bytes, path: Path, *, mode: int, group: str, stop: Callable[[], bool]) -> None:
    """Hand the ring pinned in folder to one application at a time, until `stop()`.

    Raises ConfigError (no such group, the socket cannot be made) and KernelError (not our pins).
    """
    pins.verify(folder, stamp)
    with _listen(path, mode, group) as listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        reader: tuple[socket.socket, Ring] | None = None
        try:
            while not stop():
                for key, _ in selector.select(_POLL):
                    if key.fileobj is listener:
                        connection, _ = listener.accept()
                        with suppress(OSError):  # it may be gone already
                            reader = _answer(connection, folder, stamp, reader)
                        if reader and reader[0] is connection:
                            selector.register(connection, selectors.EVENT_READ)
                        else:
                            connection.close()
                    elif reader:  # an application says nothing: it has gone
                        selector.unregister(reader[0])
                        reader[0].close()
                        reader[1].close()
                        reader = None
        finally:
            if reader:
                reader[0].close()
                reader[1].close()
            path.unlink(missing_ok=True)


def _answer(
    connection: socket.socket, folder: Path, stamp: bytes, reader: tuple[socket.socket, Ring] | None
) -> tuple[socket.socket, Ring] | None:
    """Give a new connection the ring, or say why not. Returns who has the ring now."""
    if reader is None:
        try:
            ring = open_pinned(folder, stamp)
        except KernelError as error:
            connection.send(json.dumps({"error": str(error)}).encode()[:_ANSWER])
            return None
        answer = json.dumps({"stamp": stamp.hex(), "size": ring.size}).encode()
        try:
            socket.send_fds(connection, [answer], [ring.ring, ring.journal])
        except OSError:
            ring.close()
            raise
        return connection, ring
    connection.send(json.dumps({"error": "another application reads this ring already"}).encode())
    return reader


def _listen(path: Path, mode: int, group: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket():
            path.unlink()  # of a server that was killed; one that lives has an open file, not a name
        # Nobody may connect before owner and mode are as they shall be.
        mask = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(mask)
        if group:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        path.chmod(mode)
        listener.listen()
    except KeyError as error:
        listener.close()
        raise ConfigError(
            f'hardworker.socket_group = "{group}": there is no such group on this host; '
            "make it (`groupadd`), or name another in config.toml"
        ) from error
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"hardworker.socket = {str(path)!r}: no socket can be made there ({error.strerror}); "
            "name another path in config.toml"
        ) from error
    return listener
