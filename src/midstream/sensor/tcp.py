"""What a sensor asks of its kernel's TCP: to recover promptly, and what the peer has taken."""

import fcntl
import select
import socket
import struct
import sys
import termios
import time
from contextlib import suppress

CLOSE_TIMEOUT = 10.0  # seconds the peer has to take the rest and to close its side
CHUNK = 65536  # bytes read at a time
RTO_MAX = 1000  # milliseconds, the smallest that the kernel admits
RTO_MIN = 10_000  # microseconds, instead of 200 ms: many times a local network's round trip

_TCP_RTO_MAX_MS, _TCP_RTO_MIN_US = 44, 45  # linux/tcp.h, since 6.15
_LOOK = 0.002  # seconds between two questions for what is acknowledged


def recover_promptly(sock: socket.socket) -> None:
    """Let TCP come back soon after a loss, and after an application was paused and its ring full.

    A sensor with one segment in flight has a congestion window of one segment after a loss. If its
    retransmission is lost too, nothing follows that could show it, and all waits for the time-out. And that
    doubles each time (RFC 6298, section 5.5), so after a pause TCP may wait for as long again. Bound both,
    where the kernel can; it asks for no privileges. BBR takes the drops of a full ring for a policer, and
    keeps for a while the rate that it saw then: leave it for Reno, which every kernel has.
    """
    if sys.platform != "linux":
        return
    for option, value in ((_TCP_RTO_MAX_MS, RTO_MAX), (_TCP_RTO_MIN_US, RTO_MIN)):
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"bbr":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def ready(sock: socket.socket, event: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def closed_by_peer(sock: socket.socket) -> bool:
    """Wait for the peer's FIN; True if it comes in time and the peer had acknowledged every byte by then."""
    deadline = time.monotonic() + CLOSE_TIMEOUT
    while ready(sock, select.POLLIN, deadline - time.monotonic()):
        if not sock.recv(CHUNK):
            return unacknowledged(sock) == 0
    return False


def unacknowledged(sock: socket.socket) -> int:
    """Bytes handed to TCP, its FIN among them, that the peer has not acknowledged (tcp(7), SIOCOUTQ)."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, struct.pack("i", 0)))[0])


def await_acknowledgement(sock: socket.socket) -> None:
    """Wait (bounded) until the peer has taken everything, or the connection is broken."""
    deadline = time.monotonic() + CLOSE_TIMEOUT
    while unacknowledged(sock) and time.monotonic() < deadline:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return
        time.sleep(_LOOK)
