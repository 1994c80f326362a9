"""The kernel tells when links, addresses, neighbours or routes change; what has changed is looked up anew."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_NETLINK_ROUTE = 0
_GROUPS = 0x1 | 0x4 | 0x10 | 0x40  # RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE (linux/rtnetlink.h)


@contextmanager
def watch_network(changed: Callable[[], None]) -> Iterator[None]:
    """Inside, changed() is called in the running event loop after the kernel has said something."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE) as netlink:

        def drain() -> None:
            # An overrun (ENOBUFS) is news too: something has changed that we were not told of.
            with suppress(OSError):
                while netlink.recv(1 << 16):
                    pass
            changed()

        netlink.bind((0, _GROUPS))
        loop = asyncio.get_running_loop()
        loop.add_reader(netlink, drain)
        try:
            yield
        finally:
            loop.remove_reader(netlink)
