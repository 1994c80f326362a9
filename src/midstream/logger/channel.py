"""What holder and worker say to each other: JSON objects over a Unix socket that keeps their boundaries.

The holder to the worker

 opened       has an earlier worker opened the database? The first of all messages; with it comes a file that
              says what the worker needs to know of the configuration: `written`
 connections  those that are handed over, each with its socket: who it is, how far it was consumed, and
              whether a worker had it before
 discarded    how many entries of `consume` were carried out
 stop         end: no connection will follow

The worker to the holder

 ready        it has opened its database
 failed       it gives up: the class of the error and its text
 consume      [number, offset, sequence, head] of connections: what is stored may leave the kernel
 close        numbers of connections whose end is stored
 count        what to add to the summary
 crashed      a fault of its own, in a line
 waiting      why nothing can be stored just now; "" when it goes on
"""

import json
import os
import socket
from array import array
from collections.abc import Sequence
from typing import IO, Any

MAX_BYTES = 1 << 16  # of a message
MAX_SOCKETS = 64  # with a message; the kernel takes 253 (unix(7))
MAX_ENTRIES = 500  # of a list in a message

Message = dict[str, Any]


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class CutOffError(Exception):
    """Descriptors came and had no room in this process."""


def written(message: Message) -> IO[bytes]:
    """A file in memory that says it, however long it is. `read` reads it, in any process that is given it."""
    file = os.fdopen(os.memfd_create("settings", os.MFD_CLOEXEC), "wb")
    file.write(json.dumps(message).encode())
    file.flush()
    return file


def read(descriptor: int) -> Message:
    """What such a file says, which is closed then."""
    try:
        message: Message = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
    finally:
        os.close(descriptor)
    return message


def send(channel: socket.socket, message: Message, sockets: Sequence[socket.socket | IO[bytes]] = ()) -> None:
    """Raises BlockingIOError if a non-blocking channel is full, BrokenPipeError if nobody listens."""
    data = json.dumps(message).encode()
    ancillary = []
    if sockets:
        descriptors = array("i", [each.fileno() for each in sockets])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
    channel.sendmsg([data], ancillary)


def receive(channel: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and the descriptors that came with it; None if the other end is gone.

    Raises CutOffError if not all of the descriptors have come: none is left open then.
    """
    size = array("i").itemsize * MAX_SOCKETS
    try:
        data, ancillary, flags, _ = channel.recvmsg(MAX_BYTES, socket.CMSG_SPACE(size))
    except ConnectionResetError:
        return None
    if not data:
        return None
    descriptors = array("i")
    for _, _, content in ancillary:
        descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    if flags & socket.MSG_CTRUNC:
        for descriptor in descriptors:
            os.close(descriptor)
        raise CutOffError(
            "too few descriptors for the connections that were handed over; raise its limit (LimitNOFILE=)"
        )
    message: Message = json.loads(data)
    return message, list(descriptors)
