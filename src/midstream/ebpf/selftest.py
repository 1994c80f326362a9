"""The start-up self-test: does what XDP transmits on an interface really arrive?

A ping to a peer, whose reply XDP turns into a second request (selftest.bpf.c): the second reply proves
it, on the driver and in the mode that the real program is going to use. Beside it goes an ordinary ping,
which tells a driver that swallows packets from a peer that is down.
"""

import errno
import os
import select
import socket
import struct
import time
from contextlib import suppress
from ipaddress import IPv4Address

from midstream.ebpf import libbpf
from midstream.ebpf.objects import open_object
from midstream.errors import KernelError
from midstream.network import Topology

_ECHO_REQUEST, _ECHO_REPLY = 8, 0  # RFC 792
_ORDINARY, _PINGED, _REFLECTED = 0, 1, 2  # sequence numbers
_PATIENCE = 5.0  # seconds; some drivers take the link down when XDP is switched on
_INTERVAL = 0.2


def program(topology: Topology, identifier: int) -> libbpf.Object:
    """The loaded self-test program for pings with this identifier; the caller closes it."""
    loaded = open_object("selftest", topology)
    try:
        loaded.set_initial_value(".rodata.settings", struct.pack("!H", identifier))
        loaded.load()
    except KernelError:
        loaded.close()
        raise
    return loaded


def run(interface: str, peer: IPv4Address, identifier: int) -> None:
    """Ping peer until a reflected ping is answered. Raises KernelError if none is, or none may be sent; its
    errno is EHOSTUNREACH if peer answers nothing at all, so that nothing has been tested."""
    alive = False
    deadline = time.monotonic() + _PATIENCE
    with _icmp() as icmp:
        icmp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        while time.monotonic() < deadline:
            for sequence in (_ORDINARY, _PINGED):
                with suppress(OSError):  # the link may be down for a moment
                    icmp.sendto(_echo_request(identifier, sequence), (str(peer), 0))
            again = time.monotonic() + _INTERVAL
            while (left := again - time.monotonic()) > 0 and select.select([icmp], [], [], left)[0]:
                answer = _answered(icmp.recv(65535), identifier)
                if answer == _REFLECTED:
                    return
                alive = alive or answer == _ORDINARY
    if not alive:
        raise KernelError(
            f"{interface}: the self-test failed because {peer} answers no ping; is it up and reachable? "
            "`midstream attach --no-self-test` attaches without the test",
            errno=errno.EHOSTUNREACH,
        )
    raise KernelError(
        f"{interface}: the self-test failed: {peer} answers the stack, but nothing that XDP transmits. The "
        "driver swallows them; on veth, attach an XDP program to the peer end too. "
        "Attaching all the same (`midstream attach --no-self-test`) would lose every packet"
    )


def identifier() -> int:
    """An identifier for this process's pings."""
    return os.getpid() & 0xFFFF


def _icmp() -> socket.socket:
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    except PermissionError as error:
        raise KernelError(
            "the self-test may not send its pings: this process lacks CAP_NET_RAW; run as root or with that "
            "capability, or attach without the test: `midstream attach --no-self-test`",
            errno=error.errno or 0,
        ) from error


def _echo_request(identifier: int, sequence: int) -> bytes:
    head = struct.pack("!BBHHH", _ECHO_REQUEST, 0, 0, identifier, sequence)
    total = sum(struct.unpack("!4H", head))  # RFC 1071; adding the carry twice suffices for four words
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return struct.pack("!BBHHH", _ECHO_REQUEST, 0, checksum, identifier, sequence)


def _answered(packet: bytes, identifier: int) -> int | None:
    """The sequence number if this is a reply to a ping of ours. A raw socket shows the IP header too."""
    head = packet[(packet[0] & 0x0F) * 4 :][:8]
    if len(head) < 8:
        return None
    kind, _, _, found, sequence = struct.unpack("!BBHHH", head)
    return int(sequence) if kind == _ECHO_REPLY and found == identifier else None
