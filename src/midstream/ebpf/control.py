"""What the daemon tells the hardworker's program, and what it asks of its table of connections."""

import os
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np

from midstream.ebpf import libbpf, pins, records

_KEY_SIZE = 8  # struct connection_key: address, port, both in network byte order, and 2 unused bytes
_HEADER = bytes(14)  # the key is behind an Ethernet header
_SHORTEST = 64  # bytes of a frame
_PASS = 2  # enum xdp_action


@dataclass(frozen=True)
class Open:
    """An open connection. first: the sequence number of its first byte. acknowledged: what the sensor expects
    next of its peer, None before it has said so."""

    ip: IPv4Address
    port: int
    first: int
    acknowledged: int | None

    @property
    def key(self) -> bytes:
        return self.ip.packed + self.port.to_bytes(2) + bytes(2)


def read_mode(folder: Path) -> int:
    """records.MODE_FAST or MODE_HANDLER. Raises KernelError."""
    return int(_control(folder)["mode"]) & ~records.MODE_UNLINKED


def tell_unlinked(folder: Path, unlinked: bool) -> None:
    """Tell an application that may not know whether the program is on no interface. Raises KernelError."""
    mode = int(_control(folder)["mode"])
    wanted = mode | records.MODE_UNLINKED if unlinked else mode & ~records.MODE_UNLINKED
    if wanted != mode:
        set_mode(folder, wanted)


def set_mode(folder: Path, mode: int) -> None:
    """Decide where the sensors' next packets go. Raises KernelError."""
    before = _control(folder)
    value = np.array((mode, int(before["changes"]) + 1), records.CONTROL).tobytes()
    fd = pins.open_map(folder, "control", value_size=records.CONTROL.itemsize)
    try:
        libbpf.update(fd, bytes(4), value)
    finally:
        os.close(fd)


def connections(folder: Path) -> list[Open]:
    """The connections that are open now. Raises KernelError."""
    fd = pins.open_map(folder, "connections", value_size=records.CONNECTION.itemsize)
    try:
        found = {
            key: libbpf.lookup(fd, key, records.CONNECTION.itemsize)
            for key in set(libbpf.keys(fd, _KEY_SIZE))
        }
    finally:
        os.close(fd)
    opened = []
    for key, value in found.items():
        if value is not None:
            (state,) = np.frombuffer(value, records.CONNECTION)
            opened.append(
                Open(
                    IPv4Address(key[:4]),
                    int.from_bytes(key[4:6]),
                    int(state["first"]),
                    int(state["acknowledged"]) if state["established"] else None,
                )
            )
    return opened


def break_off(folder: Path, opened: list[Open]) -> int:
    """End these connections for the reader, and wake it, also if there are none. Returns how many could not
    be ended, because the ring had no room to say so. Raises KernelError."""
    fd = libbpf.get(folder / "midstream_break_off")
    try:
        left = 0
        for key in [one.key for one in opened] or [bytes(_KEY_SIZE)]:
            verdict, _, _ = libbpf.prog_test_run(fd, (_HEADER + key).ljust(_SHORTEST, b"\0"))
            left += verdict != _PASS
        return left
    finally:
        os.close(fd)


def _control(folder: Path) -> np.void:
    fd = pins.open_map(folder, "control", value_size=records.CONTROL.itemsize)
    try:
        value = libbpf.lookup(fd, bytes(4), records.CONTROL.itemsize)
    finally:
        os.close(fd)
    found: np.void = np.frombuffer(value or bytes(records.CONTROL.itemsize), records.CONTROL)[0]
    return found
