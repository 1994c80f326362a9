"""Prompt acknowledgements: the logger's kernel answers each of a sensor's segments at once.

A kernel holds an acknowledgement back for some milliseconds, and longer while the bytes stay unread, as
they do with the logger's worker until they are committed. A sensor whose window a loss has made small
waits for it. Routes to the sensors with `quickack` (ip-route(8)) make the kernel answer without waiting
for anybody. They bear a protocol number of their own, by which `remove` finds them.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address

from pyroute2 import IPRoute  # type: ignore[import-untyped]  # pyroute2 ships no types

from midstream.ebpf import routes

PROTOCOL = 78
"""Who set a route (`ip route show proto 78`): 78 is "N", and nobody's in rt_protos."""


def ensure(interface: str, sensors: Iterable[IPv4Address]) -> list[IPv4Address]:
    """Have these sensors answered at once, and no others; which were not.

    A host route that is there already stays as it is.
    """
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname=interface)
        wanted, found = {(ip, index) for ip in sensors}, set(routes.find(netlink, PROTOCOL))
        for ip, where in found - wanted:
            routes.remove(netlink, ip, where, PROTOCOL)
        return [
            ip for ip, _ in sorted(wanted - found) if routes.add(netlink, ip, index, PROTOCOL, quickack=1)
        ]


def missing(sensors: Iterable[IPv4Address]) -> list[IPv4Address]:
    """The sensors that are not answered at once, and have no other host route."""
    with IPRoute() as netlink:
        found = {ip for ip, _ in routes.find(netlink)}
        return [ip for ip in sensors if ip not in found]


def remove() -> None:
    """Take the routes away."""
    with IPRoute() as netlink:
        for ip, index in list(routes.find(netlink, PROTOCOL)):
            routes.remove(netlink, ip, index, PROTOCOL)
