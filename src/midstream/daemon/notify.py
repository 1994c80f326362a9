"""What systemd wants to know of a service (sd_notify(3)); without systemd nothing happens."""

import os
import socket
from contextlib import suppress


def notify(*lines: str) -> None:
    """Tell the service manager: "READY=1", "STATUS=…", "WATCHDOG=1", "STOPPING=1"."""
    if not (address := os.environ.get("NOTIFY_SOCKET")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
        sender.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        sender.send("\n".join(lines).encode())
