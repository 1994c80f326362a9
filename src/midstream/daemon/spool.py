"""The spool's process: an ordinary `midstream logger` on the hardworker, started while it is needed.

It outlives the daemon, as the program in the kernel does: what it holds must not end because the daemon does.
The next daemon finds it by a file beside its own socket. The process has the file open and locked, by a
descriptor that it was given, so the lock tells whether it lives, and no number of a process is trusted alone.
"""

import fcntl
import os
import pwd
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from midstream import modes
from midstream.config import Config
from midstream.daemon import unprivileged
from midstream.daemon.backlog import is_listening
from midstream.daemon.log import Log

USER = "midstream"
LINGER = 30.0  # seconds after which one that was started in vain ends
FIRST_DELAY, LAST_DELAY = (
    0.2,
    5.0,
)  # seconds before it is started again, doubled as long as it does not listen

_MANAGERS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")  # of the daemon, not of its children

State = Literal["off", "starting", "listening", "handing back"]


class Spool:
    """now: seconds of the daemon's own time. It is looked after by `keep`, which is called every beat."""

    def __init__(self, config: Config, path: Path, log: Log, now: Callable[[], float]) -> None:
        """path: the spool's file."""
        self.path = path
        self._config, self._log, self._now = config, log, now
        self._place = Path(config.daemon.socket).with_name("spool.pid")
        self._child: subprocess.Popen[bytes] | None = None
        self._handle: int | None = None  # of the process: pidfd_open(2)
        self.pid = 0
        self.state: State = "off"
        self._wanted_at = now()
        self._delay, self._start_at = FIRST_DELAY, 0.0
        self._owes = path.exists()  # it may have rows that no logger has
        self._warned = False

    def adopt(self, port: int) -> bool:
        """Go on with one that an earlier daemon has started. False if there is none."""
        with suppress(OSError, ValueError), self._place.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.pid = int(file.read())
                self._handle = os.pidfd_open(self.pid)
                self.state = "listening" if is_listening(port) else "handing back"
                self._log("spool", what="goes on", pid=self.pid, state=self.state)
                return True
        return False

    def keep(self, port: int, *, wanted: bool, logger: bool) -> bool:
        """Have it run while it is wanted; while it is not, and a logger takes data, have it give away what it
        has left. True: one has ended. Raises OSError.
        """
        ended = self._look(port)
        now = self._now()
        if wanted:
            self._wanted_at = now
            if self.state == "handing back":
                self._end(signal.SIGTERM)  # it listens no more; the next one does
            elif self.state == "off" and now >= self._start_at:
                self._start()
        elif self.state == "listening" and now - self._wanted_at > LINGER:
            self.hand_back()
        elif self.state == "off" and logger and self._owes and now >= self._start_at:
            self._start("--drain")
        return ended

    def hand_back(self) -> None:
        """Let it end: it shows the sensors its end, gives the logger all it has, and exits."""
        self._end(signal.SIGUSR1)
        self._owes = True
        self.state = "handing back"

    def close(self) -> None:
        """Let it run."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _look(self, port: int) -> bool:
        if self._handle is None:
            return False
        if self.state == "starting" and is_listening(port):
            self.state, self._delay = "listening", FIRST_DELAY
            self._log("spool", what="listens", pid=self.pid)
        if not select.select([self._handle], [], [], 0)[0]:
            return False
        code = self._child.wait() if self._child else None
        os.close(self._handle)
        before, self.state = self.state, "off"
        ended_well = before == "handing back" and code in (0, None)
        self._log(
            "spool",
            level="info" if ended_well else "warning",
            what="ended",
            pid=self.pid,
            code="unknown" if code is None else code,
        )
        # One that was adopted does not tell whether it gave away everything; another look is cheap.
        self._owes = not (ended_well and code == 0)
        self._start_at = self._now() + (0.0 if ended_well else self._delay)
        if not ended_well:
            self._delay = min(2 * self._delay, LAST_DELAY)
        self._child, self._handle, self.pid = None, None, 0
        return True

    def _start(self, *options: str) -> None:
        user = self._user()
        modes.make_folder(self._place.parent)
        self._place.touch()
        with self._place.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            launcher = [sys.executable, "-I", "-S", unprivileged.__file__]
            command = [sys.executable, "-P", "-m", "midstream", "logger", "--spool", *options]
            self._child = subprocess.Popen(
                [*launcher, *command, "--config", str(self._config.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[lock.fileno()],  # it has the lock as long as it lives
                start_new_session=True,  # Ctrl-C is for the daemon
                env={name: value for name, value in os.environ.items() if name not in _MANAGERS},
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
            )
        self.pid = self._child.pid
        self._place.write_text(f"{self.pid}\n")
        self._handle = os.pidfd_open(self.pid)
        self.state = "handing back" if options else "starting"
        self._log("spool", what="gives away what is left" if options else "started", pid=self.pid)

    def _user(self) -> pwd.struct_passwd | None:
        """Whom root lets do it: the services' user, or who owns the spool's folder, if they can read what the
        spool reads. None: nobody else, whoever the daemon is; root's has no capabilities then."""
        if os.geteuid():
            return None
        folder, users = self.path.parent, []
        with suppress(KeyError):
            users.append(pwd.getpwnam(USER))
        if not folder.exists():
            modes.make_folder(folder, 0o750)
            if users:
                os.chown(folder, users[0].pw_uid, users[0].pw_gid)
        with suppress(KeyError):
            users += [pwd.getpwuid(owner)] if (owner := folder.stat().st_uid) else []
        config = self._config
        read = (config.path, config.const_path, *([config.key_path] if config.key_path.exists() else []))
        for user in users:
            if _may(user, folder, 0o3) and all(_may(user, path, 0o4) for path in read):
                return user
        if not self._warned:
            self._warned = True
            self._log(
                "spool",
                level="warning",
                what="runs as root, without capabilities",
                reason=f"no other user may write in {folder} and read {', '.join(map(str, read))}; "
                f"`midstream service install hardworker` sets all of that up for the user {USER}",
            )
        return None

    def _end(self, number: signal.Signals) -> None:
        if self._handle is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)


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
