"""config.toml and const.toml of hosts on the loopback network."""

import socket
from ipaddress import IPv4Address
from pathlib import Path

from midstream.framing import Framing
from midstream.network import Host, Topology, write

HARDWORKER, LOGGER, STRANGER = "127.0.0.2", "127.0.0.3", "127.0.0.4"
SENSORS = tuple(f"127.0.0.{number}" for number in range(11, 31))


def configure(
    folder: Path,
    *,
    size: int = 24,
    framing: Framing = "fixed",
    max_size: int = 1 << 20,
    period: float = 0.0,
    receiver: str = "ebpf",
    port: int = 12345,
    deadline: float = 0.0,
) -> Path:
    """Write both files; returns the path of config.toml."""
    write(folder / "const.toml", topology(size=size, port=port), "a test")
    path = folder / "config.toml"
    path.write_text(
        f'[data]\nframing = "{framing}"\nmax_size = {max_size}\ndeadline = {deadline}\n'
        f'[hardworker]\nreceiver = "{receiver}"\nperiod = {period}\n'
    )
    return path


def topology(*, size: int = 24, port: int = 12345) -> Topology:
    hardworker, logger, *sensors = (
        Host(IPv4Address(ip), f"02:00:00:00:00:{int(ip.split('.')[3]):02x}")
        for ip in (HARDWORKER, LOGGER, *SENSORS)
    )
    return Topology(tuple(sensors), hardworker, logger, tos=104, port=port, mtu=1500, size=size)


def free_port() -> int:
    """A port that is free on every loopback address just now."""
    with socket.create_server(("", 0)) as probe:
        return int(probe.getsockname()[1])
