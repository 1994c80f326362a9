"""The daemon as a whole: what it opens it closes, whatever ends it; what fails in a part ends all of it.

Its host is this machine's loopback interface, to which nothing is done.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from tests.support.events import collected
from tests.support.site import wait_until

from midstream import network
from midstream.config import Config, DaemonSection
from midstream.daemon import interface, notify, service, status
from midstream.daemon.destinations import Destinations
from midstream.daemon.host import ThisHost
from midstream.daemon.interface import Interface
from midstream.daemon.reconciling import Reconciler
from midstream.daemon.service import Service
from midstream.daemon.talking import Talker
from midstream.errors import ConfigError, KernelError, NetworkError
from midstream.network import Host, Topology

HOME = IPv4Address("127.0.0.1")
INTERFACE = Interface("lo", 1, HOME, IPv4Network("127.0.0.0/8"), "02:00:00:00:00:01", 1500)
OWN, OTHER = (Host(IPv4Address(f"127.0.0.{n}"), f"02:00:00:00:00:0{n}") for n in (1, 2))
TOPOLOGY = Topology((OWN,), OTHER, OTHER, tos=104, port=12345, mtu=1500, size=1024)


class Site:
    """A sensor whose const.toml is the user's. did: what was done to the host, and said of it, in order."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((str(HOME), 0))
            self.port = int(probe.getsockname()[1])
        self.socket = folder / "run" / "daemon.socket"
        (folder / "key").write_bytes(b"k" * 32)
        (folder / "key").chmod(0o600)
        self.daemon = DaemonSection(
            explore=False, key=str(folder / "key"), socket=str(self.socket), port=self.port, name="arm"
        )
        self.did: list[str] = []
        self.said = collected()
        monkeypatch.setattr(network, "load", lambda _: TOPOLOGY)
        monkeypatch.setattr(interface, "read", lambda *_: INTERFACE)
        monkeypatch.setattr(ThisHost, "repair", lambda *_: [])
        monkeypatch.setattr(ThisHost, "release", self._release)
        for module in (service, notify):
            monkeypatch.setattr(module, "notify", self.did.append)

    def _release(self, _: Interface) -> None:
        self.did.append("released, with its socket" if self.socket.exists() else "released")

    def service(self) -> Service:
        return Service(Config(role="sensor", daemon=self.daemon))

    def run(self, ends: Callable[[asyncio.Event, "asyncio.Task[None]"], Awaitable[None]], **how: Any) -> None:
        """Let one run, and end it."""

        async def run() -> None:
            stop = asyncio.Event()
            task = asyncio.create_task(self.service().run(stop, **how))
            await ends(stop, task)
            async with asyncio.timeout(10):
                await task

        asyncio.run(run())

    async def is_ready(self) -> None:
        await until(lambda: any(each["event"] == "in force" for each in self.said))

    async def stopped(self, stop: asyncio.Event, _: "asyncio.Task[None]") -> None:
        await self.is_ready()
        stop.set()

    async def nothing(self, *_: object) -> None:
        """It ends by itself."""

    def assert_all_is_closed(self) -> None:
        """Threads are looked for by the conftest, sockets by the warnings that are errors."""
        assert not self.socket.exists()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((str(HOME), self.port))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_it_runs_until_it_is_told_to_stop(site: Site) -> None:
    site.run(site.stopped)
    assert [each["event"] for each in site.said] == ["started", "in force", "stopped"]
    assert [did for did in site.did if "STATUS" not in did] == ["READY=1", "STOPPING=1", "released"]
    site.assert_all_is_closed()


def test_once_it_leaves_everything_in_force(site: Site) -> None:
    site.run(site.nothing, once=True)
    assert [each["event"] for each in site.said] == ["started", "in force"]
    assert "released" not in site.did
    site.assert_all_is_closed()


def test_once_it_says_what_is_missing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the error that it is, and no group of errors."""
    monkeypatch.setattr(network, "load", fails(ConfigError("const.toml: no such file")))
    with pytest.raises(ConfigError, match=r"const\.toml: no such file"):
        site.run(site.nothing, once=True)
    site.assert_all_is_closed()


PARTS = {
    "the beat": (Talker, "repeat"),
    "the way of the data": (Destinations, "beat"),
    "the comparison": (Reconciler, "settle"),
}


@pytest.mark.parametrize("part", PARTS)
def test_an_error_in_a_part_ends_the_daemon_with_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    error = RuntimeError(f"a bug in {part}")
    monkeypatch.setattr(*PARTS[part], fails(error))
    with pytest.raises(RuntimeError) as raised:
        site.run(site.nothing)
    assert raised.value is error
    assert site.did[-2:] == ["STOPPING=1", "released"]
    site.assert_all_is_closed()


def test_an_error_beside_a_comparison_that_hangs_ends_it_too(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Reconciler, "settle", hangs)
    monkeypatch.setattr(Talker, "repeat", fails(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        site.run(site.nothing)
    site.assert_all_is_closed()


def test_who_cancels_it_finds_it_closed(site: Site) -> None:
    async def cancelled(_: asyncio.Event, task: "asyncio.Task[None]") -> None:
        await site.is_ready()
        task.cancel()

    with pytest.raises(asyncio.CancelledError):
        site.run(cancelled)
    assert site.did[-2:] == ["STOPPING=1", "released"]
    site.assert_all_is_closed()


# what cannot be opened


def test_the_port_of_heartbeats_is_taken(site: Site) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((str(HOME), site.port))
        with pytest.raises(NetworkError, match=f"UDP port {site.port} cannot be had"):
            site.run(site.nothing)
    assert "READY=1" not in site.did
    assert site.did[-2:] == ["STOPPING=1", "released"]
    site.assert_all_is_closed()


def test_the_kernel_tells_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "watch_network", fails(OSError("no netlink")))
    with pytest.raises(OSError, match="no netlink"):
        site.run(site.nothing)
    assert site.did == ["released"]
    site.assert_all_is_closed()


def test_another_daemon_keeps_what_it_has(site: Site) -> None:
    """Its socket, and the neighbours, which bear the mark of every daemon of midstream."""

    async def run() -> None:
        server = await status.serve(site.socket, dict)
        with pytest.raises(ConfigError, match="another daemon answers there"):
            await asyncio.to_thread(site.run, site.nothing)
        assert site.socket.exists()
        server.close()

    asyncio.run(run())
    assert site.did == []


def test_what_cannot_be_released_keeps_nothing_open(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThisHost, "release", fails(KernelError("refused")))
    with pytest.raises(KernelError, match="refused"):
        site.run(site.stopped)
    site.assert_all_is_closed()


# while it runs


@pytest.mark.slow
def test_its_socket_is_made_again(site: Site) -> None:
    async def removed(stop: asyncio.Event, _: "asyncio.Task[None]") -> None:
        await site.is_ready()
        site.socket.unlink()
        await until(site.socket.exists)
        state = await asyncio.to_thread(status.ask, site.socket)
        assert state is not None
        assert (state["state"], state["sensors"]) == ("working", [str(HOME)])
        stop.set()

    site.run(removed)
    assert [each["what"] for each in site.said if each["event"] == "repaired"] == [
        f"{site.socket}: removed, made again"
    ]
    site.assert_all_is_closed()


def test_it_gives_signs_of_life_unless_a_comparison_hangs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_PULSE", 0.2)
    hangs = [False]
    monkeypatch.setattr(Reconciler, "hangs", property(lambda _: hangs[0]))

    async def watched(stop: asyncio.Event, _: "asyncio.Task[None]") -> None:
        await until(lambda: site.did.count("WATCHDOG=1") >= 2)
        hangs[0] = True
        count = site.did.count("WATCHDOG=1")
        await asyncio.sleep(0.5)
        assert site.did.count("WATCHDOG=1") == count
        stop.set()

    site.run(watched)


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition)


def fails(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail
