"""The daemons of a lab: one on each host, each with a folder, a config.toml and a log of its own.

They find each other as on a real network; nothing of what they find is told to them but the key.
"""

import os
import shutil
import sys
import time
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from midstream import key
from midstream.config import Role
from midstream.daemon import status
from midstream.errors import LabError
from midstream.lab import namespaces
from midstream.lab.hosts import INTERFACE
from midstream.lab.lab import Lab
from midstream.lab.needs import ProcessProgress
from midstream.lab.state import toml

PATIENCE = 60.0  # seconds until all have found each other
PATIENCE_EACH = 2.0
SLOWNESS = 30  # the same, in the time that a daemon takes until it answers: a second, on a quick machine
_POLL = 0.02


def start(lab: Lab, hosts: Collection[str] = (), **daemon: object) -> float:
    """Start the daemons of these hosts (default: all, sensors first), and wait until each is ready.

    Returns the seconds from the start of the first process until the last was ready. daemon: keys for the
    table [daemon] of their config.toml. A daemon that runs already is left alone. Raises LabError with what a
    daemon has logged if it ends or is not ready in time.
    """
    began = time.monotonic()
    names = list(hosts) or [host.name for host in reversed(lab.hosts)]
    pids = {name: launch(lab, name, role=_role(name), **daemon) for name in names if state(lab, name) is None}
    for name, pid in pids.items():
        process = ProcessProgress(pid)
        while state(lab, name) is None:
            if not process.is_alive:
                raise LabError(f"{name}: its daemon has ended; {_log(lab, name)}")
            if process.is_stuck:
                raise LabError(f"{name}: its daemon, process {pid}, hangs; {_log(lab, name)}")
            time.sleep(_POLL)
    answered = time.monotonic()
    patience = max(PATIENCE + PATIENCE_EACH * len(lab.hosts), SLOWNESS * (answered - began))
    for name, pid in pids.items():
        process = ProcessProgress(pid)
        while not ((found := state(lab, name)) and found["ready_after"]):
            if not process.is_alive:
                raise LabError(f"{name}: its daemon has ended; {_log(lab, name)}")
            if time.monotonic() - answered > patience:
                reason = found["reason"] if found else "it no longer answers"
                raise LabError(
                    f"{name}: its daemon is not ready after {patience:.0f} s: {reason}; {_log(lab, name)}"
                )
            time.sleep(_POLL)
    return time.monotonic() - began


def launch(lab: Lab, name: str, *, role: Role | None = None, **daemon: object) -> int:
    """Start a host's daemon, and do not wait; its process id. It lives until it is ended, or the lab is.

    role: another than that of the host's name.
    """
    if not (lab.run_dir / "key").exists():
        key.make(lab.run_dir / "key")
    config = _write_config(lab, name, role or _role(name), **daemon)
    # Not on the hardworker's core, which is its application's and its NAPI thread's.
    return namespaces.call(lab.host(name).namespace, lab.host("logger").cpus, _spawn, config)


def state(lab: Lab, name: str) -> dict[str, Any] | None:
    """What a host's daemon says of itself; None if it does not run."""
    return status.ask(folder(lab, name) / "daemon.sock")


def is_logger_taken(lab: Lab) -> bool:
    """Do new connections go to the logger, and has the hardworker's daemon heard that it listens?"""
    found = state(lab, "hardworker")
    return bool(
        found and found["destination"] == str(lab.host("logger").ip) and not found["destination_reason"]
    )


def folder(lab: Lab, name: str) -> Path:
    """Where a host's daemon has its files."""
    return lab.run_dir / name


def remove(run_dir: Path, names: Collection[str]) -> None:
    """Remove what the daemons of a lab have left in its run directory."""
    for name in names:
        if (run_dir / name / "daemon.log").exists():
            shutil.rmtree(run_dir / name)
    (run_dir / "key").unlink(missing_ok=True)


def _write_config(lab: Lab, name: str, role: Role, **daemon: object) -> Path:
    """The lab's config.toml, with what makes this host another than the others."""
    place = folder(lab, name)
    place.mkdir(exist_ok=True)
    settings: dict[str, Any] = tomllib.loads(lab.config.read_text())
    pins = {"pins": f"{settings['network']['pins']}/{name}"} if name.startswith("sensor") else {}
    settings["role"] = role
    # The programs of the lab read the const.toml that the hardworker's daemon writes.
    settings["const"] = str(lab.const) if name == "hardworker" else "const.toml"
    settings["network"] = settings["network"] | {"interface": INTERFACE} | pins
    settings["daemon"] = {
        "key": "../key",
        "name": name,
        "socket": str(place / "daemon.sock"),
        "sensors": len(lab.sensors),
    } | daemon
    path = place / "config.toml"
    path.write_text(toml(settings))
    return path


def _role(name: str) -> Role:
    return "sensor" if name.startswith("sensor") else "logger" if name == "logger" else "hardworker"


def _spawn(config: Path) -> int:
    """Start the daemon in this namespace, with its own session and its own log."""
    log = config.with_name("daemon.log")
    write = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-m", "midstream", "daemon", "--config", str(config)],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), write, 0o644),
            (os.POSIX_SPAWN_OPEN, 2, str(log), write, 0o644),
        ],
        setsid=True,
    )


def _log(lab: Lab, name: str) -> str:
    """What its log says at last, in words."""
    path = folder(lab, name) / "daemon.log"
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        return f"{path}: {error.strerror}"
    if not lines:
        return f"{path} is empty: it was ended from outside (`dmesg` tells if memory was short)"
    return f"{path} says:\n" + "\n".join(f"  {line}" for line in lines[-12:])
