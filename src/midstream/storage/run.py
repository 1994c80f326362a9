"""The name of a run of the logger, from which somebody who looks at the log can tell whether it still lasts.

It says on which machine, in which boot of it and in which process the run is, as hashes (machine-id(5) asks
for that). A connection's token is the name of its run, a dot, and a number.
"""

import hashlib
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Run:
    """machine and boot are hashes, space is one of the namespace in which `pid` is a number."""

    machine: str
    boot: str
    space: str
    pid: int
    start: str  # of the process, a hash: process numbers are used again

    @classmethod
    def parse(cls, token: str) -> Self | None:
        """The run in a connection's token; None if an older logger has named it."""
        name = token.partition(".")[0]
        if not re.fullmatch(r"[0-9a-f]{31}", name):
            return None
        return cls(name[:6], name[6:12], name[12:15], int(name[15:21], 16), name[21:25])

    @property
    def ended(self) -> bool:
        """Is it known to be over? Of another machine or container nothing is known here."""
        if (self.machine, self.boot) == (_machine(), _boot()):
            return self.space == _space() and _start(self.pid) not in (self.start, None)
        return self.machine == _machine()  # which has been started anew


def new_name() -> str:
    """The name of a run of this process. Two of them have two names."""
    pid = os.getpid()
    return f"{_machine()}{_boot()}{_space()}{pid:06x}{_start(pid) or '0000'}{secrets.token_hex(3)}"


def _machine() -> str:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with suppress(OSError):
            return _hashed(Path(path).read_text(), 6)
    return _hashed(os.uname().nodename, 6)


def _boot() -> str:
    return _hashed(Path("/proc/sys/kernel/random/boot_id").read_text(), 6)


def _space() -> str:
    return _hashed(str(Path("/proc/self/ns/pid").stat().st_ino), 3)


def _start(pid: int) -> str | None:
    """When a process began; "" if there is none of that number, None if that is not to be seen."""
    try:
        return _hashed(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19], 4)
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return None


def _hashed(text: str, digits: int) -> str:
    return hashlib.sha256(f"midstream {text.strip()}".encode()).hexdigest()[:digits]
