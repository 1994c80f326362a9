"""The spool's process: started, found, restarted and ended, with a stand-in for the logger itself."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from tests.support.events import collected

from midstream.config import Config, DaemonSection, HardworkerSection
from midstream.daemon import spool as module
from midstream.daemon import unprivileged
from midstream.daemon.spool import Spool
from midstream.errors import NetworkError
from midstream.network import Host, SensorStream, Topology

ROOT = Path(__file__).resolve().parents[3]

HOME = Host(IPv4Address("127.0.0.1"), "02:00:00:00:00:02")

OTHER = Host(IPv4Address("192.0.2.3"), "02:00:00:00:00:03")

# What `midstream logger` is to the daemon: it has the door, and hands back on a signal.
LOGGER = """
import os, signal, socket, sys, time
arguments = sys.argv[1:]
if not arguments:  # it stores what a logger may have lost
    sys.exit(0)
if "--drain" in arguments:
    time.sleep(0.5)
    sys.exit(0)
door = socket.socket(fileno=int(arguments[arguments.index("--door") + 1]))
door.setblocking(True)
door.listen()
os.write(int(arguments[arguments.index("--state") + 1]), b"the disk is gone")
signal.signal(signal.SIGUSR1, lambda *_: (door.close(), time.sleep(0.1), sys.exit(0)))
while True:
    connection, _ = door.accept()
    connection.sendall(b"here")
    connection.close()
"""


class Place:
    """A hardworker with a spool."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        with socket.socket() as probe:
            probe.bind((str(HOME.ip), port))
            port = probe.getsockname()[1]
        self.config = Config(daemon=DaemonSection(socket=str(folder / "run" / "daemon.sock")))
        self.topology = Topology((OTHER,), HOME, OTHER, tos=104, port=port, mtu=1500, size=1024)
        self.path = folder / "spool.db"
        self.said = collected()
        self.spools: list[Spool] = []

    def daemon(self) -> Spool:
        """What a daemon that starts now has."""
        made = Spool(self.config, self.path, time.monotonic)
        self.spools.append(made)
        return made

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


def stands_in(folder: Path) -> list["subprocess.Popen[bytes]"]:
    """From now on the stand-in is started; its processes."""
    stand_in = folder / "stand_in.py"
    stand_in.write_text(LOGGER)
    start = subprocess.Popen

    children: list[subprocess.Popen[bytes]] = []

    def popen(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        if unprivileged.__file__ not in command:
            return start(command, **options)
        *begin, name = command[:8]
        assert begin == [
            *(sys.executable, "-I", "-S", unprivileged.__file__),
            *(sys.executable, "-P", "-m"),
        ]
        arguments = command[8:] if name == "midstream" else []
        assert name in ("midstream", module.SALVAGE)
        children.append(start([*command[:6], str(stand_in), *arguments], **options))
        return children[-1]

    subprocess.Popen = popen  # type: ignore[misc,assignment]
    return children


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(subprocess, "Popen", subprocess.Popen)  # put back at the end
    children = stands_in(tmp_path)
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
        assert (state(spool), spool._hears()) == ("running", False)
        client.settimeout(20)
        assert client.recv(4) == b"here", "who came before is served"


def test_who_would_rather_wait_is_let_in_when_the_process_is_there(place: Place) -> None:
    """It listens itself, once its database is open."""
    place.config = place.config.model_copy(update={"hardworker": HardworkerSection(spool_full="wait")})
    spool = place.daemon()
    spool.keep(place.topology, here=True, logger=False)
    assert state(spool) == "running"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((str(HOME.ip), place.topology.port), 5)
    place.until(spool, place.answers, here=True)


DIES = """
import os, signal, sys, time
from tests.unit.daemon import test_spool as module
from midstream.daemon.spool import Spool
from pathlib import Path
place = module.Place(Path(sys.argv[1]), int(sys.argv[2]))
launch = Spool._launch
def launch_and_die(*arguments, **options):
    child = launch(*arguments, **options)
    if sys.argv[3] == "started":
        os.kill(os.getpid(), signal.SIGKILL)
    return child
Spool._launch = launch_and_die
module.stands_in(Path(sys.argv[1]))
spool = place.daemon()
spool.open(place.topology)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["started", "open"])
def test_the_next_daemon_finds_one_whose_daemon_has_just_died(place: Place, moment: str) -> None:
    """kill -9 as soon as the process has been started, and as soon as sensors are let in."""
    command = [sys.executable, "-c", DIES, str(place.path.parent), str(place.topology.port), moment]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), *sys.path))}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    spool = place.daemon()
    spool.adopt(place.topology)
    pid = spool.pid
    assert pid
    try:
        if moment == "started":  # nobody was let in yet: another one takes its place
            place.until(spool, lambda: spool.pid not in (0, pid), here=True)
        assert place.answers()
        assert state(spool) == "running"
    finally:
        for each in {pid, spool.pid} - {0}:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)


def test_what_it_cannot_store_is_told(place: Place) -> None:
    spool = place.daemon()
    assert spool.fault() == ""
    place.until(spool, lambda: bool(spool.fault()), here=True)
    assert spool.fault() == "the disk is gone"
    place.until(spool, lambda: spool.state == "off", here=False)
    assert spool.fault() == ""


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


def test_one_that_has_no_door_for_a_new_stream_makes_room_for_the_next(place: Place) -> None:
    first = place.daemon()
    place.until(first, place.answers, here=True)
    first.close()
    old, port = first.pid, place.topology.port
    with socket.socket() as probe:
        probe.bind((str(HOME.ip), 0))
        another = probe.getsockname()[1]
    streams = SensorStream("imu", port, "fixed", 64), SensorStream("gps", another, "line", 100)
    second = place.daemon()
    second.adopt(place.topology)
    place.topology = replace(place.topology, streams=streams)
    deadline = time.monotonic() + 20
    while second.pid == old or second.state != "running":
        assert time.monotonic() < deadline, place.said
        with suppress(NetworkError):  # the old one still has its door
            second.keep(place.topology, here=True, logger=True)
        time.sleep(0.02)
    assert place.answers()
    socket.create_connection((str(HOME.ip), another), 10).close()


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


@pytest.mark.slow
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
    look = "/bin/sh", "-c", "echo $$ >&2; cat /proc/self/status >&2; echo nobody reads this"
    command = [sys.executable, "-I", "-S", unprivileged.__file__, *look]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    number, *lines = found.stderr.splitlines()
    assert found.stdout.split() == [number], "it says its number, and then nothing"
    told = dict(line.split(":\t", 1) for line in lines)
    assert {told[name].strip("0") for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
    assert told["NoNewPrivs"] == "1"
