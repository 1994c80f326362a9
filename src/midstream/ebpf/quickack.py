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


def add(interface: str, sensors: Iterable[IPv4Address]) -> None:
    """Have these sensors answered at once. A host route that is there already stays as it is."""
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname=interface)
        for ip in sensors:
            routes.add(netlink, ip, index, PROTOCOL, quickack=1)


def remove() -> None:
    """Take the routes away."""
    with IPRoute() as netlink:
        for ip, index in list(routes.find(netlink, PROTOCOL)):
            routes.remove(netlink, ip, index, PROTOCOL)
