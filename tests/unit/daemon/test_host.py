"""What a daemon puts in force again after a boot, and what keeps it from doing so."""

import errno
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from midstream import network
from midstream.config import Config, DaemonSection
from midstream.daemon import host
from midstream.daemon.host import ThisHost
from midstream.daemon.identity import Identity
from midstream.daemon.interface import Interface
from midstream.ebpf import control
from midstream.ebpf.attachment import Attachment
from midstream.ebpf.control import Open
from midstream.errors import KernelError
from midstream.network import Host, Topology

HOSTS = {n: Host(IPv4Address(f"10.0.0.{n}"), f"02:00:00:00:00:{n:02x}") for n in (2, 3, 11)}
TOPOLOGY = Topology((HOSTS[11],), HOSTS[2], HOSTS[3], tos=104, port=12345, mtu=1500, size=1024)
INTERFACE = Interface("eth0", 2, HOSTS[2].ip, IPv4Network("10.0.0.0/24"), HOSTS[2].mac, 1500)


class Loader:
    """Attaches unless the self-test fails, with this errno."""

    def __init__(self, code: int) -> None:
        self._code = code
        self.tested: list[bool] = []

    def attach(self, *_: object, folder: Path, self_test: bool = True, **__: object) -> Attachment:
        self.tested.append(self_test)
        if self_test:
            raise KernelError("the self-test failed", errno=self._code)
        return Attachment("hardworker", "eth0", "native", folder)


def put(monkeypatch: pytest.MonkeyPatch, code: int, *, again: bool) -> list[bool]:
    """Which attempts were made, with the self-test or without."""
    loader = Loader(code)
    monkeypatch.setattr(host, "loader", loader)
    monkeypatch.setattr(network, "write", lambda *_: True)
    config = Config(role="hardworker", daemon=DaemonSection(explore=False, key="/nonexistent"))
    this = ThisHost(config, Identity(config))
    monkeypatch.setattr(this, "repair", lambda *_: [])
    this.put_in_force(TOPOLOGY, INTERFACE, again=again)
    return loader.tested


def test_a_logger_that_is_off_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert put(monkeypatch, errno.EHOSTUNREACH, again=True) == [True, False]


def test_one_that_was_never_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelError, match="self-test"):
        put(monkeypatch, errno.EHOSTUNREACH, again=False)


def test_a_driver_that_swallows_packets_is_refused_also_then(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelError, match="self-test"):
        put(monkeypatch, 0, again=True)


def test_a_full_ring_holds_up_no_other_streams_sensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose reader is dead: it cannot be told that a connection has ended."""
    imu, camera = (
        Open(HOSTS[11].ip, 40000, 0, 1, 0, n, 0, 0, 1, 1, name) for n, name in enumerate(("imu", "camera"))
    )
    done: list[str] = []

    def break_off(_: Path, opened: list[Open]) -> list[Open]:
        done.append("break off " + " ".join(one.stream for one in opened))
        return [one for one in opened if one.stream == "camera" and len(done) < 6]

    def send_resets(opened: list[Open], *_: object) -> None:
        done.extend(f"reset {one.stream}" for one in opened)

    monkeypatch.setattr(control, "connections", lambda _: [imu, camera])
    monkeypatch.setattr(control, "break_off", break_off)
    monkeypatch.setattr(host, "send_resets", send_resets)
    config = Config(role="hardworker", daemon=DaemonSection(explore=False, key="/nonexistent"))
    this = ThisHost(config, Identity(config))
    this.in_force = TOPOLOGY
    assert this.reset(0) == 2
    assert done[:3] == ["break off imu camera", "reset imu", "break off camera"]
    assert done[-2:] == ["break off camera", "reset camera"]
    assert "imu" not in " ".join(done[2:]), "the sensor may have connected again, from the same port"
