"""The way of the data, beat by beat, with a program, a spool and loggers that are made up."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

import numpy as np
import pytest
from tests.support.events import collected

from midstream.daemon.failover import PATIENT, UNWATCHED, Limits
from midstream.daemon.heartbeat import Told, Watched
from midstream.daemon.sockets import LoggerWord
from midstream.daemon.way import EXPECTED, SPOOL, Way
from midstream.ebpf.control import Open
from midstream.ebpf.records import HERE, OUTCOMES
from midstream.errors import NetworkError
from midstream.lost import Lost
from midstream.network import Host, Topology

HOSTS = {n: Host(IPv4Address(f"192.0.2.{n}"), f"02:00:00:00:00:{n:02x}") for n in (2, 3, 4, 11)}
TOPOLOGY = Topology(
    (HOSTS[11],), HOSTS[2], HOSTS[3], tos=104, port=12345, mtu=1500, size=1024, standbys=(HOSTS[4],)
)
LOGGER, STANDBY = "192.0.2.3", "192.0.2.4"


@dataclass
class Program:
    """What the kernel has."""

    to: int = 0
    held: int = 0
    known: int = 0
    looks: int = 0
    resets: list[int] = field(default_factory=list)

    def destination(self) -> int:
        return self.to

    def send_to(self, destination: int) -> None:
        self.to = destination

    def look(self) -> tuple[list[Open], np.ndarray]:
        self.looks += 1
        counters = np.zeros((2, len(OUTCOMES)), "<u8")
        counters[0, OUTCOMES.index("duplicate")] = self.known
        one = Open(
            HOSTS[11].ip,
            4000,
            first=1,
            acknowledged=7,
            next=self.held,
            number=1,
            sensor=0,
            destination=0,
            opened_ns=0,
            seen_ns=0,
        )
        return [one] if self.held else [], counters

    def reset(self, destination: int, before_ns: int = 0) -> int:
        self.resets.append(destination)
        return 1


class Spool:
    """What the daemon does to it."""

    def __init__(self) -> None:
        self.state, self.path = "off", "spool.db"
        self.did: list[str] = []
        self.saved: list[Lost] = []
        self.dies = False
        self.refused = ""

    def adopt(self, topology: Topology) -> None:
        self.did.append("adopt")

    def open(self, topology: Topology) -> None:
        if self.refused:
            raise NetworkError(self.refused)
        self.did.append("open")

    def save(self, lost: list[Lost]) -> None:
        self.saved += lost

    def keep(self, topology: Topology, *, here: bool, logger: bool) -> int:
        if self.dies:
            self.dies = False
            return 1
        self.state = "running" if here else "off"
        return 0


class World:
    """A hardworker's daemon whose time only passes here."""

    def __init__(self, *, spool: bool = True, retention: Any = None) -> None:
        self.now = 0.0
        self.program, self.spool = Program(), Spool()
        self.said = collected()
        self.watched = {ip: Watched((ip, 1), 0.0) for ip in (LOGGER, STANDBY)}
        self.way = Way(
            self.program,
            self.spool if spool else None,  # type: ignore[arg-type]
            Limits(2.0, 2.0),
            lambda: self.now,
            self._worker,
            retention,
        )

    async def _worker(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    def answer(self, ip: str, told: Told | None = None) -> None:
        watched = self.watched[ip]
        watched.told, watched.answered = told or Told(True), self.now
        watched.served = watched.served or watched.told.serves
        if watched.told.serves and watched.told.waits < 1:
            watched.well = self.now if watched.well is None else watched.well
        else:
            watched.well = None

    def both(self) -> None:
        self.answer(LOGGER)
        self.answer(STANDBY)

    def beats(self, seconds: float, each: Callable[[], None] = lambda: None) -> None:
        """Ten a second."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            each()
            asyncio.run(self.way.look(TOPOLOGY, [0, 1], self.watched))

    def take_up(self, *, logger: bool, watched: bool = True) -> None:
        asyncio.run(self.way.take_up(TOPOLOGY, logger=logger, watched=watched))


def test_nothing_is_read_while_all_is_well() -> None:
    world = World()
    world.beats(5, lambda: world.answer(LOGGER))
    assert (world.program.looks, world.program.to, world.spool.did) == (0, 0, [])


def test_a_power_cut() -> None:
    """A sensor repeats its oldest segment after 0.2 s, 0.6 s, and so on."""
    world = World()
    world.program.held = 1024
    world.beats(1, lambda: world.answer(LOGGER))
    died = world.now

    def repeat() -> None:
        world.program.known = sum(world.now - died >= after for after in (0.21, 0.62, 1.44))

    world.beats(0.6, repeat)
    assert world.program.to == 0
    world.beats(0.3, repeat)
    assert (world.program.to, world.program.resets, world.spool.did) == (HERE, [0], ["open"])
    assert world.way.name(TOPOLOGY) == SPOOL
    assert world.way.reason.startswith("192.0.2.3: its daemon has not answered for 0.")


def test_a_daemon_that_stands_still_while_its_kernel_acknowledges() -> None:
    world = World()
    world.program.held = 1
    world.beats(1, lambda: world.answer(LOGGER))

    def lossy_wire() -> None:
        world.program.held += 1024
        world.program.known += 3

    world.beats(10, lossy_wire)
    assert (world.program.to, world.program.resets) == (0, [])


def test_a_cable_that_is_out_and_comes_back() -> None:
    world = World()
    world.program.held = 1024
    world.beats(1, lambda: world.answer(LOGGER))
    world.beats(10)
    world.program.known += 4  # heard just before the logger is
    world.beats(0.1)
    world.beats(1, lambda: world.answer(LOGGER))
    assert (world.program.to, world.program.resets) == (0, [])


def test_a_standby_takes_over_and_is_kept() -> None:
    world = World()
    world.beats(1, world.both)

    def stopped() -> None:
        world.both()
        world.answer(LOGGER, Told(False))

    world.beats(0.5, stopped)
    assert (world.program.to, world.program.resets) == (1, [0])
    world.beats(5, world.both)
    assert (world.program.to, world.spool.did) == (1, [])


def test_a_logger_that_takes_nothing_and_takes_again() -> None:
    world = World()
    world.program.held = 1024
    world.beats(1, lambda: world.answer(LOGGER))
    began = world.now

    def stalled() -> None:
        world.program.known = round((world.now - began) * 2)
        world.answer(LOGGER, Told(True, world.now - began))

    world.beats(1.9, stalled)
    assert world.program.to == 0
    world.beats(1, stalled)
    assert (world.program.to, world.program.resets) == (HERE, [0])
    world.beats(5, stalled)
    assert world.program.to == HERE, "as long as it does not take"
    world.beats(1, lambda: world.answer(LOGGER))
    assert (world.program.to, world.program.resets) == (0, [0]), "what the spool has ends by itself"


@pytest.mark.slow
def test_who_fails_again_and_again_is_left_alone_longer() -> None:
    world = World()
    world.beats(0.1, lambda: world.answer(LOGGER))
    away = []
    for _ in range(9):
        world.beats(0.3, lambda: world.answer(LOGGER, Told(False)))
        assert world.program.to == HERE
        left = world.now
        while world.program.to == HERE:
            world.beats(0.1, lambda: world.answer(LOGGER))
        away.append(world.now - left)
    assert away == sorted(away) and away[0] < 1 and away[-1] == pytest.approx(PATIENT, abs=1)


def test_a_boot_without_a_logger() -> None:
    """Nobody has a connection that a switch would end; the spool is the way from the beginning."""
    world = World()
    world.take_up(logger=False)
    assert (world.program.to, world.spool.did) == (HERE, ["adopt", "open"])
    world.beats(1)
    world.beats(1, lambda: world.answer(LOGGER))
    assert world.program.to == 0


def test_without_a_key_nobody_is_expected() -> None:
    world = World()
    world.take_up(logger=True, watched=False)
    assert (world.program.to, world.way.reason) == (0, UNWATCHED)


def test_a_logger_that_boots_is_expected() -> None:
    """Its daemon answers first. A spool for a second would only cost the sensors their connections."""
    world = World()
    world.take_up(logger=True)
    assert world.way.reason == EXPECTED
    world.beats(1.8, lambda: world.answer(LOGGER, Told(False)))
    assert (world.program.to, world.way.reason) == (0, EXPECTED)
    world.beats(0.1, lambda: world.answer(LOGGER))
    assert (world.program.to, world.way.reason, world.spool.did) == (0, "", ["adopt"])


def test_a_logger_that_boots_for_long_is_not_waited_for() -> None:
    """And the data changes its way once more only when that logger is there."""
    world = World()
    world.take_up(logger=True)
    world.beats(10, lambda: world.answer(LOGGER, Told(False)))
    world.beats(10, lambda: world.answer(LOGGER))
    assert [facts["destination"] for facts in world.said] == [SPOOL, LOGGER]
    assert world.way.reason == ""


def test_a_daemon_that_starts_anew_goes_on() -> None:
    world = World()
    world.program.held = 1024
    world.take_up(logger=False)
    assert (world.program.to, world.spool.did) == (0, ["adopt"])
    world.program.to = HERE
    world.take_up(logger=True)
    assert world.way.destination == HERE


def test_maps_that_are_new_are_told() -> None:
    world = World()
    world.beats(2.5, lambda: world.answer(LOGGER, Told(False)))
    assert world.program.to == HERE
    world.program.to = 0
    asyncio.run(world.way.hold())
    assert world.program.to == HERE


def test_a_spool_that_dies_takes_its_connections_with_it() -> None:
    world = World()
    world.beats(2.5, lambda: world.answer(LOGGER, Told(False)))
    world.program.resets.clear()
    world.spool.dies = True
    world.beats(0.2, lambda: world.answer(LOGGER, Told(False)))
    assert world.program.resets == [HERE]


def test_a_door_that_cannot_be_had_changes_nothing() -> None:
    world = World()
    world.spool.refused = "port 12345: in use"
    with pytest.raises(NetworkError):
        world.beats(2.5, lambda: world.answer(LOGGER, Told(False)))
    assert (world.program.to, world.way.destination, world.program.resets) == (0, 0, [])


def test_without_a_spool_the_logger_is_waited_for_and_that_is_said_once() -> None:
    world = World(spool=False)
    world.beats(3, lambda: world.answer(LOGGER, Told(False)))
    assert world.program.to == 0
    assert [facts["reason"] for facts in world.said] == ["no logger listens on each stream's port"]


class Retention:
    """What it was asked."""

    def __init__(self) -> None:
        self.did: list[Any] = []

    def hear(self, destination: int, word: LoggerWord) -> list[Lost]:
        self.did.append(("hear", destination, word.run))
        return [LOST] if word.run == "other" else []

    def renew(self) -> None:
        self.did.append("renew")

    def look(self) -> None:
        self.did.append("look")

    def leave(self) -> list[Lost]:
        self.did.append("leave")
        return [LOST]

    def withdraw(self) -> None:
        self.did.append("withdraw")


LOST = Lost("192.0.2.11", 4000, 1, 0, 0, False, [])


def retaining() -> tuple[World, Retention]:
    retention = Retention()
    return World(retention=retention), retention


def serving(run: str) -> Told:
    return Told(True, word=LoggerWord(run))


def test_each_answer_is_told_once() -> None:
    world, retention = retaining()
    world.beats(0.2, lambda: world.answer(LOGGER, serving("a")))
    world.beats(0.1)
    assert retention.did == [("hear", 0, "a"), ("hear", 0, "a"), "renew"]


def test_of_a_logger_that_is_left_all_is_saved() -> None:
    """What it said last holds, also beyond a second, until it is left."""
    world, retention = retaining()
    world.program.held = 1024
    world.beats(0.1, lambda: world.answer(LOGGER, serving("a")))
    retention.did.clear()
    world.beats(1.5)
    assert retention.did == ["renew"] * 15
    world.program.known = 3
    world.beats(1)
    assert world.program.to == HERE
    assert [one for one in retention.did if one != "renew"] == ["look", "leave"]
    assert world.spool.saved == [LOST]


def test_the_word_of_a_silent_logger_holds_until_it_is_left() -> None:
    world, retention = retaining()
    world.beats(0.1, lambda: world.answer(LOGGER, serving("a")))
    world.beats(20)
    assert world.program.to == 0, "nobody sends anything"
    assert len(retention.did) == pytest.approx(1 + 200, abs=2)


def test_another_run_of_the_logger() -> None:
    world, _ = retaining()
    world.beats(0.1, lambda: world.answer(LOGGER, serving("other")))
    assert world.spool.saved == [LOST]
