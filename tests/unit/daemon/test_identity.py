"""Who a host is, and what it says of itself."""

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from tests.support.events import collected

from midstream.config import Config, DaemonSection
from midstream.daemon.identity import Identity, find_role
from midstream.daemon.interface import Interface
from midstream.errors import ConfigError

INTERFACE = Interface(
    "eth0", 2, IPv4Address("192.0.2.2"), IPv4Network("192.0.2.0/24"), "02:00:00:00:00:02", 1400
)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("sensor", "sensor"),
        ("arm-sensor-2", "sensor"),
        ("robot7hardworker", "hardworker"),
        ("Logger03.lab.example", "logger"),
    ],
)
def test_the_role_of_a_name(name: str, role: str) -> None:
    assert find_role(Config(), name) == role
    assert find_role(Config(role="logger"), name) == "logger"


@pytest.mark.parametrize("name", ["", "camera", "sensors", "sensor-x", "hardworker-2b"])
def test_a_name_that_says_no_role(name: str) -> None:
    with pytest.raises(ConfigError, match=r"role: missing, and the host name .* add role = "):
        find_role(Config(), name)


def test_only_a_host_that_explores_needs_the_key(tmp_path: Path) -> None:
    said = collected()
    missing = str(tmp_path / "key")
    with pytest.raises(ConfigError, match="key"):
        Identity(Config(role="sensor", daemon=DaemonSection(key=missing)))
    assert said == []
    alone = Identity(Config(role="sensor", daemon=DaemonSection(key=missing, explore=False)))
    assert alone.key is None
    assert [(each["event"], each["level"]) for each in said] == [("unwatched", "warning")]


def test_the_hardworker_alone_says_which_marks_hold(tmp_path: Path) -> None:
    daemon = DaemonSection(name="arm", key=str(tmp_path / "key"), explore=False)
    said = [
        Identity(Config(role=role, daemon=daemon)).announcement(INTERFACE, None)
        for role in ("hardworker", "sensor")
    ]
    assert [each.mark is not None for each in said] == [True, False]
    assert (said[0].name, said[0].ip, said[0].mac, said[0].mtu) == (
        "arm",
        INTERFACE.ip,
        INTERFACE.mac,
        INTERFACE.mtu,
    )
