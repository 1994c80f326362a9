"""A host comes back while another is off: the service is ready, and what was in force is again."""

import os
import socket
import time
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path

import pytest
from tests.lab.triangle import PINS, command, started, wait_until

from midstream import config as configuration
from midstream import key, network
from midstream.config import Config
from midstream.daemon import spool, status
from midstream.ebpf import attachment, loader
from midstream.lab import Lab, hosts
from midstream.network import Host, Topology

LAB = {"sensors": 1, "bare": True}
OFF = Host(IPv4Address("10.83.0.99"), "02:00:00:00:00:99")  # a logger without power


class Manager:
    """What the service manager hears, and when."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(path))
        self._socket.setblocking(False)
        self.heard: list[tuple[float, str]] = []

    def listen(self) -> None:
        try:
            while True:
                text = self._socket.recv(4096).decode()
                self.heard += [(time.monotonic(), line) for line in text.split("\n")]
        except BlockingIOError:
            return

    def close(self) -> None:
        self._socket.close()


def attach_under_umask_0(folder: Path, topology: Topology) -> None:
    """In a process that did not set its umask, as an application's may be."""
    os.umask(0)
    loader.attach("logger", Config(), topology, folder=folder)


def test_pins_can_be_removed_by_their_owner_alone(lab: Lab) -> None:
    folder = PINS / "open" / "logger"
    topology = hosts.topology(lab.hosts, tos=104, port=12345, mtu=1500, size=1024)
    lab.call("logger", attach_under_umask_0, folder, topology)
    try:
        made = (folder.parent, folder, *folder.iterdir())
        assert len(made) > 3
        assert [path for path in made if path.stat().st_mode & 0o022] == []
    finally:
        lab.call("logger", loader.detach, "logger", folder)
        folder.parent.rmdir()


@pytest.mark.slow
def test_a_logger_that_is_off_keeps_nothing_from_being_in_force(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READY first; then the program, after a self-test that nobody answers; signs of life all the while."""
    topology = hosts.topology(lab.hosts, tos=104, port=12345, mtu=1500, size=1024)
    network.write(tmp_path / "const.toml", replace(topology, logger=OFF), "a test")
    key.make(tmp_path / "key")
    pins = PINS / "restored"
    (tmp_path / "config.toml").write_text(
        f'role = "hardworker"\n[network]\ninterface = "eth0"\npins = "{pins}"\n'
        f'[daemon]\nkey = "key"\nsocket = "{tmp_path}/daemon.sock"\n'
    )
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    arguments = ("daemon", "--config", tmp_path / "config.toml")
    try:
        with started(lab, "hardworker", tmp_path, *arguments, ready="started") as program:

            def restored() -> bool:
                manager.listen()
                return any(" restored " in path.read_text() for path in tmp_path.glob("*.err"))

            wait_until(restored, 30.0)
            found = lab.call("hardworker", attachment.find, "hardworker", pins / "hardworker")
            assert found and found.mode == "native"
            told = status.ask(tmp_path / "daemon.sock")
            assert told and (told["state"], told["program"]) == ("exploring", "native")
            assert "what was in force before holds until then" in told["reason"]
            shown = command(lab, "hardworker", "status", "--config", tmp_path / "config.toml").out
            assert "exploring" in shown and "native on eth0" in shown
            wait_until(lambda: (status.ask(tmp_path / "daemon.sock") or {}).get("spool") == "running")
            assert "data goes to this host's spool" in shown
            program.end()
    finally:
        manager.close()
        spool.stop(configuration.load(tmp_path / "config.toml"))
        command(lab, "hardworker", "detach", "--config", tmp_path / "config.toml")
    lines = [line for _, line in manager.heard]
    assert lines.index("READY=1") <= 1, "before anything is compiled"
    alive = [when for when, line in manager.heard if line in ("READY=1", "WATCHDOG=1")]
    assert alive and max((b - a for a, b in pairwise(alive)), default=0) < 3
