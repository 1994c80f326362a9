"""Sockets that hear nothing: the kernel drops every packet to them, and so acknowledges nothing more."""

import ctypes
import socket
import struct
from contextlib import suppress

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h
_NOTHING = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))  # BPF_RET, 0 bytes of a packet
_PROGRAM = struct.pack("@HP", 1, ctypes.addressof(_NOTHING))


def deafen(sock: socket.socket) -> None:
    """Drop what comes from now on. Connections that wait to be accepted are others, and hear.

    Raises PermissionError if the kernel lets only the privileged do it.
    """
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM)


def listen_again(sock: socket.socket) -> None:
    """Take back `deafen`."""
    with suppress(FileNotFoundError):  # it was not deaf
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
