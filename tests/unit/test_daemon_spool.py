"""The spool's process: started, found, restarted and ended, with a stand-in for the logger itself."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from midstream.config import Config, DaemonSection
from midstream.daemon import spool as module
from midstream.daemon import unprivileged
from midstream.daemon.spool import Spool
from midstream.network import Host, Topology

HOME = Host(IPv4Address("127.0.0.1"), "02:00:00:00:00:02")
OTHER = Host(IPv4Address("192.0.2.3"), "02:00:00:00:00:03")

# What `midstream logger` is to the daemon: it has the door, and hands back on a signal.
LOGGER = """
import signal, socket, sys, time
arguments = sys.argv[1:]
if not arguments:  # it stores what a logger may have lost
    sys.exit(0)
if "--drain" in arguments:
    time.sleep(0.5)
    sys.exit(0)
door = socket.socket(fileno=int(arguments[arguments.index("--door") + 1]))
door.setblocking(True)
signal.signal(signal.SIGUSR1, lambda *_: (door.close(), time.sleep(0.1), sys.exit(0)))
while True:
    connection, _ = door.accept()
    connection.sendall(b"here")
    connection.close()
"""


class Place:
    """A hardworker with a spool."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind((str(HOME.ip), 0))
            port = probe.getsockname()[1]
        self.config = Config(daemon=DaemonSection(socket=str(folder / "run" / "daemon.sock")))
        self.topology = Topology((OTHER,), HOME, OTHER, tos=104, port=port, mtu=1500, size=1024)
        self.path = folder / "spool.db"
        self.said: list[dict[str, Any]] = []
        self.spools: list[Spool] = []

    def daemon(self) -> Spool:
        """What a daemon that starts now has."""
        made = Spool(self.config, self.path, self._log, time.monotonic)  # type: ignore[arg-type]
        self.spools.append(made)
        return made

    def _log(self, event: str, **facts: Any) -> None:
        self.said.append({"event": event, **facts})

    def until(self, one: Spool, condition: Callable[[], bool], *, here: bool, logger: bool = True) -> None:
        """Keep it until something is so."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, self.said
            one.keep(self.topology, here=here, logger=logger)
            time.sleep(0.02)

    def answers(self) -> bool:
        """Does the process serve a sensor?"""
        try:
            with socket.create_connection((str(HOME.ip), self.topology.port), 10) as client:
                return client.recv(4) == b"here"
        except ConnectionError:
            return False


def state(spool: Spool) -> str:
    return spool.state


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(LOGGER)
    start = subprocess.Popen

    children: list[subprocess.Popen[bytes]] = []

    def popen(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        *begin, name = command[:8]
        assert begin == [
            *(sys.executable, "-I", "-S", unprivileged.__file__),
            *(sys.executable, "-P", "-m"),
        ]
        arguments = command[8:] if name == "midstream" else []
        assert name in ("midstream", module.SALVAGE)
        children.append(start([*command[:6], str(stand_in), *arguments], **options))
        return children[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    made = Place(tmp_path)
    yield made
    for child in children:
        child.kill()
        child.wait()
    for one in made.spools:
        one.close()


def test_the_door_is_open_before_the_process_is_there(place: Place) -> None:
    spool = place.daemon()
    spool.open(place.topology)
    with socket.create_connection((str(HOME.ip), place.topology.port), 5) as client:
        assert state(spool) == "off"
        spool.keep(place.topology, here=True, logger=False)
        assert state(spool) == "running"
        client.settimeout(20)
        assert client.recv(4) == b"here", "who came before is served"


def test_it_goes_on_as_long_as_the_data_goes_here(place: Place) -> None:
    spool = place.daemon()
    place.until(spool, place.answers, here=True)
    first = spool.pid
    place.until(spool, spool._hears, here=True)
    for _ in range(20):
        spool.keep(place.topology, here=True, logger=True)
    assert (spool.state, spool.pid) == ("running", first) and place.answers()


def test_one_that_is_killed_is_started_again_behind_the_same_door(place: Place) -> None:
    spool = place.daemon()
    place.until(spool, place.answers, here=True)
    first = spool.pid
    os.kill(first, signal.SIGKILL)
    place.until(spool, lambda: spool.pid not in (0, first), here=True)
    assert place.answers()
    assert [fact["what"] for fact in place.said if fact["event"] == "spool"][-3:] == [
        "started",
        "ended",
        "started",
    ]


def test_it_hands_back_when_it_can_hear_and_owes_nothing_then(place: Place) -> None:
    """A signal to a Python that is only starting would end it."""
    spool = place.daemon()
    spool.keep(place.topology, here=True, logger=False)
    place.until(spool, lambda: spool.state == "handing back", here=False)
    place.until(spool, lambda: spool.state == "off", here=False)
    assert place.said[-1]["code"] == 0
    for _ in range(20):
        spool.keep(place.topology, here=False, logger=True)
        time.sleep(0.02)
    assert spool.state == "off", "nothing is left to give away"
    assert not place.answers()


def test_the_next_daemon_finds_it(place: Place) -> None:
    first = place.daemon()
    place.until(first, place.answers, here=True)
    first.close()
    second = place.daemon()
    second.adopt(place.topology)
    assert (second.state, second.pid) == ("running", first.pid)
    place.until(second, lambda: second.state == "off", here=False, logger=False)
    third = place.daemon()
    third.adopt(place.topology)
    assert third.state == "off", "a file alone is no process"


def test_what_a_daemon_has_left_is_stopped(place: Place) -> None:
    spool = place.daemon()
    place.until(spool, place.answers, here=True)
    pid = spool.pid
    spool.close()
    assert module.stop(place.config) == pid
    assert not place.answers()


def test_what_an_earlier_one_has_left_is_given_away_once_a_logger_is_there(place: Place) -> None:
    place.path.touch()
    spool = place.daemon()
    spool.keep(place.topology, here=False, logger=False)
    assert state(spool) == "off"
    spool.keep(place.topology, here=False, logger=True)
    assert state(spool) == "handing back"
    place.until(spool, lambda: spool.state == "off", here=False)
    assert [fact["what"] for fact in place.said if fact["event"] == "spool"][-2:] == ["gives back", "ended"]


def test_what_is_stored_while_one_gives_away_is_given_away_too(place: Place) -> None:
    """It may have looked for the last time before."""
    place.path.touch()
    spool = place.daemon()
    spool.keep(place.topology, here=False, logger=True)
    spool.save([])

    def told(what: str) -> int:
        return [fact["what"] for fact in place.said if fact["event"] == "spool"].count(what)

    place.until(spool, lambda: told("ended") == 1, here=False)
    assert told("saved") == 1
    place.until(spool, lambda: told("ended") == 2, here=False)
    for _ in range(20):
        spool.keep(place.topology, here=False, logger=True)
        time.sleep(0.02)
    assert told("gives back") == 2, "nothing is left to give away"


def test_one_that_hands_back_ends_when_it_is_needed_again(place: Place) -> None:
    spool = place.daemon()
    place.until(spool, place.answers, here=True)
    first = spool.pid
    place.until(spool, lambda: spool.state == "handing back", here=False)
    before, deadline, ended = time.monotonic_ns(), time.monotonic() + 20, 0
    while spool.pid in (0, first):
        assert time.monotonic() < deadline
        ended = spool.keep(place.topology, here=True, logger=True) or ended
        time.sleep(0.02)
    assert before < ended == spool._opened_ns, "who came since is not its own"
    assert place.answers()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to lose")
def test_it_has_no_capabilities() -> None:
    command = [sys.executable, "-I", "-S", unprivileged.__file__, "/bin/cat", "/proc/self/status"]
    told = dict(
        line.split(":\t", 1)
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    )
    assert {told[name].strip("0") for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
    assert told["NoNewPrivs"] == "1"
