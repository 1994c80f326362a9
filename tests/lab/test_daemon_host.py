"""What a daemon leaves of the host's own settings, with hosts of const.toml instead of found ones."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types
from tests.lab.triangle import HARDWORKER, Program, command, started, wait_until

from midstream import network
from midstream.daemon.neighbours import PROTOCOL
from midstream.lab import Lab, hosts
from midstream.network import Host, Topology

LAB = {"sensors": 1, "bare": True}
STRANGER, WRONG = "10.83.0.77", "02:00:00:00:00:77"
OFF_LINK = Host(IPv4Address("198.51.100.3"), "02:00:00:00:00:03")
ALSO_OFF_LINK = Host(IPv4Address("198.51.100.12"), "02:00:00:00:00:12")


def found(lab: Lab) -> Topology:
    """The hosts of the lab; the logger and a second sensor are on another network."""
    topology = hosts.topology(lab.hosts, tos=104, port=12345, mtu=1500, size=1024)
    return replace(topology, sensors=(*topology.sensors, ALSO_OFF_LINK), logger=OFF_LINK)


def write(folder: Path, text: str) -> Path:
    """const.toml with this text and a config.toml beside it, whose path is returned."""
    (folder / "const.toml").write_text(text)
    config = folder / "config.toml"
    config.write_text(
        'role = "sensor"\n[network]\ninterface = "eth0"\n'
        f'[daemon]\nexplore = false\nkey = "none"\nsocket = "{folder}/daemon.sock"\n'
    )
    return config


@contextmanager
def daemon(lab: Lab, folder: Path, text: str) -> Iterator[Program]:
    """The sensor's daemon with this const.toml."""
    arguments = ("daemon", "--config", write(folder, text))
    with started(lab, "sensor", folder, *arguments, ready="in force") as program:
        yield program


def tables() -> tuple[dict[str, str], set[tuple[str, int]]]:
    """The permanent neighbours of eth0, and its routes, each with who set it."""
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname="eth0")
        neighbours = {
            entry.get("dst"): entry.get("lladdr")
            for entry in netlink.get_neighbours(ifindex=index, family=2)
            if entry["state"] == 0x80
        }
        routes = {
            (f"{route.get('dst')}/{route['dst_len']}", route["proto"])
            for route in netlink.get_routes(family=2, table=254)
            if route.get("oif") == index
        }
    return neighbours, routes


def settle(neighbours: dict[str, str], routes: list[str]) -> None:
    """What a user sets by hand."""
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname="eth0")
        for ip, mac in neighbours.items():
            netlink.neigh("replace", dst=ip, lladdr=mac, ifindex=index, state="permanent")
        for destination in routes:
            netlink.route("add", dst=destination, oif=index, scope=253)


def remove(ip: str) -> None:
    """Its neighbour entry and its route."""
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname="eth0")
        netlink.neigh("del", dst=ip, ifindex=index)
        netlink.route("del", dst=f"{ip}/32", oif=index, scope=253)


def test_the_users_own_is_kept_and_ours_is_repaired_and_removed(lab: Lab, tmp_path: Path) -> None:
    topology = found(lab)
    lab.call(
        "sensor",
        settle,
        {HARDWORKER: WRONG, STRANGER: WRONG, str(ALSO_OFF_LINK.ip): ALSO_OFF_LINK.mac},
        ["203.0.113.0/24", f"{ALSO_OFF_LINK.ip}/32"],
    )
    before = neighbours, routes = lab.call("sensor", tables)
    ours = f"{OFF_LINK.ip}/32", PROTOCOL
    wanted = (
        neighbours | {HARDWORKER: topology.hardworker.mac, str(OFF_LINK.ip): OFF_LINK.mac},
        routes | {ours},
    )
    text = network.dumps(topology)
    with daemon(lab, tmp_path, text) as program:
        assert lab.call("sensor", tables) == wanted
        lab.call("sensor", remove, str(OFF_LINK.ip))
        broken = time.monotonic()
        wait_until(lambda: lab.call("sensor", tables) == wanted, 1.0)
        print(f"neighbour and route of {OFF_LINK.ip}: repaired after {time.monotonic() - broken:.2f} s")
        told: dict[str, Any] = command(
            lab, "sensor", "status", "--config", tmp_path / "config.toml", "--json"
        ).object["daemon"]
        assert (told["state"], told["repaired"], told["peers"]) == ("working", 2, [])
        assert f"route {OFF_LINK.ip}: missing, set again" in told["repairs"]
        assert (tmp_path / "const.toml").read_text() == text, "it is the user's"
        ended = program.end()
    assert ended.code == 0, ended.err
    assert lab.call("sensor", tables) == before


@pytest.mark.parametrize(
    ("pattern", "instead", "words"),
    [
        (r'logger = "02.*', "", "const.toml: mac.logger: missing"),
        (r"10\.83\.0\.11", "10.83.0.99", "const.toml names no sensor 10.83.0.11"),
    ],
    ids=["a field", "this host"],
)
def test_what_const_toml_lacks_is_named(
    lab: Lab, tmp_path: Path, pattern: str, instead: str, words: str
) -> None:
    config = write(tmp_path, re.sub(pattern, instead, network.dumps(found(lab)), count=1))
    ended = command(lab, "sensor", "daemon", "--once", "--config", config)
    assert ended.code == 2
    assert words in ended.err
