"""The hosts under chaos: programs that are started again when they have ended, and what befalls them."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from tests.lab.chaos import power
from tests.lab.chaos.application import ROW
from tests.lab.chaos.healed import HARDWORKER_OUT
from tests.lab.chaos.judge import Event
from tests.lab.chaos.messages import DATA, Flow
from tests.lab.processes import on_host
from tests.lab.test_daemon import daemon_pid, falsify, flush, set_port
from tests.lab.test_logger_killed import workers
from tests.lab.triangle import HARDWORKER, PROGRAM, TOS, command, wait_until

from midstream.daemon.way import SPOOL
from midstream.lab import Lab, daemons

HERE = Path(__file__).parent
PATIENCE = 60.0  # seconds until the application hears every sensor again
HANDED_BACK = 300.0  # seconds until a logger that has failed often is trusted, and has all that the spool had
WORD = 0.5  # seconds in which a logger's daemon that goes on has said what is committed
DESCRIPTORS, MORE = 64, 20  # that the logger may have, and for each stream behind the first
_PIECE, _BLOCK = 64 << 20, 4096  # bytes by which a disk is filled, at first and at last
FIRST_PORT, PORTS = 1_024, 30_000  # of the first client, and for all: below those that the kernel chooses

Undo = Callable[[], None]


class Survivor:
    """A program of a host that is started again when it has ended, as systemd does it."""

    def __init__(self, lab: Lab, host: str, folder: Path, argv: Callable[[int], list[str | Path]]) -> None:
        self._lab, self._host, self._argv = lab, host, argv
        self._folder = folder
        self._process: subprocess.Popen[Any] | None = None
        self.lives = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def revive(self) -> None:
        """Start it, unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        self.lives += 1
        with (self._folder / f"{self.lives}.err").open("w") as errors:
            self._process = self._lab.popen(
                self._host, self._argv(self.lives), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def result(self, seconds: float) -> int:
        """Wait for its end; its exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def words(self) -> Iterator[tuple[str, str]]:
        """What each life has said."""
        for path in sorted(self._folder.glob("*.err")):
            yield f"{self._folder.name} {path.stem}", path.read_text(errors="replace")


class Sender(NamedTuple):
    """A client on a sensor's host. number: no other has it."""

    number: int
    flow: Flow
    host: str

    @property
    def name(self) -> str:
        return f"{self.host} {self.flow.name}"


@dataclass
class Storm:
    """Everything that runs, and what has happened to it. flows: what the sensors send, of a stream each; an
    application reads each."""

    lab: Lab
    folder: Path
    disk: Path
    random: Random
    sensors: int = 2
    flows: Sequence[Flow] = (DATA,)
    senders: list[Sender] = field(init=False)
    logger: Survivor = field(init=False)
    applications: list[Survivor] = field(init=False)
    clients: list[Survivor] = field(init=False)
    events: list[Event] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    gaps: list[tuple[str, float]] = field(default_factory=list)  # until a fault's last sensor was heard again

    def __post_init__(self) -> None:
        sending = [
            (flow, self.sensor_names[host])
            for flow in self.flows
            for host in flow.hosts
            if host < self.sensors
        ]
        self.senders = [Sender(number, flow, host) for number, (flow, host) in enumerate(sending)]
        self.logger = self._survivor("logger", "logger", self._logger)
        self.applications = [
            self._survivor(f"application {flow.name}", "hardworker", self._application(flow))
            for flow in self.flows
        ]
        self.clients = [self._survivor(one.name, one.host, self._client(one)) for one in self.senders]

    @property
    def sensor_names(self) -> list[str]:
        return ["sensor", *(f"sensor-{number}" for number in range(2, self.sensors + 1))]

    @property
    def hosts(self) -> list[str]:
        return ["hardworker", "logger", *self.sensor_names]

    def rows(self, flow: Flow) -> Path:
        """What its application has written."""
        return self.folder / f"{flow.name}.rows"

    @property
    def stop(self) -> Path:
        """Exists when the clients are to end."""
        return self.folder / "stop"

    def accounts(self, flow: Flow) -> list[Path]:
        """What the flow's clients have written."""
        return [self._account(sender) for sender in self.senders if sender.flow == flow]

    def _account(self, sender: Sender) -> Path:
        return self.folder / f"{sender.name}.account"

    def everything(self) -> list[Survivor]:
        return [self.logger, *self.applications, *self.clients]

    def revive(self) -> None:
        """Start whatever does not run, the daemons too."""
        self.logger.revive()
        for application in self.applications:
            application.revive()
        for name in self.hosts:
            if not _runs(name):
                daemons.launch(self.lab, name, sensors=self.sensors)

    def rage(self, seconds: float) -> None:
        """One or two faults at a time, at random moments, until so many seconds have passed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            faults = self.random.sample(FAULTS, 2 if self.random.random() < 0.3 else 1)
            begun = []
            for fault in faults:
                name = fault.__name__.replace("_", " ")
                self.counts[name] = self.counts.get(name, 0) + 1
                begun.append((time.monotonic(), fault(self)))
            time.sleep(self.random.uniform(0, 2.5))
            for since, (what, undo) in begun:
                undo()
                self.events.append(Event(what, since - 1, time.monotonic() + 1))
            self.revive()
            time.sleep(self.random.uniform(0, 2))

    def begin(self) -> None:
        """Start everything, and return when the applications have a message of each client."""
        self._revive_all()
        wait_until(lambda: all(self.rows(flow).exists() for flow in self.flows), PATIENCE)
        self._await_fresh(time.monotonic())

    def strike(self, fault: "Fault") -> None:
        """One fault, until it is over and every client's messages arrive again."""
        name = fault.__name__.replace("_", " ")
        self.counts[name] = self.counts.get(name, 0) + 1
        since = time.monotonic()
        what, undo = fault(self)
        longest = 10.0 if "stopped" in what and self.random.random() < 0.1 else 1.5
        time.sleep(self.random.uniform(0, longest))
        undo()
        self._revive_all()
        healed = time.monotonic()
        self._await_fresh(healed)
        self.gaps.append((what, time.monotonic() - healed))
        wait_until(self._is_saved, PATIENCE)
        time.sleep(WORD)
        self.events.append(Event(what, since, time.monotonic()))

    def await_logger(self) -> None:
        """Return when a logger takes the data, and has what the spool took meanwhile. Until then the spool's
        kernel has what no other host has, and loses it with the hardworker's power."""
        wait_until(lambda: self._hardworker() == ("logger", "off"), HANDED_BACK)

    def is_handed_back(self, spool: Path) -> bool:
        """Is no message left in the spool's file?"""
        self.revive()  # the last logger may have ended, since its port was not free yet
        if not spool.exists():
            return True
        with closing(sqlite3.connect(f"file:{spool}?mode=ro", uri=True)) as messages:
            ((count,),) = messages.execute("SELECT count(*) FROM messages").fetchall()
        return bool(count == 0)

    def _hardworker(self) -> tuple[str, str]:
        """Where the data goes, and what the spool's process does."""
        self._revive_all()
        found = daemons.state(self.lab, "hardworker") or {"destination": "", "spool": ""}
        return SPOOL if found["destination"] == SPOOL else "logger", found["spool"]

    @property
    def spool_pid(self) -> int:
        """The spool's process, also one that has ended; 0: there never was one."""
        place = daemons.folder(self.lab, "hardworker") / "spool.pid"
        return int(place.read_text() or 0) if place.exists() else 0

    def _is_saved(self) -> bool:
        """Would nothing be lost by another death? Nothing that a logger may have lost is in the memory of the
        hardworker's daemon alone, and what it has not committed is retained: that is little, if its log goes
        on. (The ring retains half of its size at most.)"""
        self._revive_all()
        found = daemons.state(self.lab, "hardworker")
        if found is None or found["unsaved"]:
            return False
        if found["destination"] == SPOOL:
            return True
        return bool(found["retains"]) and all(
            self._age_of_log(flow) < WORD + 1 / flow.rate for flow in self.flows
        )

    def _age_of_log(self, flow: Flow) -> float:
        """Seconds since the newest message of the stream in the log was received."""
        with closing(sqlite3.connect(f"file:{self.disk / 'log.db'}?mode=ro", uri=True)) as log:
            ((newest,),) = log.execute(_NEWEST, (flow.name,)).fetchall()
        return time.time() - (newest or 0) / 1e9

    def _await_fresh(self, since: float) -> None:
        """Return when the applications have a message of each client that came after this moment."""
        deadline = time.monotonic() + PATIENCE
        for flow in self.flows:
            self._await_fresh_of(flow, since, deadline)

    def _await_fresh_of(self, flow: Flow, since: float, deadline: float) -> None:
        missing = {sender.number for sender in self.senders if sender.flow == flow}
        rows = self.rows(flow)
        with rows.open("rb") as file:
            file.seek(max(0, rows.stat().st_size // ROW.itemsize - 1000) * ROW.itemsize)
            while missing:
                assert time.monotonic() < deadline, f"{flow.name}: {missing} are not heard: {self.counts}"
                data = file.read(ROW.itemsize * 10_000)
                file.seek(-(len(data) % ROW.itemsize), os.SEEK_CUR)
                found = np.frombuffer(data, ROW, len(data) // ROW.itemsize)
                fresh = found[(found["committed"] == 0) & (found["time"] > since)]
                missing -= set(fresh["sensor"].tolist())
                self._revive_all()
                time.sleep(0.02)

    def _revive_all(self) -> None:
        """The clients too: their hosts lose power."""
        self.revive()
        for client in self.clients:
            client.revive()

    def _survivor(self, name: str, host: str, argv: Callable[[int], list[str | Path]]) -> Survivor:
        folder = self.folder / name
        folder.mkdir()
        return Survivor(self.lab, host, folder, argv)

    def _logger(self, life: int) -> list[str | Path]:
        limit = f"--nofile={DESCRIPTORS + MORE * (len(self.flows) - 1)}"
        return ["/usr/bin/prlimit", limit, PROGRAM, "logger", "--config", self.lab.config]

    def _application(self, flow: Flow) -> Callable[[int], list[str | Path]]:
        program: list[str | Path] = [
            sys.executable,
            "-P",
            HERE / "application.py",
            self.lab.config,
            self.rows(flow),
        ]
        return lambda life: [*program, str(life), flow.name]

    def _client(self, sender: Sender) -> Callable[[int], list[str | Path]]:
        flow = sender.flow
        source = FIRST_PORT + sender.number * (PORTS // len(self.senders))
        arguments = map(str, (sender.number, HARDWORKER, flow.port, TOS, flow.rate, source))
        command: list[str | Path] = [sys.executable, "-P", HERE / "client.py", *arguments]
        return lambda life: [*command, self._account(sender), self.stop, flow.name]


_NEWEST = """
SELECT max((SELECT received_ns FROM messages WHERE connection_id = id ORDER BY sequence DESC LIMIT 1))
FROM connections WHERE coalesce(stream, 'data') = ?
"""

# Each fault begins, and returns what the judge is to know of it, and how it ends.

Begun = tuple[str, Undo]
Fault = Callable[[Storm], Begun]


def application_killed(storm: Storm) -> Begun:
    storm.random.choice(storm.applications).send(signal.SIGKILL)
    return "application killed", storm.revive


def application_stopped(storm: Storm) -> Begun:
    application = storm.random.choice(storm.applications)
    application.send(signal.SIGSTOP)
    return "application stopped", lambda: application.send(signal.SIGCONT)


def application_ends(storm: Storm) -> Begun:
    storm.random.choice(storm.applications).send(signal.SIGTERM)
    return "application ends", storm.revive


def worker_killed(storm: Storm) -> Begun:
    for pid in _workers(storm):
        os.kill(pid, signal.SIGKILL)
    return "worker killed", storm.revive


def worker_stopped(storm: Storm) -> Begun:
    pids = _workers(storm)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)

    def go_on() -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    return "worker stopped", go_on


def holder_killed(storm: Storm) -> Begun:
    storm.logger.send(signal.SIGKILL)
    return "holder killed", storm.revive


def holder_and_worker_killed(storm: Storm) -> Begun:
    worker_killed(storm)
    return holder_killed(storm)


def holder_stopped(storm: Storm) -> Begun:
    storm.logger.send(signal.SIGSTOP)
    return "holder stopped", lambda: storm.logger.send(signal.SIGCONT)


def daemon_killed(storm: Storm) -> Begun:
    os.kill(daemon_pid(storm.random.choice(_daemons(storm))), signal.SIGKILL)
    return "daemon killed", storm.revive


def daemon_stopped(storm: Storm) -> Begun:
    pid = daemon_pid(storm.random.choice(_daemons(storm)))
    os.kill(pid, signal.SIGSTOP)
    return "daemon stopped", lambda: os.kill(pid, signal.SIGCONT)


def process_killed(storm: Storm) -> Begun:
    """Any process of any host but the spool's own, whose kernel has what no other host has."""
    host = storm.random.choice(storm.hosts)
    pids = set(on_host(host)) - {storm.spool_pid}
    os.kill(storm.random.choice(sorted(pids)), signal.SIGKILL)
    return "process killed", storm.revive


def disk_full(storm: Storm) -> Begun:
    return "disk full", fill(storm.disk)


def cable_out(storm: Storm) -> Begun:
    host = storm.random.choice(storm.hosts)
    set_port(storm.lab, host, "disabled")
    return "cable out", lambda: set_port(storm.lab, host, "forwarding")


def neighbours_falsified(storm: Storm) -> Begun:
    storm.lab.call(storm.random.choice(storm.hosts), falsify)
    return "neighbours falsified", storm.revive


def neighbours_removed(storm: Storm) -> Begun:
    storm.lab.call(storm.random.choice(storm.hosts), flush)
    return "neighbours removed", storm.revive


def power_cut(storm: Storm) -> Begun:
    return _power_cut(storm, storm.random.choice(storm.hosts))


def logger_power_cut(storm: Storm) -> Begun:
    return _power_cut(storm, "logger")


def sensor_power_cut(storm: Storm) -> Begun:
    return _power_cut(storm, "sensor")


def _power_cut(storm: Storm, host: str) -> Begun:
    if host == "hardworker":
        storm.await_logger()
    power.cut(storm.lab, host)
    what = HARDWORKER_OUT if host == "hardworker" else f"{host.partition('-')[0]}'s power cut"
    return what, lambda: power.switch_on(storm.lab, host)


def program_detached(storm: Storm) -> Begun:
    """By a person, beside a running daemon, which attaches it again."""
    command(storm.lab, "hardworker", "detach", "hardworker", "--config", storm.lab.config)
    return "program detached", storm.revive


def crowd(storm: Storm) -> Begun:
    """Silent connections, more than the logger has descriptors for."""
    silent = storm.lab.popen(
        "sensor-2",
        [sys.executable, "-c", _CROWD, HARDWORKER, str(storm.random.choice(storm.flows).port), str(TOS)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )

    def disperse() -> None:
        silent.kill()
        silent.wait()

    return "crowd", disperse


_CROWD = """
import socket, sys, time
host, port, tos = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
silent = []
for number in range(80):
    one = socket.socket()
    one.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
    one.settimeout(0.2)
    try:
        one.bind(("", 0))
        one.connect((host, port))
    except OSError:
        pass
    silent.append(one)
time.sleep(60)
"""

FAULTS: list[Fault] = [
    application_killed,
    application_stopped,
    application_ends,
    worker_killed,
    worker_stopped,
    holder_killed,
    holder_and_worker_killed,
    holder_stopped,
    daemon_killed,
    daemon_stopped,
    disk_full,
    cable_out,
    neighbours_falsified,
    neighbours_removed,
    program_detached,
    crowd,
]


# After any one of these nothing may be missing.
SINGLE: list[Fault] = [
    application_killed,
    application_stopped,
    worker_killed,
    worker_stopped,
    holder_killed,
    holder_and_worker_killed,
    holder_stopped,
    daemon_killed,
    daemon_stopped,
    process_killed,
    process_killed,
    disk_full,
    cable_out,
    power_cut,
    power_cut,
    power_cut,
]
HANDFUL: list[Fault] = [worker_killed, application_killed, worker_killed]
FEW: list[Fault] = [logger_power_cut, worker_killed, sensor_power_cut, application_killed, daemon_killed]


def _workers(storm: Storm) -> list[int]:
    with suppress(FileNotFoundError):
        return workers(storm.logger.pid)
    return []


def _runs(name: str) -> bool:
    try:
        daemon_pid(name)
    except AssertionError:
        return False
    return True


def _daemons(storm: Storm) -> list[str]:
    return [name for name in storm.hosts if _runs(name)]


def fill(disk: Path) -> Undo:
    """Take all its room, to the last block, whoever takes some at the same time."""
    ballast, size, piece = disk / "ballast", 0, _PIECE
    with ballast.open("wb") as file:
        while piece >= _BLOCK:
            try:
                os.posix_fallocate(file.fileno(), size, piece)
                size += piece
            except OSError:  # nothing of this piece was taken
                piece //= 2
    return ballast.unlink


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, so that it can be filled."""
    folder.mkdir()
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "-o", f"size={size}", "chaos", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["/usr/bin/umount", "--lazy", folder], check=True)
