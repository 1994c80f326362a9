"""The programs on a bench: loaded and not attached, fed with frames by BPF_PROG_TEST_RUN.

Each frame that a test sends is checked in every respect: the verdict, the bytes that leave (as
midstream.packet says they must be), the one counter that may move, and the records in the ring.
"""

import itertools
import os
import time
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import numpy as np
from tests.program.ring import Record, Ring

from midstream import packet
from midstream.ebpf import libbpf, records
from midstream.ebpf.hashmap import HashMap
from midstream.ebpf.objects import open_object
from midstream.ebpf.records import HERE
from midstream.network import Host, Topology
from midstream.packet import Ethernet, Flags, Packet, Tcp
from midstream.packet.path import TOS_WITHOUT_ECN

# The sensors' numbers are not in the order of their addresses, by which the programs search.
TOPOLOGY = Topology(
    sensors=(
        Host(IPv4Address("10.83.0.21"), "02:00:00:00:00:21"),
        Host(IPv4Address("10.83.0.11"), "02:00:00:00:00:11"),
        Host(IPv4Address("192.168.255.254"), "fe:ff:ff:ff:ff:fe"),
    ),
    hardworker=Host(IPv4Address("10.83.0.2"), "02:00:00:00:00:02"),
    logger=Host(IPv4Address("10.83.0.3"), "02:00:00:00:00:03"),
    tos=104,
    port=12345,
    mtu=1500,
    size=1024,
)

STANDBY = Host(IPv4Address("10.83.0.4"), "02:00:00:00:00:04")
SEVERAL = replace(TOPOLOGY, standbys=(STANDBY, Host(IPv4Address("172.16.254.1"), "fe:00:00:00:00:05")))
"""The same with further loggers."""

COMPILED = os.environ.get("MIDSTREAM_TESTS") != "own objects"
"""Are programs tested that are compiled for their topology, or those that a wheel brings?"""

XDP_DROP, XDP_PASS, XDP_TX = 1, 2, 3
UNMARKED = ""
"""The outcome of a frame that is none of ours: it passes, and no counter moves."""
NOBODY = (
    "stranger",
    "forged",
    "syn_data",
    "bad_flags",
    "bad_length",
    "oversized",
    "ip_options",
    "fragment",
)
"""What is counted where it cannot be told, or is not asked, which sensor sent it."""

CONNECTION = np.dtype(
    [
        ("lock", "<u4"),
        ("number", "<u4"),
        ("next", "<u8"),
        ("fin", "<u8"),
        ("seen", "<u8"),
        ("first", "<u4"),
        ("acknowledged", "<u4"),
        ("timestamp", "<u4"),
        ("other_first", "<u4"),
        ("sensor", "<u2"),
        ("mac", "V6"),
        ("destination", "<u4"),
        ("early_ranges", "<u2"),
        ("established", "<u2"),
        ("out_of_order", "<u8", (8, 2)),
        ("grown", "<u8", 2),
        ("asked", "<u8"),
        ("questions", "<u4"),
        ("unused", "<u4"),
        ("opened", "<u8"),
    ],
    align=True,
)
"""struct connection."""

SHARE = np.dtype([("older_end", "<u8"), ("younger", "<u8"), ("open", "<u4"), ("unused", "<u4")])
"""struct share."""

SETTINGS = records.settings(
    bytes(32), wakeup=True, check=True, ring_quota=records.NO_QUOTA, open_quota=records.NO_QUOTA
)


class Bench:
    """The hardworker's program."""

    def __init__(
        self,
        topology: Topology = TOPOLOGY,
        *,
        ring_size: int = 1 << 20,
        connections: int = 1 << 16,
        wakeup: bool = True,
        check: bool = True,
        ring_quota: int = records.NO_QUOTA,
        open_quota: int = records.NO_QUOTA,
    ) -> None:
        self.topology = topology
        self.connections = connections
        self.program = load(
            "hardworker",
            topology,
            max_entries={
                "ring": ring_size,
                "connections": connections,
                "journal": records.journal_size(connections) // 8,
                "committed": records.committed_size(connections) // 8,
            },
            settings=records.settings(
                bytes(32), wakeup=wakeup, check=check, ring_quota=ring_quota, open_quota=open_quota
            ),
        )
        self.ring = Ring(self.program.map_fd("ring"))
        self._fd = self.program.program_fd("midstream_hardworker")
        self._ports = itertools.cycle(range(1024, 65536))
        self._cpus = libbpf.possible_cpus()
        self._destination = 0

    @property
    def destination(self) -> int:
        """Where connections go that open now."""
        return self._destination

    @destination.setter
    def destination(self, destination: int) -> None:
        self._destination = destination
        libbpf.update(
            self.program.map_fd("control"), bytes(4), np.array((destination, 0), records.CONTROL).tobytes()
        )

    def ended(self) -> list[np.void]:
        """The ends of connections that nobody was told of yet."""
        fd, size = self.program.map_fd("ended"), records.ENDED.itemsize
        values = iter(lambda: libbpf.pop(fd, size), None)
        return list(np.frombuffer(b"".join(values), records.ENDED))

    def close(self) -> None:
        self.ring.close()
        self.program.close()

    def new_port(self) -> int:
        return next(self._ports)

    def run(self, frame: bytes) -> tuple[int, bytes]:
        """Verdict and frame afterwards."""
        verdict, output, _ = libbpf.prog_test_run(self._fd, frame)
        return verdict, output

    def counters(self, rows: range | None = None) -> Counter[tuple[int, str]]:
        """Outcomes so far by row (position of the sensor, or the last row for nobody) and name."""
        found: Counter[tuple[int, str]] = Counter()
        fd, width = self.program.map_fd("counters"), 8 * len(records.OUTCOMES)
        for row in rows or range(len(self.topology.sensors) + 1):
            value = libbpf.lookup(fd, row.to_bytes(4, "little"), width * self._cpus)
            assert value is not None
            sums = np.frombuffer(value, "<u8").reshape(self._cpus, -1).sum(axis=0).tolist()
            found.update({(row, name): n for name, n in zip(records.OUTCOMES, sums, strict=True) if n})
        return found

    def expect(
        self, frame: bytes, outcome: str, *stored: Record, sensor: int = 0, destination: int | None = None
    ) -> list[Record]:
        """Send a frame and check all that it brings about. Returns what was stored."""
        self.ended()
        self.expect_outcome(frame, outcome, sensor=sensor, destination=destination)
        found = self.ring.take()
        assert found == list(stored)
        for record in found:
            assert 0 <= time.monotonic_ns() - record.time < 60 * 10**9
        told = [(end["number"], end["held"]) for end in self.ended() if end["how"] == records.RESET]
        assert told == [
            (record.connection, record.offset) for record in found if record.flags == records.RESET
        ]
        return found

    def expect_outcome(
        self, frame: bytes, outcome: str, *, sensor: int = 0, destination: int | None = None
    ) -> None:
        """Send a frame and check verdict, bytes and counters, but leave the ring as it is.

        destination: of the frame's connection; otherwise where connections go now.
        """
        before = self.counters()
        verdict, output = self.run(frame)
        row = len(self.topology.sensors) if outcome in NOBODY else sensor
        assert self.counters() - before == ({(row, outcome): 1} if outcome else {})
        if outcome in records.FORWARDED:
            assert (verdict, output) == sent_on(
                frame, self.topology, self.destination if destination is None else destination
            )
            assert_valid_as_before(frame, output)
        elif outcome in records.ANSWERED:
            assert verdict == XDP_TX
            assert_resets(output, frame, self.topology)
        else:
            assert verdict == (XDP_DROP if outcome in records.DROPPED else XDP_PASS)
            assert output == frame

    def last_number(self) -> int:
        """The number of the connection that was opened last."""
        value = libbpf.lookup(self.program.map_fd("last_number"), bytes(4), 4)
        assert value is not None
        return int.from_bytes(value, "little")

    def connection(self, sensor: int, port: int) -> np.void | None:
        """The state of an open connection."""
        value = libbpf.lookup(
            self.program.map_fd("connections"), self._key(sensor, port), CONNECTION.itemsize
        )
        return None if value is None else np.frombuffer(value, CONNECTION)[0].copy()

    def set_connection(self, sensor: int, port: int, state: np.void) -> None:
        libbpf.update(self.program.map_fd("connections"), self._key(sensor, port), state.tobytes())

    def share(self, sensor: int) -> np.void:
        """What a sensor holds of what all share."""
        value = libbpf.lookup(self.program.map_fd("shares"), sensor.to_bytes(4, "little"), SHARE.itemsize)
        assert value is not None
        found: np.void = np.frombuffer(value, SHARE)[0]
        return found

    def open_connections(self) -> int:
        """How many connections are in the table."""
        return sum(1 for _ in libbpf.keys(self.program.map_fd("connections"), 8))

    def clear(self) -> None:
        """Forget everything, whatever a test has left behind: connections, ring, what its reader remembers,
        shares."""
        connections = self.program.map_fd("connections")
        for key in list(libbpf.keys(connections, 8)):
            libbpf.delete(connections, key)
        self.ring.take()
        self.ended()
        self.destination = 0
        libbpf.update(self.program.map_fd("journal"), bytes(4), bytes(8))
        HashMap(self.program.map_fd("unfinished")).clear()
        for sensor in range(len(self.topology.sensors)):
            libbpf.update(self.program.map_fd("shares"), sensor.to_bytes(4, "little"), bytes(SHARE.itemsize))

    def _key(self, sensor: int, port: int) -> bytes:
        return self.topology.sensors[sensor].ip.packed + port.to_bytes(2) + bytes(2)


class Sensor:
    """One connection as its sensor sees it. Positions are offsets in the stream; -1 is the SYN's place.

    base: the stream is as long already when it begins.
    """

    def __init__(self, bench: Bench, *, sensor: int = 0, isn: int = 1000, port: int | None = None) -> None:
        self.bench = bench
        self.sensor = sensor
        self.port = port or bench.new_port()
        self.isn = isn
        self.base = 0
        self.number = 0
        self.destination: int | None = None  # decided when it opens

    def frame(self, flags: Flags, position: int, payload: bytes = b"", **fields: Any) -> bytes:
        sequence = self.isn + 1 + self.base + position
        fields = {"peer_port": self.port, "ack": 77} | fields
        return packet.craft(self.bench.topology, self.sensor, flags, sequence, payload=payload, **fields)

    def open(self, base: int = 0) -> None:
        self.number = self.bench.last_number() + 1
        self.destination = self.bench.destination
        syn = self.frame(Flags.SYN, -1)
        self.expect(syn, "opened", self.record(0, b"", records.OPEN))
        if base:
            self.change(next=base)
            self.base = base

    def establish(self) -> None:
        """Answer the logger's answer."""
        self.expect(self.frame(Flags.ACK, 0), "pure_ack")

    @property
    def state(self) -> np.void:
        """What the program knows of the connection."""
        state = self.bench.connection(self.sensor, self.port)
        assert state is not None
        return state

    def change(self, **fields: int | bytes) -> None:
        """Put other values into what the program knows."""
        state = self.state
        for name, value in fields.items():
            state[name] = value
        self.bench.set_connection(self.sensor, self.port, state)

    def store(self, position: int, payload: bytes, **fields: Any) -> None:
        """Send data that must be stored."""
        frame = self.frame(Flags.ACK, position, payload, **fields)
        self.expect(frame, "stored", self.record(position, payload))

    def refused(self, frame: bytes, outcome: str) -> None:
        """Send a frame that must change nothing."""
        before = self.state
        self.expect(frame, outcome)
        assert self.state == before

    def record(self, position: int, payload: bytes, flags: int = 0) -> Record:
        return Record(self.base + position, payload, flags, self.sensor, self.port, self.number)

    def expect(self, frame: bytes, outcome: str, *stored: Record) -> list[Record]:
        return self.bench.expect(frame, outcome, *stored, sensor=self.sensor, destination=self.destination)


def load(
    name: str,
    topology: Topology,
    *,
    max_entries: dict[str, int] | None = None,
    settings: bytes = SETTINGS,
    compiled: bool = COMPILED,
) -> libbpf.Object:
    """Load a program as the loader does, but pin and attach nothing."""
    program = open_object(name, topology, compiled=compiled)
    sizes = {}
    if name == "hardworker":
        sensors = len(topology.sensors)
        sizes = {"shares": sensors, "beginnings": sensors, "counters": sensors + 1}
    try:
        for map_name, entries in (sizes | (max_entries or {})).items():
            program.set_max_entries(map_name, entries)
        program.set_initial_value(".rodata.settings", settings)
        program.load()
    except BaseException:
        program.close()
        raise
    return program


def sent_on(frame: bytes, topology: Topology, destination: int) -> tuple[int, bytes]:
    """Verdict and frame of what goes to a destination."""
    if destination == HERE:
        return XDP_PASS, frame
    return XDP_TX, packet.rewrite(frame, replace(topology, logger=topology.loggers[destination]))


def assert_resets(answer: bytes, frame: bytes, topology: Topology) -> None:
    """It is the reset that a TCP answers with which knows no such connection (RFC 9293, section 3.10.7.1)."""
    asked = Packet.parse(frame)
    expected = replace(
        asked,
        ethernet=Ethernet(asked.ethernet.source, topology.hardworker.mac_bytes),
        ip=replace(
            asked.ip,
            source=topology.hardworker.ip,
            destination=asked.ip.source,
            tos=asked.ip.tos & TOS_WITHOUT_ECN,
            length=asked.ip.LENGTH + Tcp.LENGTH,
        ),
        tcp=Tcp(
            source_port=topology.port,
            destination_port=asked.tcp.source_port,
            sequence=asked.tcp.acknowledgment,
            flags=Flags.RST,
            window=0,
        ),
        payload=b"",
        trailer=b"",
    ).with_checksums()
    assert answer[: len(expected.pack())] == expected.pack()  # what follows is padding


def assert_valid_as_before(before: bytes, after: bytes) -> None:
    """The checksums, computed from scratch, are right after a rewriting if they were before."""
    old, new = Packet.parse(before), Packet.parse(after)
    assert new.ip.is_intact == old.ip.is_intact
    assert new.tcp.is_intact(new.ip, new.payload) == old.tcp.is_intact(old.ip, old.payload)
