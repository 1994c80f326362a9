"""The spool's process: an ordinary `midstream logger` on the hardworker, started while it is needed.

It outlives the daemon, as the program in the kernel does: what it holds must not end because the daemon does.
The next daemon finds it by a file beside its own socket. The process has the file open and locked, by a
descriptor that it was given, so the lock tells whether it lives. It writes its number there itself, before
it gives up its privileges: so the daemon may die at any moment, and no number is trusted without the lock.

Python takes a second to start, which the sensors need not wait for: the daemon binds the doors, one for each
marked port, gives them to the process, and listens. What comes meanwhile waits in the kernel, as it does at a
logger before it is stored, and does not depend on the daemon. With `spool_full = "wait"` nobody is let in
before it can be stored: there the process listens once its database is open.
"""

import fcntl
import os
import pwd
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from midstream import modes
from midstream.config import Config
from midstream.daemon import unprivileged
from midstream.daemon.backlog import listening
from midstream.daemon.log import log
from midstream.errors import NetworkError
from midstream.logger.door import Door
from midstream.lost import Lost, dump
from midstream.network import Topology

USER = "midstream"
FIRST_DELAY, LAST_DELAY = 0.2, 5.0  # seconds before one that has died is started again
STOP_PATIENCE = 30.0  # seconds for a commit
BIRTH = 10.0  # seconds that a process may take to say who it is
_LOOK = 0.02  # seconds between two looks at that
LASTED = 10.0  # seconds after which it was no use to wait longer

_BUFFER = 16 << 20  # bytes per connection: what comes until the process is there, which a load may delay
_MANAGERS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")  # of the daemon, not of its children

SALVAGE = "midstream.daemon.salvage"  # the module that stores what a logger may have lost

State = Literal["off", "running", "handing back"]


@dataclass
class _Save:
    """What a logger may have lost, in memory until it is stored. size: bytes of streams."""

    file: IO[bytes]
    size: int
    child: "subprocess.Popen[bytes] | None" = None


class Spool:
    """now: seconds of the daemon's own time. It is looked after by `keep`, which is called every beat."""

    def __init__(self, config: Config, path: Path, now: Callable[[], float]) -> None:
        """path: the spool's file."""
        self.path = path
        self._config, self._now = config, now
        self._place = _place(config)
        self._said = self._place.with_name("spool.state")
        self._doors: list[Door] = []
        self._ports: Set[int] = frozenset()  # those of the process that runs
        self._opened_ns = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._handle: int | None = None  # of the process: pidfd_open(2)
        self.pid = 0
        self.state: State = "off"
        self._delay, self._start_at, self._started = FIRST_DELAY, 0.0, 0.0
        # The file may have rows that no process has been asked to give away.
        self._owes = path.exists()
        self._warned = False
        self._saves: list[_Save] = []
        self._save_at = 0.0

    def adopt(self, topology: Topology) -> None:
        """Go on with one that an earlier daemon has started, if there is one."""
        if found := _find(self._place):
            self.pid, self._handle = found
            self._ports = topology.ports.keys() & listening()
            self.state = "running" if self._ports else "handing back"
            log("spool", what="goes on", pid=self.pid, state=self.state)

    def fault(self) -> str:
        """Why it cannot store what comes, and what becomes of that; "" if it can."""
        with suppress(OSError):
            return self._said.read_text().strip() if self.state != "off" else ""
        return ""

    def open(self, topology: Topology) -> None:
        """Have connections taken from now on. Raises NetworkError."""
        if self._doors or self.state == "running":
            return
        if self.state == "handing back":
            self._signal(signal.SIGTERM)  # it takes nothing more; the next one does
        whose, ip = f"the hardworker of {self._config.const_path}", str(topology.hardworker.ip)
        try:
            for port, stream in topology.ports.items():
                door = Door(
                    (ip, port),
                    topology.tos,
                    whose,
                    lambda _: True,
                    buffer=_BUFFER,
                    stream=stream,
                    doors=len(topology.ports),
                )
                self._doors.append(door)
        except NetworkError:
            self._shut()
            raise
        self._ports, self._opened_ns = topology.ports.keys(), time.monotonic_ns()
        if self._config.hardworker.spool_full == "wait":
            return
        with suppress(OSError):  # `keep` tries again, and says so; the application does not wait for it
            if self._may_start:
                self._start()
        try:
            for door in self._doors:
                door.open()
        except NetworkError:
            self._shut()
            raise

    def keep(self, topology: Topology, *, here: bool, logger: bool) -> int:
        """Have it run while the data goes here; else, and if a logger takes data, have it give away what it
        has. If one has ended: before when the connections were opened that ended with it (CLOCK_MONOTONIC,
        nanoseconds), else 0. Raises NetworkError, OSError."""
        ended = self._look()
        self._keep_saving()
        if here:
            self.open(topology)
        if self._may_start and self._doors:  # also if somebody waits behind it whom nobody has let in
            self._start()
        elif self.state == "running" and not (here and self._has_doors(topology)) and self._hears():
            self._shut()
            self._signal(signal.SIGUSR1)
            self.state, self._owes = "handing back", False
        elif self._may_start and logger and self._owes and not self._saves:
            self._start("--drain")
        return ended

    def _has_doors(self, topology: Topology) -> bool:
        """One that was adopted may know nothing of a new stream: then another takes its place."""
        return topology.ports.keys() <= self._ports

    @property
    def _may_start(self) -> bool:
        return self.state == "off" and self._now() >= self._start_at

    def close(self) -> None:
        """Let it run, without us."""
        self._shut()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _shut(self) -> None:
        for door in self._doors:
            door.close()
        self._doors = []

    def _hears(self) -> bool:
        """Is it there already, to take the signal? It would end by it."""
        with suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
            caught = int(next(line for line in lines if line.startswith("SigCgt:")).split()[1], 16)
            return bool(caught >> (signal.SIGUSR1 - 1) & 1)
        return False

    def _look(self) -> int:
        """Has it ended? See keep."""
        if self._handle is None or not select.select([self._handle], [], [], 0)[0]:
            return 0
        before = self._opened_ns if self.state == "handing back" and self._doors else time.monotonic_ns()
        code = self._child.wait() if self._child else None
        os.close(self._handle)
        # One that was adopted does not tell whether it gave away everything; another look is cheap. So it is
        # for what was stored while this one was ending.
        self._owes = self._owes or self.state == "running" or code != 0
        well = self.state == "handing back" and code in (0, None)
        log("spool", level="info" if well else "warning", what="ended", pid=self.pid, code=code)
        now = self._now()
        if well or now - self._started > LASTED:
            self._delay = FIRST_DELAY
        self._start_at = now + self._delay
        self._delay = min(2 * self._delay, LAST_DELAY)
        self._child, self._handle, self.pid, self.state = None, None, 0, "off"
        return before

    def _start(self, *options: str) -> None:
        modes.make_folder(self._place.parent)
        self._place.touch()
        with self._place.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with self._place.open("wb") as number, self._said.open("wb") as said:
                given = [lock.fileno(), said.fileno()]  # it has the lock as long as it lives
                if not options:
                    doors = [door.fileno() for door in self._doors]
                    given += doors
                    options = tuple(word for door in doors for word in ("--door", str(door)))
                options = (*options, "--state", str(said.fileno()))
                command = "midstream", "logger", "--spool", *options, "--config", str(self._config.path)
                self._child = self._launch(*command, given=given, stdout=number.fileno())
        self.pid = self._child.pid
        self._handle = os.pidfd_open(self.pid)
        self._started = self._now()
        self.state = "handing back" if "--drain" in options else "running"
        self._owes = self._owes and self.state == "running"
        log("spool", what="started" if self.state == "running" else "gives back", pid=self.pid)

    def _launch(
        self,
        module: str,
        *arguments: str,
        given: Sequence[int] = (),
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
    ) -> "subprocess.Popen[bytes]":
        """`python -m MODULE ARGUMENTS` without privileges. stdout: takes its number. Raises OSError."""
        user = self._user()
        return subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", unprivileged.__file__),
                *(sys.executable, "-P", "-m", module, *arguments),
            ],
            stdin=stdin,
            stdout=stdout,
            pass_fds=given,
            start_new_session=True,  # Ctrl-C is for the daemon
            env={name: value for name, value in os.environ.items() if name not in _MANAGERS},
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )

    def save(self, lost: Sequence[Lost]) -> None:
        """Store what a logger may have lost, by a process of its own, until that has done it. Raises
        OSError."""
        file = os.fdopen(os.memfd_create("lost", os.MFD_CLOEXEC), "w+b")
        dump(lost, file)
        file.flush()
        self._saves.append(_Save(file, sum(len(part.data) for each in lost for part in each.parts)))
        self._keep_saving()

    @property
    def unsaved(self) -> int:
        """Bytes that a logger may have lost, and that only this daemon's memory has."""
        return sum(save.size for save in list(self._saves))

    def _keep_saving(self) -> None:
        """One after the other, and again if that has failed. What sensors send now comes first: Python takes
        its time to start."""
        if not self._saves or self._now() < self._save_at:
            return
        if (self._doors or self.state == "running") and not (self.pid and self._hears()):
            return
        save = self._saves[0]
        if save.child is None:
            save.file.seek(0)
            save.child = self._launch(SALVAGE, str(self._config.path), stdin=save.file.fileno())
            return
        if (code := save.child.poll()) is None:
            return
        save.child = None
        log("spool", level="info" if code == 0 else "warning", what="saved", bytes=save.size, code=code)
        if code:
            self._save_at = self._now() + LAST_DELAY
            return
        save.file.close()
        self._saves.pop(0)
        self._owes = True

    def _user(self) -> pwd.struct_passwd | None:
        """Whom root lets do it: the services' user, or who owns the spool's folder, if they can read what the
        spool reads. None: nobody else, whoever the daemon is; root's has no capabilities then."""
        if os.geteuid():
            return None
        folder, users = self.path.parent, []
        with suppress(KeyError):
            users.append(pwd.getpwnam(USER))
        is_there = folder.exists()
        with suppress(OSError):  # the process says what is wrong with it, and goes on when that is mended
            if not is_there:
                modes.make_folder(folder, 0o750)
                if users:
                    os.chown(folder, users[0].pw_uid, users[0].pw_gid)
                is_there = True
        with suppress(KeyError, OSError):
            users += [pwd.getpwuid(owner)] if (owner := folder.stat().st_uid) else []
        config = self._config
        read = (config.path, config.const_path, *([config.key_path] if config.key_path.exists() else []))
        for user in users:
            if (not is_there or _may(user, folder, 0o3)) and all(_may(user, path, 0o4) for path in read):
                return user
        if not self._warned:
            self._warned = True
            log(
                "spool",
                level="warning",
                what="runs as root, without capabilities",
                reason=f"no other user may write in {folder} and read {', '.join(map(str, read))}; "
                f"`midstream service install hardworker` sets all of that up for the user {USER}",
            )
        return None

    def _signal(self, number: signal.Signals) -> None:
        if self._handle is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)


def stop(config: Config) -> int:
    """End the process that a daemon has left: it commits what was acknowledged. Its number, or 0."""
    if not (found := _find(_place(config))):
        return 0
    pid, handle = found
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGTERM)
    select.select([handle], [], [], STOP_PATIENCE)
    os.close(handle)
    return pid


def _place(config: Config) -> Path:
    return Path(config.daemon.socket).with_name("spool.pid")


def _find(place: Path) -> tuple[int, int] | None:
    """The process that has this file locked: its number, and a descriptor (pidfd_open(2)). One that a daemon
    has started last of all may not have written its number yet."""
    deadline = time.monotonic() + BIRTH
    with suppress(OSError), place.open("rb") as file:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if number := place.read_text():
                    return int(number), os.pidfd_open(int(number))
                time.sleep(_LOOK)
            else:
                return None
    return None


def _may(user: pwd.struct_passwd, path: Path, wanted: int) -> bool:
    """May the user do this to the file, and reach it? wanted: bits as of others."""
    for part, bits in (*((folder, 0o1) for folder in path.parents), (path, wanted)):
        try:
            found = part.stat()
        except OSError:
            return False
        shift = 6 if found.st_uid == user.pw_uid else 3 if found.st_gid == user.pw_gid else 0
        if found.st_mode >> shift & bits != bits:
            return False
    return True
