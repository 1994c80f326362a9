"""The systemd units: systemd finds no fault in them, and they are as closed as is documented."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from midstream import systemd

FOLDER = Path(systemd.__file__).parent / "units"
UNITS = sorted(path.name for path in FOLDER.glob("*.service"))
PROGRAM = "/opt/midstream/bin/midstream"
RIGHTS = "CAP_BPF CAP_PERFMON CAP_NET_ADMIN CAP_NET_RAW"


def lines(name: str) -> dict[str, list[str]]:
    """A unit's settings; one that occurs again is added to, as systemd does it."""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / name).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


def analyze(*arguments: str | Path) -> str:
    ended = subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_all_units_are_here() -> None:
    assert UNITS == [
        "midstream-daemon.service",
        "midstream-hardworker@.service",
        "midstream-logger.service",
        "midstream-ring.service",
        "midstream-sensor.service",
    ]


def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    """As installed, but for program and user, which this machine need not have where the units say."""
    program = Path(sys.executable).with_name("midstream")
    for name in UNITS:
        text = (FOLDER / name).read_text().replace(PROGRAM, str(program))
        text = re.sub(r"^(User|Group|SupplementaryGroups)=midstream$", r"\1=root", text, flags=re.MULTILINE)
        (tmp_path / name).write_text(text)
    assert analyze("verify", *(tmp_path / name for name in UNITS)) == ""


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_closed(name: str, tmp_path: Path) -> None:
    """systemd's own rating, from 0 (nothing is allowed) to 10; below 4 it calls "OK"."""
    limit = "24" if RIGHTS in lines(name)["CapabilityBoundingSet"] else "18"
    instance = tmp_path / name.replace("@.", "@robot.")
    instance.write_text((FOLDER / name).read_text())
    analyze("security", "--offline=true", f"--threshold={limit}", instance)


@pytest.mark.parametrize("name", UNITS)
def test_who_attaches_has_four_capabilities_and_nobody_else_any(name: str) -> None:
    unit = lines(name)
    attaches = name in ("midstream-daemon.service", "midstream-ring.service")
    assert unit["CapabilityBoundingSet"] == [RIGHTS if attaches else ""]
    assert unit.get("AmbientCapabilities", []) == ([RIGHTS] if attaches else [])
    assert unit["User"] in (["midstream"], ["%i"])
    # The last word counts: bpf is among what systemd calls privileged. An application asks about its maps.
    reads = name == "midstream-hardworker@.service"
    assert ("bpf" in unit["SystemCallFilter"][-1].split()) == (attaches or reads)


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_a_command_of_ours(name: str) -> None:
    (start,) = lines(name)["ExecStart"]
    program, command, *arguments = start.split()
    assert program == PROGRAM
    assert arguments[-2:] == ["--config", "/etc/midstream/config.toml"]
    if command != "daemon":
        assert command in import_module("midstream.cli").COMMANDS


def test_the_daemon_is_watched() -> None:
    unit = lines("midstream-daemon.service")
    assert unit["Type"] == ["notify"] and unit["Restart"] == ["on-failure"]
    assert int(unit["WatchdogSec"][0]) > 0
    assert unit["KillMode"] == ["process"], "the spool's process goes on"


def test_each_service_is_restarted_and_may_write_where_it_must() -> None:
    for name in UNITS:
        unit = lines(name)
        assert unit["Restart"] == ["on-failure"]
        assert unit["ProtectSystem"] == ["strict"]
        # Whoever compiles needs the cache, whoever attaches the pins.
        assert ("CacheDirectory" in unit) == ("AmbientCapabilities" in unit)
        assert ("ReadWritePaths" in unit) == ("AmbientCapabilities" in unit)
    assert lines("midstream-logger.service")["StateDirectory"] == ["midstream"]


def test_services_that_wait_can_say_for_what() -> None:
    for name in UNITS:
        assert lines(name)["NotifyAccess"] == ["main"]


def test_who_takes_connections_may_take_many() -> None:
    for name in ("midstream-logger.service", "midstream-hardworker@.service", "midstream-daemon.service"):
        assert int(lines(name)["LimitNOFILE"][0]) >= 65536


def test_user_and_folders() -> None:
    assert "u midstream - " in (FOLDER / "midstream.sysusers.conf").read_text()
    entries = [line.split()[:4] for line in (FOLDER / "midstream.tmpfiles.conf").read_text().splitlines()]
    assert ["d", "/sys/fs/bpf/midstream", "0700", "midstream"] in entries
    assert ["z", "/sys/fs/bpf", "0711", "root"] in entries
