"""Several streams, each with a ring in memory, and the files of a Hardworker that reads them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support import hosts
from tests.support.fake_ring import FakeRing, RingSource, Segment

from midstream import network
from midstream.config import Config, FieldSection
from midstream.ebpf.records import OPEN
from midstream.errors import KernelError
from midstream.framing import encode
from midstream.hardworker import sources
from midstream.hardworker.watch import Watch
from midstream.network import SensorStream, Topology

IMU, GPS, LIDAR = "imu", "gps", "lidar"
SIZE, LONGEST = 24, 4000
FIELDS = (FieldSection(name="seq", type="u64"), FieldSection(name="gyro", type="f32", count=3))
STREAMS = (
    SensorStream(IMU, 12345, "fixed", SIZE, 1000.0, FIELDS),
    SensorStream(GPS, 12348, "line", 100),
    SensorStream(LIDAR, 12349, "length", LONGEST, 10.0),
)


def write_files(
    folder: Path,
    told: dict[str, str] | None = None,
    settings: str = "",
    streams: tuple[SensorStream, ...] = STREAMS,
    head: str = "",
) -> Path:
    """const.toml with these streams, and a config.toml that says more of some, by name; its path. head,
    settings: what else it says, in front of its tables and behind them."""
    topology = replace(hosts.topology(), port=streams[0].port, size=streams[0].size, streams=streams)
    network.write(folder / "const.toml", topology, "a test")
    tables = "".join(
        f'[[stream]]\nname = "{stream.name}"\nframing = "{stream.framing}"\n{(told or {})[stream.name]}\n'
        for stream in streams
        if stream.name in (told or {})
    )
    path = folder / "config.toml"
    path.write_text(f"{head}\n{tables}\n{settings}\n")
    return path


def encoded(stream: str, number: int) -> bytes:
    """Message `number` of a stream, in its frame."""
    payload = content(stream, number)
    framing = next(each.framing for each in STREAMS if each.name == stream)
    return encode(framing, payload, size=SIZE, max_size=LONGEST)


def content(stream: str, number: int) -> bytes:
    """Message `number` of a stream: of its own kind and length."""
    if stream == IMU:
        return number.to_bytes(SIZE, "little")
    return f"{stream} {number}".encode() * (1 + number % 5)


class RingSite:
    """What was opened, and the rings by their streams. `held`: as a watch sees each ring; None: unwatched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rings = {stream.name: FakeRing(1 << 16) for stream in STREAMS}
        self.ends = dict.fromkeys(self.rings, 0)  # of what was put, by stream
        self.numbers = dict.fromkeys(self.rings, 0)  # of messages that were put
        self.opened: list[str] = []
        self.reading: dict[str, RingSource] = {}
        self.held: dict[str, Any] = {}
        monkeypatch.setattr(sources, "open_ring", self.open_ring)

    def open_ring(self, config: Config, topology: Topology) -> RingSource:
        """As the pins do: one reader at a time."""
        name = config.stream_name
        assert topology.port == {stream.name: stream.port for stream in STREAMS}[name]
        if name in self.reading and not self.reading[name].closed:
            raise KernelError("another application reads this ring already")
        self.opened.append(name)
        looker: Any = Watch(self.held[name]) if name in self.held else None
        found = self.reading[name] = RingSource(self.rings[name], looker)
        return found

    def kill(self) -> None:
        """The reader is gone, and has closed nothing."""
        self.reading.clear()

    def begin(self, *names: str) -> None:
        """A connection of each, whose number is that of its stream; by default of all."""
        for name in names or self.rings:
            self._put(name, b"", OPEN)

    def put(self, name: str, count: int = 1, piece: int = 0, moment: int = 5) -> None:
        """The next messages, in segments of `piece` bytes; 0: each in one. moment: at which they came."""
        for _ in range(count):
            data = encoded(name, self.numbers[name])
            self.numbers[name] += 1
            for start in range(0, len(data), piece or len(data)):
                self._put(name, data[start : start + (piece or len(data))], moment=moment)

    def _put(self, name: str, data: bytes, flags: int = 0, moment: int = 5) -> None:
        number = list(self.rings).index(name) + 1
        segment = Segment(number, 0, 40000, self.ends[name], moment, flags, data)
        assert self.rings[name].put(segment) is not None
        self.ends[name] += len(data)
