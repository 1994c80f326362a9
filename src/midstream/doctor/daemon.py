"""This host's daemon: does it run, what is it waiting for, and which way does it send the data?"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midstream.daemon import status
from midstream.doctor.finding import Finding, fault, ok, unknown, warning
from midstream.doctor.subject import Subject
from midstream.errors import NetworkError


@dataclass(frozen=True, slots=True)
class Daemon:
    """state: what it says of itself (`midstream status`), None if it does not run. problem: why this could
    not be told. hangs: it is there, and does not answer."""

    state: dict[str, Any] | None = None
    problem: str = ""
    hangs: bool = False


def read(subject: Subject) -> Daemon:
    path = Path(subject.config.daemon.socket)
    try:
        state = status.ask(path)
        barred = state is None and path.exists() and not os.access(path, os.W_OK)
    except PermissionError:  # not even its folder may be looked into
        state, barred = None, True
    except NetworkError as error:
        return Daemon(problem=str(error), hangs=True)
    return Daemon(state, f"{path}: this user may not ask" if barred else "")


def check(daemon: Daemon, subject: Subject) -> Finding:
    if daemon.hangs:
        return fault("daemon", daemon.problem, "an answer", "systemctl restart midstream-daemon")
    if daemon.problem:
        return unknown("daemon", daemon.problem, "run as root")
    told = daemon.state
    if told is None:
        return warning(
            "daemon",
            "does not run: nothing is repaired, and no logger is watched",
            "running, unless neighbours and programs are set up by hand",
            f"systemctl start midstream-daemon  # or {subject.command('daemon')}",
        )
    if told["state"] == "error":
        return fault(
            "daemon",
            told["reason"],
            "no error",
            "see to it; `journalctl -u midstream-daemon` tells since when",
        )
    if told["state"] == "exploring":
        return warning(
            "daemon",
            f"exploring for {told['seconds']:.0f} s: {told['reason']}",
            "all roles found",
            "start the daemons of the other hosts",
        )
    if told["mode"] == "handler":
        return warning(
            "daemon",
            f"the application takes the connections itself for {told['mode_seconds']:.0f} s: "
            f"{told['mode_reason']}",
            "a logger that serves",
            "see that `midstream logger` and `midstream daemon` run on the logger, and that it is reached",
        )
    return ok("daemon", f"working, {told['repaired']} repaired")
