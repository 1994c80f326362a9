"""The kernel tells when links, addresses, neighbours or routes change; what has changed is looked up anew."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

_NETLINK_ROUTE = 0
_GROUPS = 0x1 | 0x4 | 0x10 | 0x40  # RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE (linux/rtnetlink.h)


class NetworkWatch:
    """Calls changed() in the running event loop after the kernel has said something."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE
        )
        self._socket.bind((0, _GROUPS))
        asyncio.get_running_loop().add_reader(self._socket, self._drain)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _drain(self) -> None:
        # An overrun (ENOBUFS) is news too: something has changed that we were not told of.
        with suppress(OSError):
            while self._socket.recv(1 << 16):
                pass
        self._changed()
