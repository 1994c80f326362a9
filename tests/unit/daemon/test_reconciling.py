"""How what is becomes what should be: in which order, what is logged of it, and what is tried again."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.announcements import announcement
from tests.support.events import collected

from midstream import network
from midstream.config import Config, DaemonSection
from midstream.daemon import reconciling
from midstream.daemon.announcement import Announcement
from midstream.daemon.interface import Interface
from midstream.daemon.peers import Peers
from midstream.daemon.reconciling import Reconciler
from midstream.ebpf.attachment import Attachment
from midstream.errors import KernelError, MidstreamError, NetworkError
from midstream.network import Host, Topology

HOSTS = {n: Host(IPv4Address(f"10.0.0.{n}"), f"02:00:00:00:00:{n:02x}") for n in (2, 3, 11)}
TOPOLOGY = Topology((HOSTS[11],), HOSTS[2], HOSTS[3], tos=104, port=12345, mtu=1500, size=1024)
INTERFACE = Interface("eth0", 2, HOSTS[11].ip, IPv4Network("10.0.0.0/24"), HOSTS[11].mac, 1500)


class World:
    """A sensor's daemon without a host. did: what was asked of the other parts, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, explore: bool = False) -> None:
        self.did: list[str] = []
        self.said = collected()
        self.interface, self.topology = INTERFACE, TOPOLOGY
        self.refused: dict[str, MidstreamError] = {}
        self.repairs: list[str] = []
        self.swapped = self.logger_there = True
        monkeypatch.setattr(network, "load", lambda _: self.topology)
        self.host = SimpleNamespace(
            in_force=None,
            attachment=None,
            read_interface=lambda: self.interface,
            previous=lambda: self.topology,
            known=lambda: self.topology,
            announcement=self._announcement,
            put_in_force=self._put_in_force,
            repair=self._repair,
        )
        hearing = SimpleNamespace(peers=Peers(10), expire=lambda: None)
        self.talker = SimpleNamespace(ip=None, hearing=hearing, move=self._move, say=self._asked("say"))
        self.destinations: Any = SimpleNamespace(
            heard=(),
            watch=lambda _: self.did.append("watch"),
            take_up=self._asked("take up"),
            hold=self._asked("hold"),
            is_logger_there=self._is_logger_there,
        )
        config = Config(daemon=DaemonSection(explore=explore, timeout=30))
        self.made = Reconciler(config, self.host, self.talker, self.destinations, self._worker)  # type: ignore[arg-type]

    def settle(self, *, once: bool = False) -> list[str]:
        """What was done."""
        self.did.clear()
        asyncio.run(self.made.settle(once=once))
        return self.did

    def events(self) -> list[str]:
        return [each["event"] for each in self.said]

    async def _worker(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    def _announcement(self, interface: Interface) -> Announcement:
        return announcement(role="sensor", ip=str(interface.ip), mac=interface.mac, mtu=interface.mtu)

    def _fail(self, what: str) -> None:
        if what in self.refused:
            raise self.refused[what]

    def _repair(self, *_: object) -> list[str]:
        self.did.append("repair")
        repaired, self.repairs = self.repairs, []
        return repaired

    def _put_in_force(self, topology: Topology, _: Interface, **how: bool) -> bool:
        self.did.append("put in force" + (" again" if how["again"] else ""))
        self._fail("put in force")
        changed = self.swapped or self.host.in_force != topology
        self.host.in_force, self.swapped = topology, False
        return changed

    async def _move(self, said: Announcement, name: str) -> None:
        self.did.append(f"move to {said.ip} on {name}")
        self.talker.ip = None
        self._fail("move")
        self.talker.ip = said.ip

    async def _is_logger_there(self, _: Topology) -> bool:
        return self.logger_there

    def _asked(self, what: str) -> Callable[..., Any]:
        async def ask(*_: object, **facts: object) -> None:
            self.did.append(" ".join([what, *(f"{name}={value}" for name, value in facts.items())]))
            self._fail(what)

        return ask


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(monkeypatch)
    asyncio.run(made.made.talk())
    return made


def test_a_topology_is_in_force_before_it_is_said(world: World) -> None:
    assert world.settle() == ["put in force", "take up", "watch", "say"]
    assert world.made.ready_after > 0
    assert world.settle() == ["repair", "put in force", "watch", "say"], "nothing has changed"
    world.topology = replace(TOPOLOGY, tos=108)
    assert world.settle() == ["repair", "put in force", "hold", "watch", "say"]
    assert world.events() == ["in force", "changed"]


def test_what_is_repaired_is_counted_and_kept(world: World) -> None:
    world.settle()
    for number in range(30):
        world.repairs = [f"neighbour {number}"]
        world.settle()
    world.host.attachment = Attachment("sensor", "eth0", "native", None)  # type: ignore[arg-type]
    world.swapped = True
    world.settle()
    assert world.made.repaired == 31
    assert world.made.repairs[-1] == "program on eth0: gone, attached again"
    assert len(world.made.repairs) == 20
    assert world.events().count("repaired") == 31


def test_another_address_is_talked_at(world: World) -> None:
    world.settle()
    world.interface = replace(INTERFACE, ip=HOSTS[3].ip)
    world.topology = replace(TOPOLOGY, sensors=(HOSTS[3],))
    assert world.settle()[:2] == ["repair", "move to 10.0.0.3 on eth0"]
    assert world.events()[-1] == "interface"
    world.interface = replace(world.interface, mtu=1400)
    assert "move" not in " ".join(world.settle()), "the address is the same"
    assert world.events()[-1] == "interface"


def test_what_cannot_be_said_at_an_address_is_tried_again(world: World) -> None:
    world.settle()
    world.interface = replace(INTERFACE, ip=HOSTS[3].ip)
    world.topology = replace(TOPOLOGY, sensors=(HOSTS[3],))
    world.refused["move"] = NetworkError("10.0.0.3: no multicast DNS there")
    for _ in range(2):
        assert world.settle() == ["repair", "move to 10.0.0.3 on eth0"]
    assert world.made.fault == "10.0.0.3: no multicast DNS there"
    assert world.events().count("fault") == 1, "it is said once"
    world.refused.clear()
    assert "move to 10.0.0.3 on eth0" in world.settle()
    assert world.made.fault == ""
    assert "move" not in " ".join(world.settle())


def test_once_a_fault_ends_it(world: World) -> None:
    world.refused["put in force"] = KernelError("no room")
    with pytest.raises(KernelError, match="no room"):
        world.settle(once=True)
    assert world.settle() == ["put in force"]
    assert world.made.fault == "no room"


def test_what_is_missing_is_a_fault_when_it_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, explore=True)
    asyncio.run(world.made.talk())
    world.settle(once=True)
    assert (world.made.fault, world.made.ready_after) == ("", 0)
    assert world.made.reason.startswith("no hardworker and no sensor has been heard") or world.made.reason
    world.made.started -= 31
    with pytest.raises(NetworkError, match="has been heard"):
        world.settle(once=True)
    world.settle()
    assert world.made.fault == world.made.reason != ""
    assert world.events() == ["fault"]


@pytest.mark.parametrize("logger", [False, True])
def test_what_was_in_force_is_in_force_again_at_once(world: World, logger: bool) -> None:
    world.logger_there = logger
    world.did.clear()
    asyncio.run(world.made.restore())
    assert world.did == ["put in force again", f"take up logger={logger}"]
    assert world.events() == ["restored"]
    assert world.made.ready_after == 0, "nobody has been heard yet"


def test_what_another_host_wrote_is_not(world: World) -> None:
    world.topology = replace(TOPOLOGY, sensors=(HOSTS[3],))
    world.did.clear()
    asyncio.run(world.made.restore())
    assert (world.did, world.said) == ([], [])


def test_what_cannot_be_restored_is_a_fault(world: World) -> None:
    world.refused["put in force"] = KernelError("no room")
    asyncio.run(world.made.restore())
    assert world.made.fault == "no room"
    assert world.events() == ["fault"]


def test_a_comparison_hangs_after_some_time_and_a_compilation_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [world.made.started]
    monkeypatch.setattr(reconciling, "time", SimpleNamespace(monotonic=lambda: now[0]))
    found: list[bool] = []

    def looked(seconds: float) -> bool:
        now[0] += seconds
        return world.made.hangs

    def slowly(*_: object, **__: object) -> bool:
        found.extend([looked(299), looked(2)])
        return False

    def repaired(*_: object) -> list[str]:
        found.extend([looked(9), looked(2)])
        return []

    world.settle()
    world.host.repair, world.host.put_in_force = repaired, slowly
    world.settle()
    assert found == [False, True, False, True]
    assert not world.made.hangs, "it is over"
