"""When a daemon announces its host, as another host hears it, and with which address."""

import asyncio
import time
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types
from tests.lab.triangle import HARDWORKER, SENSOR, wait_until
from tests.support.announcements import announcement

from midstream.daemon import interface
from midstream.daemon.announcement import Announcement
from midstream.daemon.discovery import ANSWER, Discovery
from midstream.daemon.freshness import StampJudge, Voice
from midstream.daemon.seal import Key
from midstream.errors import NetworkError
from midstream.lab import Lab, daemons

LAB = {"sensors": 1, "bare": True}
SETTLED = 1.5  # seconds after which all has been answered that the newcomer's own start asked for
TIMES = 2


def test_a_newcomer_is_answered_soon(lab: Lab) -> None:
    """Who starts a moment later than another has missed that one's first announcement, and a question that
    was answered a moment ago is not answered again (RFC 6762, section 6): the next one came 4 s later."""
    daemons.launch(lab, "sensor")
    wait_until(lambda: daemons.state(lab, "sensor") is not None)
    for seconds in lab.call("hardworker", told_after, lab.run_dir / "key"):
        assert seconds < ANSWER + 0.5


def told_after(key: Path) -> list[float]:
    """Announce a host that asks, several times; the seconds until the sensor's next word."""

    async def announce() -> list[float]:
        words: asyncio.Queue[IPv4Address] = asyncio.Queue()
        found = []
        async with Discovery.open(
            IPv4Address(HARDWORKER),
            Key.load(key),
            newcomer(),
            stamp=lambda: Voice().stamp(StampJudge(1).challenge()),
            heard=lambda word: words.put_nowait(word.said.ip),
            rejected=lambda _: None,
        ) as own:
            for _ in range(TIMES):
                await asyncio.sleep(SETTLED)
                while not words.empty():
                    words.get_nowait()
                said = time.monotonic()
                own.repeat()
                while await words.get() != IPv4Address(SENSOR):
                    pass
                found.append(time.monotonic() - said)
        return found

    return asyncio.run(announce())


def newcomer() -> Announcement:
    return announcement(role="hardworker", ip=HARDWORKER)


ADDRESSES = {
    "link-local first": (["169.254.7.1/16", "192.0.2.77/24"], "192.0.2.77"),
    "of the link's scope first": (["192.0.2.77/24 link", "198.51.100.7/24"], "198.51.100.7"),
    "link-local only": (["169.254.7.1/16"], "169.254.7.1"),
    "deprecated first": (["192.0.2.77/24 deprecated", "198.51.100.7/24"], "198.51.100.7"),
    "deprecated only": (["192.0.2.77/24 deprecated"], "192.0.2.77"),
    "two of one network": (["192.0.2.77/24", "192.0.2.78/24"], "192.0.2.77"),
    "two networks": (["198.51.100.7/24", "192.0.2.77/24"], "198.51.100.7"),
    "secondary, then another network": (
        ["169.254.7.1/16", "169.254.7.2/16", "198.51.100.7/32"],
        "198.51.100.7",
    ),
    "named": (["198.51.100.7/24", "192.0.2.77/24", "192.0.2.78/24"], "192.0.2.78"),
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_the_address_that_is_announced(lab: Lab, name: str) -> None:
    given, expected = ADDRESSES[name]
    named = [IPv4Address(expected)] if name == "named" else []
    assert lab.call("logger", address_among, given, named) == expected


def test_an_interface_with_a_link_local_address_does_not_compete(lab: Lab) -> None:
    """Such as one that waits for DHCP; two with an address of a network do."""
    lab.call("logger", another_interface, "169.254.9.9/16")
    assert lab.call("logger", address_among, ["192.0.2.77/24"], []) == "192.0.2.77"
    lab.call("logger", another_interface, "203.0.113.9/24")
    with pytest.raises(NetworkError, match="several interfaces have an IPv4 address"):
        lab.call("logger", address_among, ["192.0.2.77/24"], [])


def address_among(given: list[str], named: list[IPv4Address]) -> str:
    """What is chosen if the host's one interface has these addresses, which came in this order."""
    with IPRoute() as netlink:
        (link,) = (each for each in netlink.get_links() if each.get("ifname") not in ("lo", "other", "rehto"))
        netlink.flush_addr(index=link["index"], family=2)
        for text in given:
            address, _, kind = text.partition(" ")
            ip, _, length = address.partition("/")
            more: dict[str, object] = {"scope": 253} if kind == "link" else {}
            if kind == "deprecated":
                more |= {"preferred_lft": 0, "valid_lft": 3600}
            netlink.addr("add", index=link["index"], address=ip, prefixlen=int(length), **more)
    return str(interface.read("", named).ip)


def another_interface(address: str) -> None:
    with IPRoute() as netlink:
        if not netlink.link_lookup(ifname="other"):
            netlink.link("add", ifname="other", peer="rehto", kind="veth")
            for name in ("other", "rehto"):
                netlink.link("set", index=netlink.link_lookup(ifname=name)[0], state="up")
        ip, _, length = address.partition("/")
        index = netlink.link_lookup(ifname="other")[0]
        netlink.flush_addr(index=index, family=2)
        netlink.addr("add", index=index, address=ip, prefixlen=int(length))
