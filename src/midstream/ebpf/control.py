"""What the hardworker's program is told while it works, and what it tells of its connections."""

import mmap
import os
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import islice
from pathlib import Path

import numpy as np

from midstream.config import DATA
from midstream.ebpf import libbpf, pins, records

_KEY_SIZE = 8  # struct connection_key: address, port, both in network byte order, and 2 unused bytes
_HEADER = bytes(14)  # the key is behind an Ethernet header
_SHORTEST = 64  # bytes of a frame
_PASS = 2  # enum xdp_action


@dataclass(frozen=True)
class Open:
    """An open connection. first: the sequence number of its first byte. acknowledged: what the sensor expects
    next of its peer, None before it has said so. next: so many bytes are held. sensor: its position in
    const.toml. destination: a logger's, or records.HERE. opened_ns, seen_ns: when its SYN came and when the
    sensor last sent something that fits, by CLOCK_MONOTONIC. stream: the name of its stream."""

    ip: IPv4Address
    port: int
    first: int
    acknowledged: int | None
    next: int
    number: int
    sensor: int
    destination: int
    opened_ns: int
    seen_ns: int
    stream: str = DATA

    @property
    def key(self) -> bytes:
        return self.ip.packed + self.port.to_bytes(2) + bytes(2)


@dataclass(frozen=True)
class Ended:
    """A connection that has ended, the rest as of Open. held: so many bytes in all. reset: without its stream
    being complete."""

    ip: IPv4Address
    port: int
    first: int
    held: int
    number: int
    sensor: int
    destination: int
    opened_ns: int
    reset: bool
    stream: str = DATA


def read_destination(folder: Path) -> int:
    """Where connections go that open now: a position in const.toml's loggers, or records.HERE. Raises
    KernelError."""
    return int(_control(folder)["destination"][0])


def set_destination(folder: Path, destination: int) -> None:
    """Decide where connections go that open from now on; the others go on as they are. Raises KernelError."""
    _control(folder)["destination"][0] = destination


def tell_unlinked(folder: Path, unlinked: bool) -> None:
    """Tell an application that may not know whether the program is on no interface. Raises KernelError."""
    _control(folder)["unlinked"][0] = unlinked


def connections(folder: Path) -> list[Open]:
    """The connections of all streams that are open now. Raises KernelError."""
    return [one for name, place in pins.stream_folders(folder).items() for one in _connections(place, name)]


def ended(folder: Path) -> list[Ended]:
    """The connections of all streams that have ended since this was asked last, of each stream the oldest
    first; of more than 4096 the latest. Raises KernelError."""
    return [one for name, place in pins.stream_folders(folder).items() for one in _ended(place, name)]


def break_off(folder: Path, opened: list[Open]) -> list[Open]:
    """End these connections for the reader. Returns those that could not be ended, because the ring of their
    stream had no room to say so. Raises KernelError."""
    places = pins.stream_folders(folder)
    refused = []
    for stream in {one.stream for one in opened} & places.keys():
        fd = libbpf.get(places[stream] / "midstream_break_off")
        try:
            for one in opened:
                if one.stream == stream:
                    frame = (_HEADER + one.key).ljust(_SHORTEST, b"\0")
                    if libbpf.prog_test_run(fd, frame)[0] != _PASS:
                        refused.append(one)
        finally:
            os.close(fd)
    return refused


def _connections(folder: Path, stream: str) -> list[Open]:
    fd = pins.open_map(folder, "connections", value_size=records.CONNECTION.itemsize)
    try:
        found = {
            key: value
            for key in set(libbpf.keys(fd, _KEY_SIZE))
            if (value := libbpf.lookup(fd, key, records.CONNECTION.itemsize))
        }
    finally:
        os.close(fd)
    states = np.frombuffer(b"".join(found.values()), records.CONNECTION)
    names = (
        "next",
        "number",
        "sensor",
        "destination",
        "opened",
        "seen",
        "first",
        "acknowledged",
        "established",
    )
    return [
        Open(
            IPv4Address(key[:4]),
            int.from_bytes(key[4:6]),
            first,
            acknowledged if established else None,
            *(*state, stream),
        )
        for key, *state, first, acknowledged, established in zip(
            found, *(states[name].tolist() for name in names), strict=True
        )
    ]


def _ended(folder: Path, stream: str) -> list[Ended]:
    fd = pins.open_map(folder, "ended", value_size=records.ENDED.itemsize)
    try:
        most = libbpf.map_info(fd).max_entries
        values = list(islice(iter(lambda: libbpf.pop(fd, records.ENDED.itemsize), None), most))
    finally:
        os.close(fd)
    return [
        Ended(
            IPv4Address(one["ip"].tobytes()),
            int(one["port"]),
            first=int(one["first"]),
            held=int(one["held"]),
            number=int(one["number"]),
            sensor=int(one["sensor"]),
            destination=int(one["destination"]),
            opened_ns=int(one["opened"]),
            reset=int(one["how"]) == records.RESET,
            stream=stream,
        )
        for one in np.frombuffer(b"".join(values), records.ENDED)
    ]


def _control(folder: Path) -> np.ndarray:
    """The words themselves: who writes one does not touch the other, which another process may write."""
    fd = pins.open_map(folder, "control", value_size=records.CONTROL.itemsize)
    try:
        return np.frombuffer(mmap.mmap(fd, mmap.PAGESIZE), records.CONTROL, 1)
    finally:
        os.close(fd)
