"""This host's daemon: does it run, what is it waiting for, and which way does it send the data?"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midstream.daemon import status
from midstream.doctor.finding import Finding, fault, ok, unknown, warning
from midstream.doctor.subject import Subject
from midstream.errors import NetworkError

_SYSTEMD, _UNIT = Path("/run/systemd/system"), "midstream-daemon.service"
_FOLDERS = [
    Path("/etc/systemd/system"),
    Path("/usr/local/lib/systemd/system"),
    Path("/usr/lib/systemd/system"),
]


@dataclass(frozen=True, slots=True)
class Daemon:
    """state: what it says of itself (`midstream status`), None if it does not run. problem: why this could
    not be told. hangs: it is there, and does not answer. unit: systemd has one for it."""

    state: dict[str, Any] | None = None
    problem: str = ""
    hangs: bool = False
    unit: bool = False

    def command(self, word: str, subject: Subject) -> str:
        """What starts or restarts it."""
        if self.unit:
            return f"systemctl {word} midstream-daemon"
        start = subject.command("daemon")
        return start if word == "start" else f"end that process, then: {start}"


def read(subject: Subject) -> Daemon:
    path = Path(subject.config.daemon.socket)
    unit = _SYSTEMD.is_dir() and any((folder / _UNIT).exists() for folder in _FOLDERS)
    try:
        state = status.ask(path)
        barred = state is None and path.exists() and not os.access(path, os.W_OK)
    except PermissionError:  # not even its folder may be looked into
        state, barred = None, True
    except NetworkError as error:
        return Daemon(problem=str(error), hangs=True, unit=unit)
    return Daemon(state, f"{path}: this user may not ask" if barred else "", unit=unit)


def check(daemon: Daemon, subject: Subject) -> Finding:
    if daemon.hangs:
        return fault("daemon", daemon.problem, "an answer", daemon.command("restart", subject))
    if daemon.problem:
        return unknown("daemon", daemon.problem, "run as root")
    told = daemon.state
    if told is None:
        return warning(
            "daemon",
            "does not run: nothing is repaired, and no logger is watched",
            "running, unless neighbours and programs are set up by hand",
            daemon.command("start", subject),
        )
    if told["state"] == "error":
        return fault(
            "daemon",
            told["reason"],
            "no error",
            "see to it" + ("; `journalctl -u midstream-daemon` tells since when" if daemon.unit else ""),
        )
    if told["state"] == "exploring":
        return warning(
            "daemon",
            f"exploring for {told['seconds']:.0f} s: {told['reason']}",
            "all roles found",
            "start the daemons of the other hosts",
        )
    if told.get("spool_fault"):
        return fault(
            "daemon",
            f"the spool stores nothing: {told['spool_fault']}",
            "a spool that stores what comes while there is no logger",
            "do what it says; hardworker.spool in config.toml names the file",
        )
    if told.get("destination") == "spool":
        return warning(
            "daemon",
            f"the data goes to this host's spool for {told['destination_seconds']:.0f} s: "
            f"{told['destination_reason'] or 'a daemon before this one has decided so'}",
            "a logger that serves",
            "see that `midstream logger` and `midstream daemon` run on the logger, and that it is reached",
        )
    return ok("daemon", f"working, {told['repaired']} repaired")
