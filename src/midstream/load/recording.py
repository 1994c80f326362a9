"""The messages of a capture: for each flow, when each message began.

A message is what TCP was given at once: the bytes up to the end of a segment with PSH, or up to FIN. It
begins when the first of its bytes is in the capture. What is there again (sent again, captured twice, a
probe) is no message. Where a capture cannot tell the messages or their times it is refused; what it lacks
is counted.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from midstream.errors import ConfigError
from midstream.load.clocks import CaptureClocks
from midstream.load.segment import FIN, PSH, RST, SYN, CapturedSegment, find_segment
from midstream.packet import EXPECTED, Captured, read_capture

_SECOND = 1_000_000_000
_FARTHEST = 1 << 30
"""Bytes: the largest window of TCP. What is farther from what was seen belongs to another connection."""
_EARLIER = 1 << 20
"""Bytes before the first that was seen, without a SYN, that still belong to the connection."""


@dataclass(frozen=True)
class RecordedFlows:
    """`flows`: nanoseconds since 1970, ascending. `remarks`: what was left out or is missing, how often."""

    flows: Mapping[str, list[int]]
    remarks: Mapping[str, int]


def read_recording(path: Path, port: int | None) -> RecordedFlows:
    """The messages in a capture; `port`: only of flows to this TCP port. Raises ConfigError, OSError."""
    reader = _FlowReader(path, port)
    with path.open("rb") as stream:
        for number, captured in enumerate(read_capture(stream, str(path)), start=1):
            reader.take(number, captured)
    return reader.finish()


class _FlowReader:
    def __init__(self, path: Path, port: int | None) -> None:
        self._path, self._port = path, port
        self._flows: dict[tuple[bytes, bytes, bytes], _Flow] = {}
        self._clocks = CaptureClocks()
        self._remarks: Counter[str] = Counter()

    def take(self, number: int, captured: Captured) -> None:
        found = find_segment(captured)
        if found is None:
            raise self._refusal(number, f"link type {captured.link}, expected {EXPECTED}")
        segment = found if isinstance(found, CapturedSegment) else None
        if captured.time is not None and (
            moved := self._clocks.take(captured.interface, captured.time, segment)
        ):
            way = "back" if moved < 0 else "forward"
            raise self._refusal(
                number,
                f"the clock was put {way} by {abs(moved) / _SECOND:g} s, so the "
                "time between messages is not known; replay what is before it: "
                f"editcap -r {self._path} NEW 1-{number - 1}",
            )
        if isinstance(found, str):
            self._remarks[found] += 1
            return
        if found.flags & RST and (other := self._flows.get(found.back)):
            other.stream.ended = other.stream.last
        if self._port is not None and found.to_port != self._port:
            self._remarks["segments to other ports"] += bool(found.size)
            return
        if captured.time is None and found.size:
            raise self._refusal(number, "no time (a simple packet block); capture in another format")
        flow = self._flows.setdefault(found.flow, _Flow())
        self._remarks["segments that were there before"] += not flow.take(found, captured.time or 0)

    def finish(self) -> RecordedFlows:
        flows: dict[str, list[int]] = {}
        self._remarks["packets stamped before the one in front of them"] = self._clocks.back
        for (source, destination, ports), flow in self._flows.items():
            name = f"{_end(source, ports[:2])}>{_end(destination, ports[2:])}"
            flow.finish(self._remarks)
            if flow.pushes == 0 and flow.pieces > 1:
                raise ConfigError(
                    f"{self._path}: {name}: none of its {flow.pieces} segments with data has PSH, so where a "
                    "message ends is not known; choose other flows with --port, or give the times in a .csv"
                )
            if flow.times:
                flows[name] = sorted(flow.times)
        return RecordedFlows(flows, +self._remarks)

    def _refusal(self, number: int, why: str) -> ConfigError:
        return ConfigError(f"{self._path}: packet {number}: {why}")


@dataclass
class _Stream:
    """The bytes of one connection in one direction, by offset. `base`: the sequence number of offset 0."""

    base: int
    opened: bool  # its SYN is in the capture
    last: int = 0  # the largest offset so far
    ended: int | None = None  # by FIN or RST
    covered: list[tuple[int, int]] = field(default_factory=list)  # first and end, apart and ascending
    begun: list[tuple[int, int, int]] = field(default_factory=list)  # first, end, time of what is new
    ends: set[int] = field(default_factory=set)  # of messages

    @classmethod
    def at(cls, segment: CapturedSegment) -> Self:
        return cls(segment.first, bool(segment.flags & SYN))

    def offset(self, segment: CapturedSegment) -> int:
        return self.last + ((segment.first - self.base - self.last + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)

    def is_anothers(self, segment: CapturedSegment) -> bool:
        """Whether a segment is of another connection with the same addresses and ports."""
        offset = self.offset(segment)
        if segment.flags & SYN:
            return offset != 0
        if not segment.size:
            return False
        if self.ended is not None and (offset > self.ended or offset + segment.size > self.ended > offset):
            return True
        is_probe = offset == -1 and segment.size == 1
        before = 0 if self.opened or self.ended is not None else -_EARLIER
        return (offset < before and not is_probe) or abs(offset - self.last) > _FARTHEST

    def add(self, first: int, end: int, time: int) -> bool:
        """Whether there is anything new in these bytes."""
        index = stop = bisect_left(self.covered, first, key=lambda piece: piece[1])
        new, place, low, high = [], first, first, end
        while stop < len(self.covered) and self.covered[stop][0] <= end:
            there = self.covered[stop]
            if place < there[0]:
                new.append((place, there[0], time))
            place, low, high = max(place, there[1]), min(low, there[0]), max(high, there[1])
            stop += 1
        if place < end:
            new.append((place, end, time))
        self.covered[index:stop] = [(low, high)]
        self.begun += new
        self.last = max(self.last, end)
        return bool(new)


class _Flow:
    """What goes from one end to another: connections with the same addresses and ports, in turn."""

    def __init__(self) -> None:
        self.times: list[int] = []
        self.pushes = self.pieces = 0
        self._streams: list[_Stream] = []

    @property
    def stream(self) -> _Stream:
        """The connection that there is now."""
        return self._streams[-1]

    def take(self, segment: CapturedSegment, time: int) -> bool:
        """False if its data was there before."""
        if not self._streams or self.stream.is_anothers(segment):
            self._streams.append(_Stream.at(segment))
        stream, first = self.stream, self.stream.offset(segment)
        end = first + segment.size
        is_new = True
        if segment.size:
            if first == stream.ended:  # it was reset, and goes on all the same
                stream.ended = None
            is_new = (first >= 0 or not stream.opened) and stream.add(first, end, time)
            self.pushes += bool(is_new and segment.flags & PSH)
            if segment.flags & PSH:
                stream.ends.add(end)
        if segment.flags & FIN and end >= stream.last:
            stream.ends.add(end)
            stream.ended = end
        if segment.flags & RST:
            stream.ended = stream.last
        return is_new

    def finish(self, remarks: Counter[str]) -> None:
        """Find the messages of all connections."""
        for stream in self._streams:
            pieces = sorted(stream.begun)
            if len(pieces) > 1 and not stream.opened and _is_probe(pieces[0], stream.ends):
                remarks["keepalives"] += 1
                pieces = pieces[1:]
            ends = sorted(stream.ends)
            times: dict[int, int] = {}
            for first, _, time in pieces:
                message = bisect_left(ends, first + 1)
                times[message] = min(time, times.get(message, time))
            self.times += times.values()
            self.pieces += len(pieces)
            remarks["messages without their end"] += len(ends) in times
            expected = 0 if stream.opened else pieces[0][0] if pieces else 0
            for first, end in stream.covered:
                remarks["bytes that the capture does not hold"] += max(0, first - expected)
                expected = end


def _is_probe(piece: tuple[int, int, int], ends: set[int]) -> bool:
    """Whether a connection's first piece is a keepalive: a byte that was sent before (RFC 9293, 3.8.4)."""
    return piece[1] - piece[0] == 1 and piece[1] not in ends


def _end(address: bytes, port: bytes) -> str:
    host = ip_address(address)
    return f"[{host}]:{int.from_bytes(port)}" if host.version == 6 else f"{host}:{int.from_bytes(port)}"
