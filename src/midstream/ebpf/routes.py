"""Host routes that midstream sets: out of an interface, and known by the protocol number that they bear."""

import errno
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from socket import AF_INET

from pyroute2 import IPRoute, NetlinkError  # type: ignore[import-untyped]  # pyroute2 ships no types

_LINK, _MAIN = 253, 254  # RT_SCOPE_LINK, RT_TABLE_MAIN


def add(netlink: IPRoute, ip: IPv4Address, index: int, protocol: int, **metrics: int) -> bool:
    """Reach a host by the interface `index`; False, and nothing done, if it has a route already."""
    more = {"metrics": metrics} if metrics else {}
    try:
        netlink.route("add", dst=f"{ip}/32", oif=index, proto=protocol, scope=_LINK, **more)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        return False
    return True


def remove(netlink: IPRoute, ip: IPv4Address, index: int, protocol: int) -> None:
    """Take one away, if nobody was faster and its interface is still there."""
    with suppress(NetlinkError):
        # Without the scope the kernel looks for a route by way of a gateway, and finds none.
        netlink.route("del", dst=f"{ip}/32", oif=index, proto=protocol, scope=_LINK)


def find(netlink: IPRoute, protocol: int | None = None) -> Iterator[tuple[IPv4Address, int]]:
    """The destinations, and the indices of their interfaces; protocol: of who set them, None: anybody."""
    of = {} if protocol is None else {"proto": protocol}
    for route in netlink.get_routes(family=AF_INET, table=_MAIN, **of):
        if route["dst_len"] == 32 and (index := route.get("oif")):
            yield IPv4Address(route.get("dst")), index
