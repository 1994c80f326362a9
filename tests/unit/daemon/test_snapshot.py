"""What the daemon shows of itself."""

from collections import Counter
from ipaddress import IPv4Address, IPv4Network
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.announcements import announcement

from midstream.daemon import snapshot
from midstream.daemon.interface import Interface
from midstream.daemon.peers import Peer
from midstream.daemon.snapshot import DaemonSnapshot
from midstream.daemon.way import SPOOL
from midstream.errors import KernelError
from midstream.network import Host, Topology

HOSTS = {n: Host(IPv4Address(f"10.0.0.{n}"), f"02:00:00:00:00:{n:02x}") for n in (2, 3, 4, 11)}
TOPOLOGY = Topology(
    (HOSTS[11],), HOSTS[2], HOSTS[3], tos=104, port=12345, mtu=1500, size=1024, standbys=(HOSTS[4],)
)


def stub(**facts: object) -> Any:
    """A part that has these."""
    return SimpleNamespace(**facts)


class World:
    """A hardworker's daemon that works. lines: what the service manager was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        monkeypatch.setattr(snapshot, "notify", self.lines.append)
        self.host = stub(
            identity=SimpleNamespace(role="hardworker", name="arm"),
            in_force=TOPOLOGY,
            attachment=SimpleNamespace(mode="native"),
            forfeited=lambda: 7,
        )
        said = announcement(role="logger", name="log", ip="10.0.0.3", mac=HOSTS[3].mac, standby=True)
        self.hearing = stub(peers=SimpleNamespace(all=lambda: [Peer(said, 0.0)]), rejected=Counter(key=2))
        self.way = stub(name=lambda _: SPOOL, reason="", seconds=1.26, spool=None)
        self.destinations = stub(way=self.way, retention=None, teller=None)
        self.reconciler = stub(
            interface=Interface("eth0", 2, HOSTS[2].ip, IPv4Network("10.0.0.0/24"), HOSTS[2].mac, 1500),
            fault="",
            reason="",
            started=0.0,
            ready_after=1.23456,
            repaired=1,
            repairs=["a neighbour"],
        )
        self.made = DaemonSnapshot(self.host, self.hearing, self.destinations, self.reconciler)

    def line(self) -> str:
        self.made.tell()
        return self.lines[-1]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_the_state_has_these_keys_in_this_order(world: World) -> None:
    state = world.made.state()
    assert list(state) == [
        "role",
        "name",
        "pid",
        "state",
        "reason",
        "seconds",
        "ready_after",
        "interface",
        "ip",
        "mac",
        "peers",
        "sensors",
        "program",
        "loggers",
        "destination",
        "destination_reason",
        "destination_seconds",
        "spool",
        "spool_fault",
        "retains",
        "forfeited",
        "unsaved",
        "held",
        "silent",
        "repaired",
        "repairs",
        "rejected",
    ]
    (peer,) = state["peers"]
    assert list(peer.items())[:-1] == [
        ("role", "logger"),
        ("name", "log"),
        ("ip", "10.0.0.3"),
        ("mac", HOSTS[3].mac),
        ("standby", True),
    ]
    assert list(peer)[-1] == "age"
    assert (state["state"], state["ready_after"], state["destination_seconds"]) == ("working", 1.235, 1.3)
    assert (state["sensors"], state["loggers"]) == (["10.0.0.11"], ["10.0.0.3", "10.0.0.4"])
    assert (state["program"], state["rejected"]) == ("native", {"key": 2})
    assert (state["retains"], state["forfeited"], state["held"], state["spool"]) == (None, None, None, None)


def test_before_anything_is_in_force(world: World) -> None:
    world.host.in_force = world.host.attachment = None
    world.reconciler.ready_after, world.reconciler.reason = 0.0, "no logger has been heard"
    state = world.made.state()
    assert (state["state"], state["reason"]) == ("exploring", "no logger has been heard")
    assert (state["sensors"], state["loggers"], state["destination"], state["program"]) == ([], [], "", None)
    world.reconciler.fault = "no room"
    assert (world.made.state()["state"], world.made.state()["reason"]) == ("error", "no room")


def test_silent_sensors_are_named(world: World) -> None:
    assert world.made.state()["silent"] == {}
    world.destinations.teller = SimpleNamespace(silent={"data": {0, 7}}, state=dict)
    assert world.made.state()["silent"] == {"data": ["10.0.0.11"]}


def test_what_is_forfeited_is_unknown_without_a_program(world: World) -> None:
    def gone() -> int:
        raise KernelError("no program")

    world.destinations.retention = SimpleNamespace(retains=True)
    assert (world.made.state()["retains"], world.made.state()["forfeited"]) == (True, 7)
    world.host.forfeited = gone
    assert world.made.state()["forfeited"] is None


def test_the_service_manager_reads_one_line_and_each_once(world: World) -> None:
    world.reconciler.ready_after, world.reconciler.reason = 0.0, "no logger has been heard"
    assert world.line() == "STATUS=hardworker: exploring: no logger has been heard"
    world.reconciler.ready_after = 1.0
    assert world.line() == "STATUS=hardworker: working, sensors: 1"
    world.way.reason = "10.0.0.3: no logger listens on each stream's port"
    assert world.line() == (
        "STATUS=hardworker: working, sensors: 1, data goes to the spool: "
        "10.0.0.3: no logger listens on each stream's port"
    )
    world.way.name = lambda _: "10.0.0.4"
    assert world.line().endswith(
        "sensors: 1, data goes to 10.0.0.4: 10.0.0.3: no logger listens on each stream's port"
    )
    world.reconciler.fault = "no room"
    assert world.line() == "STATUS=hardworker: no room"
    world.made.tell()
    assert len(world.lines) == 5
