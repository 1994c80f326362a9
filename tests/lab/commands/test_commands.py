"""Each command that the doctor prints about interface and stack works, whatever the interface is called."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types
from tests.support import patients
from tests.support.patients import FOREIGN, HARDWORKER, LOGGER

from midstream.doctor import interface, neighbours
from midstream.doctor.finding import Finding
from midstream.doctor.subject import Subject
from midstream.lab import enter, namespaces

RESERVED = {".", "..", "all", "default", "lo", "other", "peer0", "peer1"}
CHECKS = ["interface", "rp_filter", "MTU", "neighbour", "route", "ARP", "offloads"]
STRANGER = "192.0.2.77"

# What Linux takes (dev_valid_name): no blank, slash or colon; `%` is a pattern. Of `*` ethtool makes all
# interfaces, however it is quoted.
names = (
    st.text(
        st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/:%"), min_size=1, max_size=15
    )
).filter(lambda name: name not in RESERVED | {"*"})


@given(names)
@example("eth0.10")
@example("$(id);'\"`*&|")
@example("-x")
@example("a=b~#!?[]{}<>")
@settings(max_examples=2)
def test_the_printed_commands_mend_it(name: str) -> None:
    namespaces.call_here(mend, name)


@pytest.mark.slow
@given(names)
@settings(max_examples=300)
def test_the_printed_commands_mend_it_at_length(name: str) -> None:
    namespaces.call_here(mend, name)


def mend(name: str) -> None:
    """In a network namespace of its own: everything is wrong, each command is typed in, and all is right."""
    enter.unshare(enter.CLONE_NEWNET | enter.CLONE_NEWNS)
    enter.mount("none", "/", "", enter.MS_REC | enter.MS_SLAVE)
    enter.mount("sysfs", "/sys", "sysfs")
    subject = replace(patients.subject("sensor"), interface=name)
    make(name, subject)
    before = examine(subject)
    assert {finding.check for finding in before} == set(CHECKS)
    # The link first, without which there is no route; the filter while there still is a wrong one.
    for finding in sorted(before, key=lambda one: CHECKS.index(one.check)):
        type_in(finding.fix)
        if finding.check == "rp_filter":
            assert "rp_filter" not in {found.check for found in examine(subject)}
    assert examine(subject) == []


def make(name: str, subject: Subject) -> None:
    """An interface that is down, with a wrong MTU and a wrong neighbour, and the peers' routes elsewhere."""
    with IPRoute() as netlink:
        for number, (link, mac) in enumerate(((name, subject.host.mac), ("other", FOREIGN))):
            peer = {"ifname": f"peer{number}", "mtu": 1600}
            netlink.link("add", ifname=link, kind="veth", address=mac, mtu=1600, peer=peer)
            netlink.link("set", index=netlink.link_lookup(ifname=f"peer{number}")[0], state="up")
        (index,), (other,) = (netlink.link_lookup(ifname=link) for link in (name, "other"))
        netlink.addr("add", index=index, address=str(subject.host.ip), prefixlen=24)
        for link in (index, other):
            netlink.link("set", index=link, state="up")
        netlink.neigh("replace", dst=str(HARDWORKER.ip), lladdr=FOREIGN, ifindex=index, state="permanent")
        netlink.neigh("replace", dst=STRANGER, lladdr=LOGGER.mac, ifindex=index, state="permanent")
        netlink.route("add", dst=f"{LOGGER.ip}/32", oif=other, scope=253, prefsrc=str(subject.host.ip))
        netlink.link("set", index=index, state="down")
    for of in ("all", name):
        for key, value in (("arp_ignore", "8"), ("rp_filter", "1")):
            Path("/proc/sys/net/ipv4/conf", of, key).write_text(value)


def examine(subject: Subject) -> list[Finding]:
    found = [
        *interface.check(interface.read(subject.interface), subject),
        *neighbours.check(neighbours.read(subject), subject),
    ]
    return [finding for finding in found if finding.status in ("fault", "warning")]


def type_in(line: str) -> None:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    done = subprocess.run(["sh", "-c", line], env={"PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}: {done.stderr}"
