"""Whatever an interface or a file is called, a shell takes it as one word of the printed command."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import patients
from tests.support.patients import FOREIGN, HARDWORKER, LOGGER, SENSORS

from midstream.config import Config
from midstream.doctor import interface, neighbours, program, station
from midstream.doctor.neighbours import Neighbour
from midstream.doctor.repair import SetMtu, SetNeighbour, SetUp, SwitchOff, sysctl
from midstream.doctor.subject import Subject

# What Linux takes for an interface, and what it takes for a file.
devices = st.text(
    st.characters(codec="utf-8", exclude_characters="/:%\0", exclude_categories=["Z", "C"]), min_size=1
)
files = st.text(st.characters(codec="utf-8", exclude_characters="/\0\n\r"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..")
)


def words(command: str) -> list[str]:
    """Of each of its parts, as a POSIX shell takes them."""
    return shlex.split(command, comments=True)


@given(devices)
@settings(max_examples=50)
def test_commands_about_an_interface(name: str) -> None:
    repairs = (
        SetUp(name),
        SetMtu(name, 1500),
        SetNeighbour(name, LOGGER.ip, LOGGER.mac),
        SwitchOff(name, ("rx-gro",)),
    )
    for repair in repairs:
        assert name in words(repair.command)
    assert f"/proc/sys/net/ipv4/conf/{name}/arp_ignore" in words(
        sysctl(f"net/ipv4/conf/{name}/arp_ignore", "net/ipv4/conf/all/arp_ignore", value=0)
    )
    topology = patients.subject("sensor").topology
    for command in station.commands("linux", topology, name) + station.commands("macos", topology, name):
        assert name in words(command)


@given(devices, files)
@settings(max_examples=50)
def test_findings_about_an_interface_and_a_file(name: str, folder: str) -> None:
    subject = of(name, Path("/etc", folder))
    bad = patients.interface(name=name, mac=FOREIGN, addresses=(), up=False, mtu=9000)
    stack = patients.stack(
        subject,
        neighbours={
            HARDWORKER.ip: Neighbour(FOREIGN, "stale"),
            SENSORS[1].ip: Neighbour(LOGGER.mac, "stale"),
        },
        routes={LOGGER.ip: None},
        arp_ignore={"all": 8, name: 8},
    )
    nothing = patients.program(pinned=False, attached="", current=None)
    findings = [
        *interface.check(bad, subject),
        *neighbours.check(stack, subject),
        *program.check(nothing, patients.interface(name=name), subject),
    ]
    for finding in findings:
        found = words(finding.fix)
        whole = name in found or any(f"/{part}/" in f"{word}/" for word in found for part in (name, folder))
        assert whole or not found, finding


def of(name: str, folder: Path) -> Subject:
    subject = patients.subject("hardworker")
    config = Config()
    config._path = folder / "config.toml"
    return replace(subject, interface=name, config=config)


@pytest.mark.parametrize("name", ["eth0", "eth0.10"])
def test_ordinary_names_are_shown_as_they_are(name: str) -> None:
    assert SetUp(name).command == f"ip link set dev {name} up"
    assert (
        sysctl(f"net/ipv4/conf/{name}/rp_filter", value=2)
        == f"echo 2 > /proc/sys/net/ipv4/conf/{name}/rp_filter"
    )
