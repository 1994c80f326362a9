"""Prompt acknowledgements: the logger's kernel answers each of a sensor's segments at once.

A kernel holds an acknowledgement back for some milliseconds, and longer while the bytes stay unread, as
they do with the logger's worker until they are committed. A sensor whose window a loss has made small
waits for it. Routes to the sensors with `quickack` (ip-route(8)) make the kernel answer without waiting
for anybody. They bear a protocol number of their own, by which `remove` finds them.
"""

import errno
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address
from socket import AF_INET

from pyroute2 import IPRoute, NetlinkError  # type: ignore[import-untyped]  # pyroute2 ships no types

PROTOCOL = 78
"""Who set a route (`ip route show proto 78`): 78 is "N", and nobody's in rt_protos."""

_LINK = 253  # RT_SCOPE_LINK


def add(interface: str, sensors: Iterable[IPv4Address]) -> None:
    """Have these sensors answered at once. A host route that is there already stays as it is."""
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname=interface)
        for ip in sensors:
            try:
                netlink.route(
                    "add",
                    dst=f"{ip}/32",
                    oif=index,
                    proto=PROTOCOL,
                    scope=_LINK,
                    metrics={"quickack": 1},
                )
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise


def remove() -> None:
    """Take the routes away."""
    with IPRoute() as netlink:
        for route in list(netlink.get_routes(family=AF_INET, proto=PROTOCOL)):
            with suppress(NetlinkError):  # its interface has just gone
                netlink.route(
                    "del", dst=f"{route.get('dst')}/32", oif=route.get("oif"), proto=PROTOCOL, scope=_LINK
                )
