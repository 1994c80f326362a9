"""Segments to messages: each connection's bytes put in order, then cut as the framing says."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from midstream.config import DataSection
from midstream.ebpf.records import FIN, OPEN, RESET
from midstream.errors import FramingError
from midstream.framing import Decoder, decoder
from midstream.hardworker.journal import Snapshot
from midstream.hardworker.messages import Message, batch_dtype
from midstream.hardworker.source import Segment
from midstream.hardworker.streams import Stream, Streams
from midstream.network import Topology

Batch = TypeVar("Batch", np.ndarray, list[Message])


@dataclass
class Totals:
    """What a Hardworker has received since it was opened.

    skipped: bytes of messages that never came whole, or that follow a fault or a reset. broken: connections
    given up because their bytes do not follow the framing.
    """

    messages: int = 0
    bytes: int = 0
    opened: int = 0
    finished: int = 0
    reset: int = 0
    broken: int = 0
    skipped: int = 0


class Assembly:
    """The open connections and their unfinished messages, and what has become of them all.

    topology(): what const.toml says now.
    """

    def __init__(self, data: DataSection, size: int, topology: Callable[[], Topology]) -> None:
        self.streams = Streams()
        self._totals = Totals()
        self._topology = topology
        self._sensors = _addresses(topology())
        self._size = size
        self._nothing = np.empty(0, batch_dtype(size))
        self._decoder: Callable[[], Decoder | None] = (
            (lambda: None)
            if data.framing == "fixed"
            else partial(decoder, data.framing, size=size, max_size=data.max_size)
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from where an earlier reader committed."""
        self._count(self.streams.delivered, self.streams.delivered * self._size)
        self.streams = Streams.restore(snapshot.table, snapshot.pending, snapshot.kept, self._decoder)

    def abandon(self) -> None:
        """The ring is gone: no open connection gets any further, and sensors may have other numbers."""
        for number in self.streams.table["connection"][: self.streams.count].tolist():
            if (stream := self.streams.checkout(number)) is not None:
                self._close(number, stream, reset=True)
        self._sensors = _addresses(self._topology())

    def rows(self, segment: Segment) -> np.ndarray:
        """Take a segment; the messages of fixed size that are now whole, as rows of `batch_dtype`."""
        return self._take(segment, self._split_fixed, self._nothing)

    def messages(self, segment: Segment) -> list[Message]:
        """Take a segment; the messages of any size that are now whole."""
        return self._take(segment, self._split, [])

    def sensor(self, number: int) -> str:
        """The address of a sensor, also of one that was found after this application was started."""
        if number >= len(self._sensors):
            self._sensors = _addresses(self._topology())
        return self._sensors[number]

    @property
    def totals(self) -> Totals:
        """As of now."""
        totals, delivered = self._totals, self.streams.delivered
        return replace(
            totals,
            messages=totals.messages + delivered,
            bytes=totals.bytes + delivered * self._size,
        )

    def _count(self, messages: int, size: int) -> None:
        """So many messages, of so many bytes together, are delivered."""
        self._totals.messages += messages
        self._totals.bytes += size

    def _take(
        self, segment: Segment, split: Callable[[Stream, Segment, bytes], Batch], nothing: Batch
    ) -> Batch:
        number = segment.connection
        if segment.flags & OPEN:
            self._totals.opened += 1
            self.streams.open(number, Stream(decoder=self._decoder()))
            return nothing
        stream = self.streams.checkout(number)
        if stream is None:  # behind a reset
            self._totals.skipped += len(segment.data)
            return nothing
        messages = split(stream, segment, stream.push(segment.offset, segment.data))
        if segment.flags & FIN:
            stream.end = segment.offset + len(segment.data)
        if segment.flags & RESET or stream.finished:
            self._close(number, stream, reset=bool(segment.flags & RESET))
        else:
            self.streams.checkin(number, stream)
        return messages

    def _close(self, number: int, stream: Stream, *, reset: bool) -> None:
        self.streams.close(number)
        self._totals.reset += reset
        self._totals.finished += not reset
        self._totals.skipped += stream.decoder.pending if stream.decoder else len(stream.carry)

    def _split_fixed(self, stream: Stream, segment: Segment, data: bytes) -> np.ndarray:
        stream.carry += data
        whole = len(stream.carry) - len(stream.carry) % self._size
        if not whole:
            return self._nothing
        start = stream.start
        rows = np.zeros(whole // self._size, batch_dtype(self._size))
        rows["sensor"] = segment.sensor
        rows["port"] = segment.port
        rows["connection"] = segment.connection
        rows["length"] = self._size
        rows["offset"] = np.arange(start, start + whole, self._size)
        rows["time"] = segment.time
        rows["payload"] = np.frombuffer(bytes(stream.carry[:whole]), np.uint8).reshape(-1, self._size)
        del stream.carry[:whole]
        self._count(len(rows), whole)
        return rows

    def _split(self, stream: Stream, segment: Segment, data: bytes) -> list[Message]:
        if stream.decoder is None or stream.broken:
            self._totals.skipped += len(data)
            return []
        try:
            payloads = stream.decoder.feed(data)
        except FramingError:
            payloads = []
        stream.broken = stream.decoder.error is not None
        self._totals.broken += stream.broken
        messages = []
        for payload in payloads:
            sensor = self.sensor(segment.sensor)
            messages.append(Message(sensor, segment.connection, stream.sequence, segment.time, payload))
            stream.sequence += 1
        self._count(len(messages), sum(map(len, payloads)))
        return messages


def _addresses(topology: Topology) -> list[str]:
    return [str(host.ip) for host in topology.sensors]
