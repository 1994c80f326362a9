"""The SYN with which a connection began: the kernel keeps it for whoever accepts that (Linux 4.3)."""

import socket
from contextlib import suppress

_TCP_SAVE_SYN, _TCP_SAVED_SYN = 27, 28  # linux/tcp.h
_LONGEST = 120  # bytes of an IPv4 and a TCP header with all options


def keep_syns(listener: socket.socket) -> None:
    """Keep the SYNs of the connections that come from now on."""
    with suppress(OSError):  # an older kernel
        listener.setsockopt(socket.IPPROTO_TCP, _TCP_SAVE_SYN, 1)


def first_sequence(accepted: socket.socket) -> int | None:
    """TCP's sequence number of the first byte from the other side. Known once: the kernel forgets the SYN.

    None if it was not kept: with SYN cookies there was no room for it.
    """
    try:
        syn = accepted.getsockopt(socket.IPPROTO_TCP, _TCP_SAVED_SYN, _LONGEST)
    except OSError:
        return None
    if not syn:
        return None
    tcp = 4 * (syn[0] & 0xF)  # the IP header's length
    return int.from_bytes(syn[tcp + 4 : tcp + 8]) + 1 & 0xFFFFFFFF
