"""What systemd wants to know of a service (sd_notify(3)); without systemd nothing happens."""

import os
import socket
from contextlib import suppress


def is_supervised() -> bool:
    """Has a service manager started this process, and does it listen?"""
    return "NOTIFY_SOCKET" in os.environ


def notify(*lines: str) -> None:
    """Tell the service manager: "READY=1", "STATUS=…", "WATCHDOG=1", "STOPPING=1". Each becomes one line."""
    if not (address := os.environ.get("NOTIFY_SOCKET")):
        return
    # One that does not listen keeps nobody waiting.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender, suppress(OSError):
        sender.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        sender.send("\n".join(line.replace("\n", " ") for line in lines).encode())
