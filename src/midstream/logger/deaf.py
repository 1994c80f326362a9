"""Sockets that hear nothing: the kernel drops every packet to them, and so acknowledges nothing more.

A filter does it. Where a kernel lets only the privileged attach one, a TTL does that no packet has which
passed its sender's default (64, 128): of these two only a sender that begins with 255 is still heard.
"""

import ctypes
import socket
import struct
from contextlib import suppress

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h
_IP_MINTTL, _HIGHEST = 21, 255  # linux/in.h
_NOTHING = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))  # BPF_RET, 0 bytes of a packet
_PROGRAM = struct.pack("@HP", 1, ctypes.addressof(_NOTHING))


def deafen(sock: socket.socket) -> None:
    """Drop what comes from now on. Connections that wait to be accepted are others, and hear."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM)
    except PermissionError:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, _HIGHEST)


def listen_again(sock: socket.socket) -> None:
    """Take back `deafen`."""
    sock.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, 0)
    with suppress(FileNotFoundError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
