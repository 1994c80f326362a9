"""What a hardworker's daemon does about its loggers, with a way that only remembers what it was told."""

import asyncio
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.announcements import announcement
from tests.support.events import collected

from midstream.config import Config, DaemonSection, HardworkerSection, LoggerSection, Role
from midstream.daemon import destinations
from midstream.daemon.destinations import Destinations
from midstream.daemon.heartbeat import Watched
from midstream.errors import KernelError
from midstream.network import Host, Topology

HOSTS = {n: Host(IPv4Address(f"10.0.0.{n}"), f"02:00:00:00:00:{n:02x}") for n in (2, 3, 4, 11)}
TOPOLOGY = Topology(
    (HOSTS[11],), HOSTS[2], HOSTS[3], tos=104, port=12345, mtu=1500, size=1024, standbys=(HOSTS[4],)
)
PORT = 12346


class Asks:
    """A heartbeat. asked: how often."""

    def __init__(self) -> None:
        self.watched: dict[str, Watched] = {}
        self.asked = 0

    def watch(self, hosts: dict[str, int]) -> None:
        self.watched = {ip: Watched((ip, port), 0.0) for ip, port in hosts.items()}

    def ask(self) -> None:
        self.asked += 1


def stub(**facts: object) -> Any:
    """A part that has these."""
    return SimpleNamespace(**facts)


class World:
    def __init__(
        self, folder: Path, *, role: Role = "hardworker", key: bool = True, retain: bool = True
    ) -> None:
        (folder / "key").write_bytes(b"k" * 32)
        (folder / "key").chmod(0o600)
        self.said = collected()
        self.asks: Asks | None = Asks() if key else None
        self.host = stub(
            identity=SimpleNamespace(role=role, key=key or None),
            in_force=TOPOLOGY,
            attachment=object(),
            folder=folder / "pins",
            ports=lambda: TOPOLOGY.ports,
        )
        config = Config(
            daemon=DaemonSection(key="key", port=PORT),
            hardworker=HardworkerSection(retain=retain),
            logger=LoggerSection(replay_port=12347),
        )
        config = Config.from_json(config.model_dump_json(exclude_unset=True), folder / "config.toml")
        talker = stub(heartbeat=self.asks)
        self.made = Destinations(config, self.host, talker, self._worker, lambda: 0.0)  # type: ignore[arg-type]
        self.way = stub(spool=None, looks=[], taken=[], fault=None, held=0)
        self.way.look, self.way.take_up, self.way.hold = self._look, self._take_up, self._hold
        self.made.way = self.way

    async def _worker(self, function: Any, *args: Any) -> Any:
        return function(*args)

    async def _look(self, _: Topology, order: list[int], __: object) -> None:
        self.way.looks.append(order)
        if self.way.fault:
            raise self.way.fault

    async def _take_up(self, _: Topology, **facts: bool) -> None:
        self.way.taken.append(facts)

    async def _hold(self) -> None:
        self.way.held += 1


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_each_logger_is_asked_where_its_daemon_says(world: World) -> None:
    assert world.asks
    world.made.heard = (announcement(role="logger", ip="10.0.0.4", port=4000),)
    world.made.watch(TOPOLOGY)
    assert {ip: one.address[1] for ip, one in world.asks.watched.items()} == {
        "10.0.0.3": PORT,
        "10.0.0.4": 4000,
    }


def test_data_is_sent_anywhere_only_once_it_is_taken_up(world: World) -> None:
    assert world.asks

    async def run() -> None:
        await world.made.beat()
        world.made.watch(TOPOLOGY)
        await world.made.beat()
        await world.made.hold()
        assert (world.way.looks, world.way.held, world.asks and world.asks.asked) == ([], 0, 1)
        await world.made.take_up(TOPOLOGY, logger=False)
        world.made.heard = (
            announcement(role="logger", ip="10.0.0.3", standby=True),
            announcement(role="logger", ip="10.0.0.4"),
        )
        await world.made.beat()
        await world.made.hold()

    asyncio.run(run())
    assert world.way.taken == [{"logger": False, "watched": True}]
    assert (world.way.looks, world.way.held) == ([[1, 0]], 1)


def test_a_fault_of_the_way_is_logged_and_tried_again(world: World) -> None:
    assert world.asks
    world.made.watch(TOPOLOGY)
    world.way.fault = KernelError("no program")

    async def run() -> None:
        await world.made.take_up(TOPOLOGY)
        for _ in range(3):
            await world.made.beat()

    asyncio.run(run())
    assert (len(world.way.looks), world.asks.asked) == (3, 3)
    assert [(each["event"], each["level"], str(each["reason"])) for each in world.said] == [
        ("way", "error", "no program")
    ]


def test_without_a_program_nothing_is_taken_up(world: World) -> None:
    world.host.attachment = None
    asyncio.run(world.made.take_up(TOPOLOGY))
    assert world.way.taken == []


def test_a_boot_waits_for_a_logger_no_longer_than_it_must(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destinations, "_ASK", 0.1)
    assert not asyncio.run(world.made.is_logger_there(TOPOLOGY))
    monkeypatch.setattr(destinations, "_ASK", 30)

    async def answered() -> bool:
        there = asyncio.create_task(world.made.is_logger_there(TOPOLOGY))
        await asyncio.sleep(0)
        assert world.asks
        world.asks.watched["10.0.0.4"].answered = 1.0
        return await there

    assert asyncio.run(answered())


@pytest.mark.parametrize("how", [{"key": False}, {"role": "sensor"}])
def test_who_asks_no_logger_takes_it_for_there(tmp_path: Path, how: dict[str, Any]) -> None:
    world = World(tmp_path, **how)
    assert asyncio.run(world.made.is_logger_there(TOPOLOGY))
    assert not world.asks or not world.asks.watched


@pytest.mark.parametrize(
    ("how", "retains", "tells"),
    [
        ({}, True, True),
        ({"retain": False}, False, True),
        ({"key": False}, False, False),
        ({"role": "logger"}, False, False),
    ],
)
def test_what_is_retained_and_told(tmp_path: Path, how: dict[str, Any], retains: bool, tells: bool) -> None:
    made = World(tmp_path, **how).made
    assert (made.retention is not None, made.teller is not None) == (retains, tells)


def test_what_is_told_ends_with_the_daemon(world: World) -> None:
    """The conftest looks for its thread."""
    world.made.start()
    asyncio.run(world.made.release())
