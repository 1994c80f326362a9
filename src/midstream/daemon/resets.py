"""Reset the sensors' connections at once, so that they connect anew instead of waiting for a time-out.

The numbers are those that the hardworker's program knows: a reset with exactly the next sequence number is
believed (RFC 5961, section 3.2), and a connection that is not established yet is refused by acknowledging its
SYN (RFC 9293, section 3.10.7.3).
"""

import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address

from midstream.ebpf.control import Open
from midstream.packet.headers import PROTOCOL_TCP, Flags, IPv4, Tcp


def send_resets(opened: list[Open], hardworker: IPv4Address, ports: Mapping[int, str]) -> None:
    """Reset these connections, as the hardworker. ports: each with the name of its stream."""
    marked = {stream: port for port, stream in ports.items()}
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, PROTOCOL_TCP) as sender:
        sender.bind((str(hardworker), 0))
        for one in opened:
            if port := marked.get(one.stream):
                with suppress(OSError):  # the sensor's link may be down
                    sender.sendto(segment(one, hardworker, port), (str(one.ip), 0))


def segment(one: Open, hardworker: IPv4Address, port: int) -> bytes:
    """The TCP segment that resets it."""
    numbers = (
        Tcp(port, one.port, sequence=0, acknowledgment=one.first, flags=Flags.RST | Flags.ACK, window=0)
        if one.acknowledged is None
        else Tcp(port, one.port, sequence=one.acknowledged, flags=Flags.RST, window=0)
    )
    ip = IPv4(hardworker, one.ip, IPv4.LENGTH + Tcp.LENGTH)
    return replace(numbers, checksum=numbers.computed_checksum(ip, b"")).pack()
