"""The ring's reader, and a Hardworker on it: whatever the records, each message once and in order."""

import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.examples import examples
from tests.support.fake_ring import (
    CONNECTIONS,
    HEADER,
    FakeRing,
    RingSource,
    Segment,
    as_record,
    blocks,
    opens,
)
from tests.support.hosts import SENSORS, configure

from midstream.config import load
from midstream.ebpf.records import FIN, JOURNAL_HEAD, OPEN, RECORD, RESET, journal_copy_size
from midstream.framing import Framing, encode
from midstream.hardworker import Hardworker, Message, Totals, batch_dtype
from midstream.hardworker.ring import Ring

SIZE = 24
MAX_SIZE = 1 << 12


def segment(
    connection: int, offset: int, data: bytes, *, flags: int = 0, sensor: int = 0, time: int = 1
) -> Segment:
    return Segment(connection, sensor, 40000 + connection, offset, time, flags, data)


def regular(reader: Ring) -> np.ndarray:
    """What has arrived and lies in the ring as it is to be given."""
    position = reader._reader.position
    reader.look()
    return reader._messages(position, reader._reader.regular(), batch_dtype(reader._reader.size))


def rest(reader: Ring) -> list[tuple[int, bytes]]:
    """What comes behind it, up to the last look, by offset."""
    rows = reader.rows()
    return [(int(row["offset"]), bytes(row["payload"])) for row in rows]


@pytest.fixture
def ring() -> FakeRing:
    return FakeRing()


def opened(ring: FakeRing, *connections: int, size: int = SIZE) -> Ring:
    """A reader that has seen these connections open."""
    reader = ring.reader(size)
    opens(ring, *connections)
    reader.look()
    assert not len(reader.rows())
    reader.commit()
    return reader


def whole(ring: FakeRing, connection: int, number: int) -> bytes:
    """Store a connection's message `number`; returns its payload."""
    payload = bytes([connection, number % 256]) * (SIZE // 2)
    assert ring.put(segment(connection, number * SIZE, payload)) is not None
    return payload


def test_a_message_says_what_its_record_says() -> None:
    ring = FakeRing()
    reader = ring.reader(7, "fixed")
    ring.put(Segment(2**32 - 1, 2, 65535, 0, 1, OPEN, b""))
    ring.put(Segment(2**32 - 1, 2, 65535, 0, 2**63 + 7, FIN, b"payload"), capacity=64)
    reader.look()
    assert reader.message() == Message(SENSORS[2], 2**32 - 1, 0, 2**63 + 7, b"payload")
    assert reader.message() is None
    assert reader.standing.totals == Totals(1, 7, 1, 1, 0, 0, 0)


def test_whole_messages_are_a_view_of_the_ring_that_cannot_be_written(ring: FakeRing) -> None:
    reader = opened(ring, 1, 2, 3)
    payloads = [whole(ring, 1 + number % 3, number // 3) for number in range(12)]
    batch = regular(reader)
    assert batch.dtype == batch_dtype(SIZE)
    assert [bytes(row["payload"]) for row in batch] == payloads
    assert batch["connection"].tolist() == [1, 2, 3] * 4
    assert batch["offset"].tolist() == [number // 3 * SIZE for number in range(12)]
    assert np.shares_memory(batch, ring.data)
    assert not batch.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        batch["payload"][:] = 0
    assert not rest(reader)


@pytest.mark.parametrize("size", [1, 8, 63, 64, 65, 1000])
def test_messages_of_any_size_lie_at_equal_distances(size: int) -> None:
    ring = FakeRing(8192)
    reader, sent = opened(ring, 1, size=size), 0
    for _ in range(50):
        payloads = []
        while ring.put(segment(1, sent * size, payload := random.Random(sent).randbytes(size))) is not None:
            payloads.append(payload)
            sent += 1
        batch = regular(reader)
        assert [bytes(row["payload"]) for row in batch] == payloads
        reader.commit()
    assert ring.producer > 30 * ring.size


@pytest.mark.parametrize(
    ("irregular", "given"),
    [
        pytest.param(segment(1, SIZE, b"x" * SIZE, flags=FIN), [(SIZE, b"x" * SIZE)], id="end of stream"),
        pytest.param(segment(1, SIZE, b"x" * (SIZE - 1)), [], id="part of a message"),
        pytest.param(segment(1, 2 * SIZE, b"x" * SIZE), [], id="behind a hole"),
        pytest.param(segment(1, 0, b"x" * SIZE), [], id="known"),
        pytest.param(segment(1, SIZE + 1, b"x" * SIZE), [], id="between two messages"),
        pytest.param(segment(9, 0, b"x" * SIZE), [], id="connection that is not open"),
        pytest.param(segment(9, 0, b"", flags=OPEN), [], id="a new connection"),
    ],
)
def test_a_run_ends_at_what_is_no_whole_next_message(
    ring: FakeRing, irregular: Segment, given: list[tuple[int, bytes]]
) -> None:
    reader = opened(ring, 1, 2)
    whole(ring, 1, 0)
    ring.put(irregular)
    payload = whole(ring, 2, 0)
    assert len(regular(reader)) == 1
    assert len(regular(reader)) == 0
    assert rest(reader) == [*given, (0, payload)]


def test_a_record_with_more_room_than_a_message_is_no_part_of_a_run(ring: FakeRing) -> None:
    reader = opened(ring, 1)
    ring.put(segment(1, 0, b"x" * SIZE), capacity=128)
    assert len(regular(reader)) == 0
    assert rest(reader) == [(0, b"x" * SIZE)]


def test_discarded_records_are_passed_over_and_busy_ones_waited_for(ring: FakeRing) -> None:
    reader = opened(ring, 1)
    length = RECORD.itemsize + blocks(SIZE)
    dropped, busy = ring.reserve(length), ring.reserve(length)
    assert dropped is not None and busy is not None
    ring.commit(dropped, discard=True)
    ring.fill(busy, as_record(segment(1, 0, b"b" * SIZE)))
    behind = ring.reserve(length)
    assert behind is not None
    ring.commit(behind, discard=True)
    whole(ring, 1, 1)
    assert len(regular(reader)) == 0
    assert not rest(reader)
    reader.commit()
    assert ring.consumer == busy
    ring.commit(busy)
    assert len(regular(reader)) == 1
    assert [offset for offset, _ in rest(reader)] == [SIZE]
    reader.commit()
    assert ring.consumer == ring.producer


def test_a_run_goes_through_the_end_of_the_ring_without_a_copy() -> None:
    ring = FakeRing(4096, start=4096 - 140 + 4)  # a record lies across the end
    reader = opened(ring, 1)
    payloads = [whole(ring, 1, number) for number in range(38)]
    batch = regular(reader)
    assert [bytes(row["payload"]) for row in batch] == payloads
    assert np.shares_memory(batch, ring.data)


def test_the_whole_ring_in_one_batch() -> None:
    ring = FakeRing(4096, start=1 << 20)
    reader = opened(ring, 1)
    stride = HEADER + RECORD.itemsize + blocks(SIZE)
    count = (ring.size - 1) // stride
    for number in range(count):
        whole(ring, 1, number)
    assert ring.put(segment(1, count * SIZE, bytes(SIZE))) is None
    assert reader.standing.fill == count * stride / ring.size
    assert len(regular(reader)) == count


def test_positions_and_offsets_beyond_4_gib() -> None:
    """The offsets are those of a journal in which the last reader came so far."""
    ring = FakeRing(4096, start=(1 << 40) + 4096 - 8)
    base = 3 << 33
    opened(ring, 1)
    rows = [ring.memory()[2][8 + copy * journal_copy_size(CONNECTIONS) :] for copy in (0, 1)]
    for row in rows:
        row[JOURNAL_HEAD + 8 :][:8].view("<u8")[0] = base * SIZE  # `next` of struct open
    reader = ring.reader(SIZE)
    for number in range(base, base + 100):
        whole(ring, 1, number)
        assert regular(reader)["offset"].tolist() == [number * SIZE]
        reader.commit()
        assert ring.consumer == ring.producer
    assert ring.consumer > 1 << 40


def test_reading_resumes_where_the_last_reader_committed(ring: FakeRing) -> None:
    reader = opened(ring, 1)
    for number in range(4):
        whole(ring, 1, number)
    reader.look()
    for _ in range(3):
        reader.message()
    reader.commit()
    assert regular(ring.reader(SIZE))["offset"].tolist() == [3 * SIZE]


# A Hardworker and a random history of records.


class IdleError(Exception):
    """Raised instead of waiting."""


class Impatient(Hardworker):
    """Iterating ends when everything that has arrived is taken."""

    def wait(self, timeout: float | None = None) -> bool:
        raise IdleError

    def __iter__(self) -> Iterator[Message]:
        yield from self.messages()
        raise IdleError


@dataclass
class Connection:
    """A sensor's stream, and what of it the program has stored."""

    number: int
    sensor: int
    stream: bytes
    frames: list[tuple[int, bytes]]  # each message's last offset plus one, and its payload
    claimed: bytearray = field(init=False)  # by records in the ring, busy ones included
    visible: bytearray = field(init=False)  # by records that the reader can see
    end: int | None = None
    visible_end: int | None = None
    over: bool = False  # nothing more is stored
    state: str = "unseen"  # for the reader: unseen, open, finished, reset

    def __post_init__(self) -> None:
        self.claimed, self.visible = bytearray(len(self.stream)), bytearray(len(self.stream))

    @property
    def next(self) -> int:
        return first_zero(self.claimed)

    def messages(self) -> list[bytes]:
        delivered = first_zero(self.visible)
        return [payload for end, payload in self.frames if end <= delivered]


def first_zero(mask: bytearray) -> int:
    found = mask.find(0)
    return len(mask) if found < 0 else found


def make_connection(number: int, kind: Framing, size: int) -> Connection:
    source = random.Random(number)
    frames, stream = [], b""
    for _ in range(120):
        length = size if kind == "fixed" else source.randrange(2 * size)
        payload = source.randbytes(length).replace(b"\n", b"n")
        stream += encode(kind, payload, size=size, max_size=MAX_SIZE)
        frames.append((len(stream), payload))
    return Connection(number, source.randrange(3), stream, frames)


class History:
    """Writes what the program could write, and compares what the Hardworker makes of it with an account."""

    def __init__(self, folder: Path, kind: Framing, size: int, step: int, patience: int) -> None:
        self.kind, self.size, self.step = kind, size, step
        self.ring = FakeRing(8192, (1 << 32) - 8192 * 2, patience)
        self.config = load(configure(folder, size=size, framing=kind, max_size=MAX_SIZE))
        self.hardworker = self.start()
        self.connections: list[Connection] = []
        self.written: list[tuple[int, Connection, Segment | None]] = []  # position; None: discarded
        self.busy: int | None = None  # the position of the record that is not yet submitted
        self.received: dict[int, list[bytes]] = {}
        self.committed: dict[int, int] = {}  # messages of a connection that a new reader must not see
        self.crashed = False
        self.reads = 0

    def start(self) -> Hardworker:
        source = RingSource(self.ring)
        self.reader = source._reader
        return Impatient(self.config, source=source).__enter__()

    def crash(self) -> None:
        """Kill the reader and start another. It sees again what was not committed, and nothing else."""
        os.close(self.hardworker._reader.waiting._stop)  # as the kernel does for a process
        self.hardworker = self.start()
        self.crashed = True
        for number, received in self.received.items():
            del received[self.committed.get(number, 0) :]

    def write(self, connection: Connection, segment: Segment, fate: int) -> None:
        """Store a record; fate: 0 discarded, 1 busy for a while, otherwise submitted at once."""
        length = len(segment.data)
        capacity = 0 if segment.flags & (OPEN | RESET) else blocks(length if length == self.size else 512)
        position = self.ring.reserve(RECORD.itemsize + capacity)
        if position is None:  # an honest sensor sends it again
            self.submit()
            self.read()
            self.read()
            position = self.ring.reserve(RECORD.itemsize + capacity)
        assert position is not None
        self.ring.fill(position, as_record(segment))
        self.written.append((position, connection, segment if fate else None))
        if fate == 1 and self.busy is None:
            self.busy = position
        else:
            self.ring.commit(position, discard=not fate)
        if fate:
            start, end = segment.offset, segment.offset + length
            connection.claimed[start:end] = b"\1" * length
            if segment.flags & FIN:
                connection.end = end
            connection.over |= bool(segment.flags & RESET) or connection.next == connection.end

    def store(
        self, connection: Connection, start: int, length: int, *, flags: int = 0, fate: int = 2
    ) -> None:
        """Store a segment. Where an earlier record has its bytes already, they differ from the true ones, but
        for those that it brings in order while they wait behind the hole."""
        end = min(start + length, len(connection.stream))
        if connection.end is not None:
            end = min(end, connection.end)
        if start >= end and not flags:
            return
        claimed, following = connection.claimed, connection.next
        in_order = following if start <= following else end
        data = bytes(
            connection.stream[at] ^ 0x5A * (claimed[at] and at < in_order) for at in range(start, end)
        )
        port = 40000 + connection.number
        self.write(
            connection, Segment(connection.number, connection.sensor, port, start, 7, flags, data), fate
        )

    def submit(self) -> None:
        if self.busy is not None:
            self.ring.commit(self.busy)
            self.busy = None

    def open(self) -> Connection:
        number = len(self.connections) + 1
        connection = make_connection(number, self.kind, self.size)
        self.connections.append(connection)
        self.store(connection, 0, 0, flags=OPEN)
        return connection

    def act(self, kind: str, which: int, a: int, b: int, fate: int) -> None:
        alive = [connection for connection in self.connections if not connection.over]
        if kind == "open" or not alive:
            if len(self.connections) < 12:
                self.open()
            return
        connection = alive[which % len(alive)]
        here, length = connection.next, 1 + a % self.step
        last = connection.claimed.rfind(1) + 1  # behind everything stored
        if kind == "run":
            for turn in range(8 + a % 8):
                other = alive[turn % len(alive)]
                if not other.over:
                    self.store(other, other.next, self.size)
        elif kind == "next":
            self.store(connection, here, length, fate=fate)
        elif kind == "early":
            self.store(connection, here + 1 + b % (2 * self.step), length, fate=fate)
        elif kind == "again":
            self.store(connection, max(0, here - b % (2 * self.step)), length + self.step, fate=fate)
        elif kind == "fill":
            self.store(connection, here, 2 * self.step, fate=fate)
        elif kind == "fin":
            end = connection.end
            if end is None:
                end = min(len(connection.stream), last + b % (4 * self.step))
            start = end if a % 2 else max(here, end - length)
            self.store(connection, start, end - start, flags=FIN, fate=fate)
        elif kind == "reset" and fate:
            self.store(connection, here, 0, flags=RESET)
        elif kind == "submit":
            self.submit()
        elif kind == "read":
            self.read()
        elif kind == "crash":
            self.crash()

    def read(self) -> None:
        """Read, and compare everything received so far with everything that can be seen so far."""
        while self.written and self.written[0][0] != self.busy:
            _, connection, seen = self.written.pop(0)
            if seen is None:
                continue
            connection.visible[seen.offset : seen.offset + len(seen.data)] = b"\1" * len(seen.data)
            if seen.flags & OPEN:
                connection.state = "open"
            if seen.flags & FIN:
                connection.visible_end = seen.offset + len(seen.data)
            if seen.flags & RESET:
                connection.state = "reset"
            elif first_zero(connection.visible) == connection.visible_end:
                connection.state = "finished"
        self.committed = {number: len(received) for number, received in self.received.items()}
        for number, sensor, sequence, payload in self.take():
            received = self.received.setdefault(number, [])
            assert sequence == len(received)
            assert sensor == self.connections[number - 1].sensor
            received.append(payload)
        for connection in self.connections:
            assert self.received.get(connection.number, []) == connection.messages()
        states = [connection.state for connection in self.connections]
        assert self.hardworker.connections == states.count("open")
        if self.crashed:  # the totals are those of one process
            return
        totals = self.hardworker.totals
        assert totals.opened == len(states) - states.count("unseen")
        assert (totals.finished, totals.reset) == (states.count("finished"), states.count("reset"))
        payloads = [payload for received in self.received.values() for payload in received]
        assert (totals.messages, totals.bytes) == (len(payloads), sum(map(len, payloads)))

    def take(self) -> Iterator[tuple[int, int, int, bytes]]:
        self.reads += 1
        if self.kind == "fixed" and self.reads % 2:
            for row in self.hardworker.read():
                assert (row["length"], row["flags"], row["time"]) == (self.size, 0, 7)
                assert row["port"] == 40000 + row["connection"]
                sequence, rest = divmod(int(row["offset"]), self.size)
                assert not rest
                yield int(row["connection"]), int(row["sensor"]), sequence, bytes(row["payload"])
            return
        try:
            for message in self.hardworker:
                assert message.time == 7
                yield message.connection, SENSORS.index(message.sensor), message.sequence, message.payload
        except IdleError:
            pass


KINDS = [
    "open",
    "run",
    "run",
    "next",
    "early",
    "again",
    "fill",
    "fin",
    "reset",
    "submit",
    "read",
    "read",
    "crash",
]
actions = st.lists(
    st.tuples(
        st.sampled_from(KINDS), st.integers(0, 7), st.integers(0, 999), st.integers(0, 999), st.integers(0, 5)
    ),
    min_size=10,
    max_size=80,
)


@pytest.mark.parametrize(
    ("kind", "size", "step"),
    [("fixed", SIZE, SIZE), ("fixed", 64, 100), ("fixed", 5, 200), ("length", 30, 80), ("line", 30, 80)],
)
@settings(max_examples=examples(25))
@given(actions=actions, patience=st.sampled_from([0, 500, 4000]))
@example(
    actions=[("open", 0, 0, 0, 2), ("fin", 0, 1, 2 * SIZE, 2), ("run", 0, 0, 0, 2)], patience=4000
)  # the end comes early
@example(actions=[*[("open", 0, 0, 0, 0)] * 8, *[("run", 0, 0, 0, 0)] * 9, ("next", 0, 0, 0, 0)], patience=0)
def test_any_history_gives_each_message_once_and_in_order(
    kind: Framing, size: int, step: int, actions: list[tuple[str, int, int, int, int]], patience: int
) -> None:
    with TemporaryDirectory() as folder:
        history = History(Path(folder), kind, size, step, patience)
        history.open()
        for action in actions:
            history.act(*action)
        history.submit()
        for connection in history.connections:  # fill every hole
            while not connection.over and connection.next < (connection.end or 0):
                history.store(connection, connection.next, 2 * step)
        history.read()
        history.crash()
        history.read()
        history.read()
        held = history.ring.producer - history.ring.consumer
        assert held <= patience
        assert not held or history.reader.unfinished()
        history.hardworker.close()
        history.ring.close()


@pytest.mark.slow
def test_the_ring_wraps_many_times_while_another_thread_writes(tmp_path: Path) -> None:
    count, ring = 20_000, FakeRing(4096)

    def store() -> None:
        numbers = [0, 0, 0]
        for connection in (1, 2, 3):
            ring.put(segment(connection, 0, b"", flags=OPEN))
        source = random.Random(1)
        while sum(numbers) < count:
            which = source.randrange(3)
            payload = numbers[which].to_bytes(SIZE, "little")
            if ring.put(segment(which + 1, numbers[which] * SIZE, payload)) is not None:
                numbers[which] += 1

    writer = threading.Thread(target=store)
    received: dict[int, list[int]] = {1: [], 2: [], 3: []}
    with Hardworker(configure(tmp_path), source=RingSource(ring)) as hardworker:
        writer.start()
        while sum(map(len, received.values())) < count:
            assert hardworker.wait(10)
            for row in hardworker.read():
                received[int(row["connection"])].append(int.from_bytes(row["payload"].tobytes(), "little"))
        writer.join()
    assert all(numbers == list(range(len(numbers))) for numbers in received.values())
    assert ring.producer > 300 * ring.size
