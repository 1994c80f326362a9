"""Frames on a real interface: send them and watch them through an AF_PACKET socket (packet(7)).

A frame that an XDP program sends on (XDP_TX) never reaches a packet socket of that host: what the hardworker
relays is seen at the sensor, at the logger and on the switch, and not at the hardworker.
"""

import ctypes
import errno
import os
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Literal

from midstream.closing import Closing
from midstream.errors import KernelError, MidstreamError, NetworkError

# linux/if_ether.h and linux/if_packet.h; Python's socket module does not have them.
_ETH_P_ALL = 0x0003
_SOL_PACKET = 263
_PACKET_AUXDATA = 8
_TP_STATUS_CSUMNOTREADY = 1 << 3
_TP_STATUS_VLAN_VALID = 1 << 4
_TP_STATUS_VLAN_TPID_VALID = 1 << 6
_AUXDATA = struct.Struct(
    "=IIIHHHH"
)  # status, length, captured, MAC offset, network offset, VLAN tag, VLAN type
_LARGEST_FRAME = 1 << 18
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter


@dataclass(frozen=True, slots=True)
class Sighting:
    """A frame seen on an interface.

    `time` is time.time_ns() when it was read. `checksum_pending`: the frame was caught before its sender's
    network card, real or virtual, filled in the TCP checksum (checksum offload); a wrong one means nothing.
    """

    frame: bytes
    time: int
    direction: Literal["in", "out"]
    checksum_pending: bool


class Listener(Closing):
    """Every frame that enters or leaves an interface, or those that a filter accepts.

    filter: a classic BPF program (linux/filter.h), an instruction each as code, two jumps and a value. On a
    busy interface it keeps the socket's buffer free for the frames that are waited for.

    Raises KernelError without CAP_NET_RAW and NetworkError if the interface is missing or goes down.
    """

    def __init__(self, interface: str, filter: Sequence[tuple[int, int, int, int]] = ()) -> None:
        self.interface = interface
        self._socket = _open(interface, _ETH_P_ALL)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        if filter:
            program = b"".join(_INSTRUCTION.pack(*instruction) for instruction in filter)
            buffer = ctypes.create_string_buffer(program)
            self._socket.setsockopt(
                socket.SOL_SOCKET,
                _SO_ATTACH_FILTER,
                struct.pack("HP", len(filter), ctypes.addressof(buffer)),
            )

    def next(self, timeout: float | None = None) -> Sighting | None:
        """The next frame; None if none came within `timeout` seconds."""
        self._socket.settimeout(timeout)
        try:
            frame, ancillary, _, address = self._socket.recvmsg(
                _LARGEST_FRAME, socket.CMSG_SPACE(_AUXDATA.size)
            )
        except (TimeoutError, BlockingIOError):
            return None
        except OSError as error:
            raise _explained(error, self.interface) from error
        status = 0
        for level, kind, data in ancillary:
            if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
                status, _, _, _, _, vlan, vlan_type = _AUXDATA.unpack_from(data)
                if status & _TP_STATUS_VLAN_VALID:
                    # The kernel takes the VLAN tag out of the frame; put it back where it was on the wire.
                    ethertype = vlan_type if status & _TP_STATUS_VLAN_TPID_VALID else 0x8100
                    frame = frame[:12] + struct.pack("!HH", ethertype, vlan) + frame[12:]
        return Sighting(
            frame=frame,
            time=time.time_ns(),
            direction="out" if address[2] == socket.PACKET_OUTGOING else "in",
            checksum_pending=bool(status & _TP_STATUS_CSUMNOTREADY),
        )

    def send(self, frame: bytes) -> None:
        """As `send` does, through the same socket: many frames are sent sooner. It does not hear itself."""
        _transmit(self._socket, self.interface, frame)

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()


def send(interface: str, frame: bytes) -> None:
    """Send `frame` on `interface` exactly as it is.

    Raises KernelError without CAP_NET_RAW and NetworkError if the interface is missing, down or too narrow.
    """
    with _open(interface, 0) as raw:
        _transmit(raw, interface, frame)


def _transmit(raw: socket.socket, interface: str, frame: bytes) -> None:
    try:
        raw.send(frame)
    except OSError as error:
        if error.errno == errno.EMSGSIZE:
            raise NetworkError(
                f"{interface}: a frame of {len(frame)} bytes exceeds the interface's MTU; "
                f"send less data or raise it with: ip link set dev {quote(interface)} mtu BYTES"
            ) from error
        raise _explained(error, interface) from error


def _open(interface: str, protocol: int) -> socket.socket:
    """A packet socket bound to `interface`; protocol 0 receives nothing."""
    if not hasattr(socket, "AF_PACKET"):
        raise KernelError(
            f"{interface}: raw packets need Linux; 'packet show' and 'packet check' work here too"
        )
    try:
        # Without a protocol until it is bound: otherwise it would receive from every interface for a moment.
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except OSError as error:
        raise _explained(error, interface) from error
    try:
        raw.bind((interface, protocol))
    except OSError as error:
        raw.close()
        raise _explained(error, interface) from error
    return raw


def _explained(error: OSError, interface: str) -> MidstreamError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return KernelError(
            f"{interface}: raw packets need the capability CAP_NET_RAW; run as root, "
            f"or grant it with: setcap cap_net_raw+ep {os.path.realpath(sys.executable)}"
        )
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return NetworkError(f"{interface}: no such network interface; 'ip link' lists those of this host")
    if error.errno == errno.ENETDOWN:
        return NetworkError(
            f"{interface}: the interface is down; raise it with: ip link set dev {quote(interface)} up"
        )
    return NetworkError(f"{interface}: {error.strerror}")
