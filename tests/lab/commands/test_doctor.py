"""The doctor on hosts that are broken in one way each: that finding, and the printed command mends it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types
from pyroute2.ethtool.ioctl import IoctlEthtool  # type: ignore[import-untyped]  # likewise
from tests.lab.interfaces import attach_pass, make_bridge, remove_bridge
from tests.lab.triangle import (
    HARDWORKER,
    LOGGER,
    PINS,
    command,
    counted,
    counters,
    messages_logged,
    send,
    started,
)

from midstream.ebpf import libbpf, quickack
from midstream.hardworker import Hardworker
from midstream.lab import Impairment, Lab, clear, impair, links

LAB = {"sensors": 1}
FOREIGN = "02:00:00:00:00:99"
REQUEST, RELAYED, REPLY = "sensor → hardworker", "hardworker → logger", "logger → sensor"
OF_THE_MACHINE = {"clock", "disk", "counters", "firewall", "daemon"}  # not of this lab


def examine(lab: Lab, host: str, *arguments: str) -> dict[str, Any]:
    """What the doctor says on a host, and its exit code."""
    ended = command(lab, host, "doctor", "--config", lab.config, "--json", *arguments)
    result = ended.object
    assert ended.code == (1 if result["faults"] else 0)
    return result


def troubles(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The findings that are neither ok nor of the machine that the lab is on."""
    return [
        finding
        for finding in result["findings"]
        if finding["status"] != "ok" and finding["check"] not in OF_THE_MACHINE
    ]


def the_trouble(lab: Lab, host: str) -> dict[str, Any]:
    (found,) = troubles(examine(lab, host))
    return found


def type_in(lab: Lab, host: str, line: str) -> None:
    """What a person would do with the printed command."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    lab.run(host, ["sh", "-c", line], check=True, env=os.environ | {"PATH": path}, stdout=subprocess.DEVNULL)


def set_link(**change: object) -> None:
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname="eth0")
        netlink.link("set", index=index, **change)


def set_neighbour(ip: str, mac: str, state: str) -> None:
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname="eth0")
        netlink.neigh("replace", dst=ip, lladdr=mac, ifindex=index, state=state)


def switch_on(feature: str) -> None:
    ethtool = IoctlEthtool("eth0")
    try:
        features = ethtool.get_features()
        features[feature] = True
        ethtool.set_features(features)
    finally:
        ethtool.close()


@contextmanager
def cut(lab: Lab, leg: str) -> Iterator[None]:
    """Every TCP frame of a leg is lost; ARP still passes."""
    impair(lab, leg, Impairment(drop=1))
    try:
        yield
    finally:
        clear(lab)


@pytest.mark.parametrize("host", ["sensor", "hardworker", "logger"])
def test_nothing_is_wrong(triangle: Lab, host: str) -> None:
    result = examine(triangle, host)
    assert troubles(result) == []
    assert (result["role"], result["interface"], result["fixed"]) == (host, "eth0", [])


@pytest.mark.slow
def test_neighbour_mtu_and_offload(triangle: Lab) -> None:
    break_three(triangle)
    found = troubles(examine(triangle, "sensor"))
    assert found == troubles(examine(triangle, "sensor"))  # it only looks
    assert {(finding["check"], finding["status"]) for finding in found} == THREE
    for finding in found:
        type_in(triangle, "sensor", finding["fix"])
    assert troubles(examine(triangle, "sensor")) == []


def test_fix_mends_them_all(triangle: Lab) -> None:
    break_three(triangle)
    result = examine(triangle, "sensor", "--fix")
    commands = [line.split()[:2] for line in result["fixed"]]
    assert commands == [["ip", "link"], ["ethtool", "-K"], ["ip", "neigh"]]
    assert troubles(result) == []


THREE = {("neighbour", "fault"), ("MTU", "fault"), ("offloads", "fault")}


def break_three(lab: Lab) -> None:
    lab.call("sensor", switch_on, "tx-checksum-ip-generic")
    lab.call("sensor", set_neighbour, HARDWORKER, FOREIGN, "permanent")
    lab.call("sensor", set_link, mtu=1600)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mac", "state", "status"),
    [("", "reachable", "warning"), (FOREIGN, "reachable", "fault"), (FOREIGN, "failed", "fault")],
)
def test_a_neighbour_that_is_not_permanent(triangle: Lab, mac: str, state: str, status: str) -> None:
    """A wrong MAC address harms, a right one may be overwritten at any time."""
    mac = mac or triangle.host("logger").mac
    triangle.call("sensor", set_neighbour, LOGGER, mac, state)
    found = the_trouble(triangle, "sensor")
    assert (found["check"], found["status"]) == ("neighbour", status)
    type_in(triangle, "sensor", found["fix"])
    assert troubles(examine(triangle, "sensor")) == []


@pytest.mark.slow
def test_an_mtu_that_is_smaller(triangle: Lab) -> None:
    triangle.call("sensor", set_link, mtu=1400)
    found = the_trouble(triangle, "sensor")
    assert (found["check"], found["status"], found["found"]) == ("MTU", "warning", "eth0 has 1400")
    type_in(triangle, "sensor", found["fix"])
    assert troubles(examine(triangle, "sensor")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("leg", "broken"),
    [("sensor:hardworker", REQUEST), ("hardworker:logger", RELAYED), ("logger:sensor", REPLY)],
)
def test_a_leg_that_is_cut(triangle: Lab, leg: str, broken: str) -> None:
    with cut(triangle, leg):
        result = examine(triangle, "sensor")
    (fault,) = [finding for finding in troubles(result) if finding["status"] == "fault"]
    assert fault["check"] == broken
    assert all(finding["status"] == "unknown" for finding in troubles(result) if finding != fault)


@pytest.mark.slow
def test_a_cut_leg_seen_from_the_hardworker(triangle: Lab) -> None:
    with cut(triangle, "hardworker:logger"):
        found = the_trouble(triangle, "hardworker")
    assert (found["check"], found["status"]) == (RELAYED, "fault")


@pytest.mark.slow
def test_the_loggers_program_is_detached(triangle: Lab) -> None:
    command(triangle, "logger", "detach", "logger", "--config", triangle.config)
    seen_by_sensor = the_trouble(triangle, "sensor")
    assert (seen_by_sensor["check"], seen_by_sensor["status"]) == (REPLY, "fault")
    assert f"replies have the logger's address {LOGGER}" in seen_by_sensor["found"]
    found = the_trouble(triangle, "logger")
    assert (found["check"], found["found"]) == ("program", "not attached")
    type_in(triangle, "logger", found["fix"])
    assert troubles(examine(triangle, "logger")) == troubles(examine(triangle, "sensor")) == []


@pytest.mark.slow
def test_the_hardworkers_program_is_detached(triangle: Lab) -> None:
    command(triangle, "hardworker", "detach", "hardworker", "--config", triangle.config)
    seen_by_sensor = the_trouble(triangle, "sensor")
    assert (seen_by_sensor["check"], seen_by_sensor["status"]) == (RELAYED, "fault")
    assert "marked packets stay at the hardworker" in seen_by_sensor["found"]
    found = the_trouble(triangle, "hardworker")
    assert (found["check"], found["found"]) == ("program", "not attached")
    type_in(triangle, "hardworker", found["fix"])
    assert troubles(examine(triangle, "sensor")) == []


@pytest.mark.slow
@pytest.mark.parametrize("host", ["hardworker", pytest.param("logger", marks=pytest.mark.slow)])
@pytest.mark.parametrize("pin", ["settings", pytest.param("first", marks=pytest.mark.slow)])
def test_a_pin_that_was_removed(triangle: Lab, host: str, pin: str) -> None:
    if pin == "first":
        pin = {"hardworker": "journal", "logger": "midstream_logger_egress"}[host]
    (PINS / host / pin).unlink()
    found = the_trouble(triangle, host)
    assert (found["check"], found["status"]) == ("program", "fault")
    assert found["found"].startswith(f"{pin} missing in ")
    type_in(triangle, host, found["fix"])
    assert troubles(examine(triangle, "sensor")) == troubles(examine(triangle, host)) == []


@pytest.mark.slow
def test_a_card_that_merges_below_a_generic_program(triangle: Lab) -> None:
    """eth0 under a bridge: after the printed command it merges no more, and no packet is too long."""

    def stream(size: int) -> int:
        before = counters()
        triangle.call("sensor", send, HARDWORKER, bytes(size))
        return counted(before)[-1].get("oversized", 0)

    options = ("--config", triangle.config, "--interface", "bridge0")
    command(triangle, "hardworker", "detach", "hardworker", "--config", triangle.config)
    triangle.call("hardworker", make_bridge, triangle.host("hardworker").mac)
    try:
        assert command(triangle, "hardworker", "attach", "hardworker", *options).code == 0
        examined = command(
            triangle, "hardworker", "doctor", "hardworker", "--json", "--no-probe", *options
        ).object
        offloads = [one for one in examined["findings"] if one["check"] == "offloads"]
        (found,) = [one for one in offloads if one["status"] != "ok"]
        assert (found["status"], found["fix"]) == ("fault", "ethtool -K eth0 rx-gro off")
        with Hardworker(triangle.config) as application:
            pool = ThreadPoolExecutor(1)
            # Few: what is merged is dropped, and comes again after a time-out, a segment at a time.
            merged = pool.submit(stream, 100_000)
            while not merged.done():
                application.wait(0.01)
                application.read()
            type_in(triangle, "hardworker", found["fix"])
            single = pool.submit(stream, 2_000_000)
            while not single.done():
                application.wait(0.01)
                application.read()
            pool.shutdown()
        assert (merged.result() > 0, single.result()) == (True, 0)
    finally:
        command(triangle, "hardworker", "detach", "hardworker", "--config", triangle.config)
        triangle.call("hardworker", remove_bridge)
        triangle.call("hardworker", links.set_offloads, "eth0")
        examine(triangle, "hardworker", "--fix", "--no-probe")
        command(triangle, "hardworker", "attach", "hardworker", "--config", triangle.config)
    assert troubles(examine(triangle, "hardworker")) == []


@pytest.mark.slow
@pytest.mark.parametrize("flags", [libbpf.XDP_FLAGS_SKB_MODE, libbpf.XDP_FLAGS_DRV_MODE])
def test_somebody_elses_program(triangle: Lab, flags: int) -> None:
    command(triangle, "hardworker", "detach", "hardworker", "--config", triangle.config)
    triangle.call("hardworker", attach_pass, triangle.const, flags)
    (found,) = [one for one in troubles(examine(triangle, "hardworker")) if one["check"] == "program"]
    assert "is not midstream's" in found["found"]
    type_in(triangle, "hardworker", found["fix"])
    assert troubles(examine(triangle, "hardworker")) == []


@pytest.mark.slow
def test_acknowledgements_that_are_no_longer_prompt(triangle: Lab) -> None:
    triangle.call("logger", quickack.remove)
    found = the_trouble(triangle, "logger")
    assert (found["check"], found["status"]) == ("settings", "warning")
    type_in(triangle, "logger", found["fix"])
    assert troubles(examine(triangle, "logger")) == []


@pytest.mark.slow
def test_a_program_made_from_another_const_toml(triangle: Lab) -> None:
    was = triangle.const.read_text()
    triangle.const.write_text(was.replace("size = 1024", "size = 512"))
    try:
        found = the_trouble(triangle, "hardworker")
        assert (found["check"], found["status"]) == ("program", "fault")
        assert "made from other files" in found["found"]
    finally:
        triangle.const.write_text(was)
    assert troubles(examine(triangle, "hardworker")) == []


@pytest.mark.slow
def test_a_replaced_card(triangle: Lab) -> None:
    """The logger says so of itself, the sensor by who answers; the printed command corrects const.toml."""
    was, mac = triangle.const.read_text(), triangle.host("logger").mac
    triangle.call("logger", set_link, address=FOREIGN)
    try:
        seen_by_sensor = {finding["check"]: finding for finding in troubles(examine(triangle, "sensor"))}
        assert seen_by_sensor.keys() == {"ARP", RELAYED, REPLY}
        assert seen_by_sensor["ARP"]["found"] == f"logger ({LOGGER}) is at {FOREIGN}"
        found = next(
            f for f in examine(triangle, "logger", "--no-probe")["findings"] if f["check"] == "MAC address"
        )
        assert (found["status"], found["found"]) == ("fault", f"eth0 has {FOREIGN}")
        type_in(triangle, "logger", found["fix"])
        assert triangle.const.read_text() == was.replace(mac, FOREIGN)
        checks = {finding["check"] for finding in troubles(examine(triangle, "logger", "--no-probe"))}
        # The program was made from the old file, and with its address an interface forgets its neighbours.
        assert checks == {"program", "neighbour"}
    finally:
        triangle.call("logger", set_link, address=mac)
        triangle.const.write_text(was)
        examine(triangle, "logger", "--fix", "--no-probe")
    assert troubles(examine(triangle, "sensor")) == []


@pytest.mark.slow
def test_an_interface_that_is_down(triangle: Lab) -> None:
    """Found by its address, which stays; the legs cannot be asked."""
    triangle.call("sensor", set_link, state="down")
    try:
        result = examine(triangle, "sensor")
        down = next(finding for finding in result["findings"] if finding["check"] == "interface")
        assert (down["status"], down["fix"]) == ("fault", "ip link set dev eth0 up")
        assert {"legs", "interface"} <= {finding["check"] for finding in troubles(result)}
        assert examine(triangle, "sensor", "--fix")["faults"] == 0
    finally:
        triangle.call("sensor", set_link, state="up")
    assert troubles(examine(triangle, "sensor")) == []


@pytest.mark.slow
def test_probes_disturb_no_connection(triangle: Lab, tmp_path: Path) -> None:
    before = messages_logged(triangle.run_dir / "midstream.db")
    arguments = ("sensor", "--config", triangle.config, "--messages", "1500", "--rate", "1000", "--json")
    with started(triangle, "sensor", tmp_path, *arguments, ready="connected") as client:
        for host in ("sensor", "hardworker", "logger"):
            assert troubles(examine(triangle, host)) == []
        sent = client.result()
    assert (sent.code, sent.object["clean"]) == (0, True)
    assert messages_logged(triangle.run_dir / "midstream.db") - before == 1500


def test_without_a_role_or_an_address(triangle: Lab) -> None:
    ended = command(triangle, "switch", "doctor", "--config", triangle.config)
    assert (ended.code, ended.out) == (2, "")
    assert "this host has no address of const.toml" in ended.err
