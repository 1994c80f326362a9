"""The reference: what an honest stream delivers, in plain Python, and an application to compare it with.

A `Stream` is one connection whose bytes are known beforehand. Whatever frames a test sends, of the sensor or
of somebody else, it watches three things: what the program put into the ring, what went on to the stream's
destination, and what the application was given. Nothing here knows how the program decides.
"""

import os
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

from tests.program.bench import XDP_DROP, XDP_PASS, Bench, Sensor
from tests.program.ring import Record

from midstream import network, packet
from midstream.ebpf import records, ring_server
from midstream.errors import ConfigError
from midstream.hardworker import Hardworker
from midstream.hardworker.ring import Ring
from midstream.packet import Flags, Packet


class Fate(Enum):
    """What became of a frame."""

    SENT_ON = auto()
    """To a destination."""
    ANSWERED = auto()
    """With a reset, or a question."""
    DROPPED = auto()
    PASSED = auto()
    """To the stack, as all that is none of ours."""


@dataclass
class Stream:
    """The honest bytes of a connection, and what has become of them. Offsets count from 0."""

    sensor: Sensor
    data: bytes
    ack: int  # the acknowledgement number of what the sensor sends
    destination: int  # of all that goes on
    held: dict[int, int] = field(default_factory=dict)  # offset: the byte that was stored first
    passed: set[int] = field(default_factory=set)  # offsets that went there, intact
    next: int = 0  # everything before it is held
    sent: int = 0  # as far as the sensor has sent for the first time
    ended: bool = False  # its end has been stored
    open: bool = True

    @property
    def number(self) -> int:
        return self.sensor.number

    @property
    def complete(self) -> bool:
        return self.ended and self.next == len(self.data)

    def frame(
        self, flags: Flags, start: int, payload: bytes = b"", *, ack: int | None = None, **fields: Any
    ) -> bytes:
        return self.sensor.frame(flags, start, payload, ack=self.ack if ack is None else ack, **fields)

    def segment(self, start: int, length: int, **fields: Any) -> bytes:
        """Some of its bytes, as the sensor sends them."""
        return self.frame(Flags.ACK, start, self.data[start : start + length], **fields)

    def store(self, record: Record) -> None:
        """A record of this connection has come into the ring. What is new of it must be honest."""
        for offset, value in enumerate(record.payload, start=record.offset):
            if offset not in self.held:
                assert value == self.data[offset], f"byte {offset} of connection {self.number} is not its own"
                self.held[offset] = value
        while self.next in self.held:
            self.next += 1
        if record.flags & records.FIN:
            assert record.offset + len(record.payload) == len(self.data)
            self.ended = True
        if record.flags & records.RESET or self.complete:
            self.open = False

    def leave(self, frame: bytes, intact: bool) -> None:
        """A frame has gone on: every byte of it is held (invariant 1)."""
        segment = Packet.parse(frame)
        start = (segment.tcp.sequence - self.sensor.isn - 1 - self.next + 2**31) % 2**32 - 2**31 + self.next
        for offset in range(start, start + len(segment.payload)):
            assert offset < 0 or offset in self.held, f"byte {offset} went on, and is not held"
            if intact:
                self.passed.add(offset)


PATIENCE = 500
"""Bytes of the ring that unfinished messages may hold: many are copied out of it."""


def source(bench: Bench, retain: int = 0) -> Ring:
    """The ring of a loaded program, and what its reader remembers."""
    maps = ("ring", "journal", "unfinished", "committed", "control", "beginnings")
    ring, journal, unfinished, committed, control, beginnings = (
        os.dup(bench.program.map_fd(name)) for name in maps
    )
    no_lock = os.open(os.devnull, os.O_RDONLY)
    size, sensors, place = bench.ring.size, len(bench.topology.sensors), Path(os.devnull)
    held = ring_server.RingDescriptors(
        ring, journal, unfinished, committed, control, beginnings, no_lock, size, sensors, place
    )
    return Ring.map(held, bench.connections, PATIENCE, retain)


class Application:
    """A program that acts on messages, commits, and may be killed in between.

    What it did after its last commit is undone by a kill, as in a database whose transaction is lost.
    """

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.committed: dict[int, list[bytes]] = {}
        self._bench = bench
        self._config = folder / "config.toml"
        if not self._config.exists():
            network.write(folder / "const.toml", bench.topology, written_by="a test")
            self._config.write_text('[network]\npins = "/sys/fs/bpf/midstream-test"\n')
        self._start()

    def _start(self) -> None:
        self._acted = {number: list(messages) for number, messages in self.committed.items()}
        self.hardworker = Hardworker(self._config, source=source(self._bench), autocommit=False)
        self.hardworker.__enter__()

    def read(self) -> None:
        """Act on all that has arrived."""
        for message in self.hardworker.messages():
            messages = self._acted.setdefault(message.connection, [])
            assert message.sequence == len(messages), "a message is missing, or comes twice"
            messages.append(message.payload)

    def commit(self) -> None:
        if self.hardworker.commit():
            self.committed = {number: list(messages) for number, messages in self._acted.items()}

    def kill(self) -> None:
        """And start anew."""
        self.hardworker.close()
        self._start()

    def received(self, number: int) -> bytes:
        """What it got of a connection."""
        return b"".join(self._acted.get(number, []))

    def close(self) -> None:
        self.hardworker.close()


class Leg:
    """Brings frames to the program, and compares what happens to every stream.

    strangers: others open connections too, and what becomes of those does not matter.
    """

    def __init__(self, bench: Bench, *, strangers: bool = False) -> None:
        self.bench = bench
        self._strangers = strangers
        self.streams: dict[int, Stream] = {}
        self._seen = bench.ring.produced

    def add(self, stream: Stream) -> None:
        self.streams[stream.number] = stream

    def send(self, frame: bytes, stream: Stream | None = None) -> Fate:
        """What became of it. stream: the one that the frame belongs to."""
        known = stream is not None and stream.open
        verdict, output = self.bench.run(frame)
        self._look()
        fate, destination = self._fate(frame, verdict, output)
        if fate is Fate.SENT_ON and stream is not None:
            stream.leave(frame, is_intact(output))
            if known or stream.complete:
                assert destination == stream.destination, "it went to another host"
        return fate

    def _fate(self, frame: bytes, verdict: int, output: bytes) -> tuple[Fate, int | None]:
        """And its destination, where it has one."""
        topology = self.bench.topology
        if verdict == XDP_DROP:
            return Fate.DROPPED, None
        if verdict == XDP_PASS:
            assert output == frame, "the stack must see what the sensor sent"
            ours = packet.judge(frame, topology).action == "relay"
            return (Fate.SENT_ON, records.HERE) if ours else (Fate.PASSED, None)
        loggers = [host.ip for host in topology.loggers]
        ip = Packet.parse(output).ip.destination
        return (Fate.SENT_ON, loggers.index(ip)) if ip in loggers else (Fate.ANSWERED, None)

    def _look(self) -> None:
        found, self._seen = self.bench.ring.peek(self._seen)
        for record in found:
            if record.connection in self.streams:
                self.streams[record.connection].store(record)
            else:
                assert self._strangers or record.flags == records.OPEN, "a record of no stream"


def is_intact(frame: bytes) -> bool:
    """Does its destination accept it?"""
    try:
        parsed = Packet.parse(frame)
    except ConfigError:
        return False
    return parsed.ip.is_intact and parsed.tcp.is_intact(parsed.ip, parsed.payload)
