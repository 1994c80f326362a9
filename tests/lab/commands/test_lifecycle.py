"""Up and down: idempotent, repairing, and leaving nothing behind from whatever state."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
from pyroute2 import IPRoute, netns  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream import config, network
from midstream.errors import ConfigError, LabError
from midstream.lab import down, find, links, namespaces, state, status, up

Ping = Callable[[str], bool]


class Machine(Protocol):
    def traces(self) -> dict[str, object]: ...
    def settles_to(self, expected: dict[str, object]) -> None: ...


@pytest.mark.slow
def test_up_keeps_a_complete_lab(tmp_path: Path) -> None:
    first = up(2, tmp_path / "run")
    assert not first.kept
    inode = Path("/run/netns/ms-sensor").stat().st_ino
    again = up(2, tmp_path / "run")
    assert again.kept
    assert again.hosts == first.hosts == find().hosts
    assert Path("/run/netns/ms-sensor").stat().st_ino == inode
    assert status().up


@pytest.mark.slow
def test_up_rebuilds_a_lab_with_other_arguments(tmp_path: Path) -> None:
    up(2, tmp_path / "run")
    (tmp_path / "run" / "midstream.db").write_text("data")
    lab = up(1, tmp_path / "run", tos=0, data={"size": 256}, network={"restore": "sensor"}, timeout=5)
    assert not lab.kept
    assert "ms-sensor-2" not in netns.listnetns()
    topology, settings = network.load(lab.const), config.load(lab.config)
    assert (topology.tos, topology.size, len(topology.sensors)) == (0, 256, 1)
    assert (settings.network.restore, settings.timeout) == ("sensor", 5)
    assert (tmp_path / "run" / "midstream.db").exists(), "rebuilding must not take the user's data"


def test_a_bare_lab_has_the_daemons_settings_too(tmp_path: Path) -> None:
    lab = up(1, tmp_path / "run", bare=True, daemon={"key": "key"})
    daemon = config.load(lab.config).daemon
    assert (daemon.key, daemon.socket) == ("key", str(tmp_path / "run" / "hardworker" / "daemon.sock"))


@pytest.mark.parametrize(
    "harm", ["namespace", *(pytest.param(one, marks=pytest.mark.slow) for one in ("eth0", "file", "bridge"))]
)
def test_up_repairs_a_broken_lab(ping: Ping, tmp_path: Path, harm: str) -> None:
    lab = up(1, tmp_path / "run")
    match harm:
        case "eth0":
            lab.call("sensor", delete_link, "eth0")
        case "namespace":
            netns.remove("ms-logger")
        case "file":
            lab.const.unlink()
        case "bridge":
            lab.call("switch", delete_link, "br0")
    assert not status().up
    assert status().problems
    lab = up(1, tmp_path / "run")
    assert not lab.kept
    assert status().problems == ()
    assert lab.call("sensor", ping, str(lab.host("logger").ip))


@pytest.mark.slow
def test_a_wrong_setting_leaves_the_lab_alone(ping: Ping, tmp_path: Path) -> None:
    lab = up(1, tmp_path / "run")
    with pytest.raises(ConfigError, match="restore"):
        up(1, tmp_path / "run", network={"restore": "nowhere"})
    with pytest.raises(ConfigError, match="tos"):
        up(1, tmp_path / "run", tos=105)
    with pytest.raises(LabError, match="1 to 244 sensors"):
        up(245, tmp_path / "run")
    assert status().up
    assert lab.call("sensor", ping, str(lab.host("logger").ip))


@pytest.mark.slow
def test_down_removes_what_up_made(machine: Machine, tmp_path: Path) -> None:
    down()
    before = machine.traces()
    own, existing = tmp_path / "own", tmp_path / "existing"
    existing.mkdir()
    (existing / "notes").write_text("mine")
    up(1, own)
    Path("/sys/fs/bpf/midstream-lab/hardworker").mkdir(parents=True)
    down()
    assert not own.exists()
    up(1, existing)
    down()
    assert os.listdir(existing) == ["notes"]
    up(1, own)
    down(keep=True)
    assert sorted(os.listdir(own)) == ["config.toml", "const.toml"]
    down()
    with pytest.raises(LabError, match="no lab is up"):
        find()
    machine.settles_to(before)


@pytest.mark.slow
def test_down_ends_processes(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    down()
    monkeypatch.setattr(namespaces, "end", partial(namespaces.end, grace=0.5))
    before = machine.traces()
    lab = up(1, tmp_path / "run")
    polite = lab.popen("sensor", ["sleep", "60"])
    stubborn = lab.popen(
        "logger", ["sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done"], stdout=subprocess.PIPE
    )
    assert stubborn.stdout
    stubborn.stdout.readline()
    assert {polite.pid, stubborn.pid} <= {process.pid for process in status().processes}
    down()
    assert polite.wait(1) == -signal.SIGTERM
    assert stubborn.wait(1) == -signal.SIGKILL
    stubborn.stdout.close()
    machine.settles_to(before)


@pytest.mark.slow
def test_down_ends_what_is_started_meanwhile(machine: Machine, tmp_path: Path) -> None:
    """As a daemon does that starts the spool."""
    down()
    before = machine.traces()
    lab = up(1, tmp_path / "run")
    starts_another = "trap 'setsid sleep 60 & exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    lasting = lab.popen("hardworker", ["sh", "-c", starts_another], stdout=subprocess.PIPE)
    assert lasting.stdout and lasting.stdout.readline() == b"ready\n"
    down()
    lasting.stdout.close()
    assert lasting.wait(1) == 0
    machine.settles_to(before)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["wire", "start_host", "start_switch"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, LabError])
def test_up_that_fails_leaves_nothing(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: type[BaseException]
) -> None:
    def fail(*_: object) -> None:
        raise error("broken")

    down()
    before = machine.traces()
    monkeypatch.setattr(links, step, fail)
    with pytest.raises(error, match="broken"):
        up(2, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    machine.settles_to(before)


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.02, pytest.param(0.1, marks=pytest.mark.slow), 0.3, 0.6])
def test_down_after_up_was_killed(machine: Machine, tmp_path: Path, after: float) -> None:
    down()
    before = machine.traces()
    code = f"from midstream.lab import up; print(flush=True); up(40, {str(tmp_path / 'run')!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as building:
        assert building.stdout
        building.stdout.readline()
        time.sleep(after)
        building.kill()
    assert not status().up
    down()
    machine.settles_to(before)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_up_that_fails_keeps_the_users_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    up(1, tmp_path / "run")
    (tmp_path / "run" / "midstream.db").write_text("data")
    down(keep=True)
    monkeypatch.setattr(links, "wire", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        up(2, tmp_path / "run")
    assert (tmp_path / "run" / "midstream.db").read_text() == "data"


@pytest.mark.slow
def test_down_without_its_state(machine: Machine, tmp_path: Path) -> None:
    down()
    before = machine.traces()
    up(1)
    state.STATE.unlink()
    assert not status().up
    assert status().problems
    down()
    machine.settles_to(before)


@pytest.mark.slow
def test_interrupted_namespace_is_cleared(tmp_path: Path) -> None:
    down()
    Path("/run/netns/ms-sensor").touch()
    assert up(1, tmp_path / "run").call("sensor", os.listdir, "/sys/class/net")
    down()
    Path("/run/netns/ms-sensor").touch()
    down()
    assert "ms-sensor" not in netns.listnetns()


def test_foreign_namespace_is_refused_and_left_alone(tmp_path: Path) -> None:
    down()
    netns.create("ms-sensor")
    try:
        with pytest.raises(LabError, match="ms-sensor exists and was not made by the lab"):
            up(1, tmp_path / "run")
        down()
        assert "ms-sensor" in netns.listnetns()
    finally:
        netns.remove("ms-sensor")
    assert "ms-hardworker" not in netns.listnetns()


def test_foreign_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    down()
    (tmp_path / "config.toml").write_text("timeout = 1.0\n")
    with pytest.raises(LabError, match=r"config\.toml exists and was not written by the lab"):
        up(1, tmp_path)
    assert (tmp_path / "config.toml").read_text() == "timeout = 1.0\n"


@pytest.mark.slow
def test_two_at_once_wait_for_each_other(tmp_path: Path) -> None:
    down()
    code = f"from midstream.lab import up; print(up(4, {str(tmp_path / 'run')!r}).kept)"
    building = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    kept = sorted(process.communicate()[0].strip() for process in building)
    assert kept == ["False", "True", "True"]
    assert status().up


@pytest.mark.slow
@pytest.mark.parametrize(("sensors", "seconds"), [(16, 5), (64, 20)])
def test_up_takes_seconds(ping: Ping, tmp_path: Path, sensors: int, seconds: float) -> None:
    down()
    started = time.monotonic()
    lab = up(sensors, tmp_path / "run")
    assert time.monotonic() - started < seconds
    assert lab.call(f"sensor-{sensors}", ping, str(lab.host("logger").ip))


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for command in (up, down, status):
        with pytest.raises(LabError, match="needs root"):
            command()


def delete_link(name: str) -> None:
    with IPRoute() as ipr:
        ipr.link("del", ifname=name)
