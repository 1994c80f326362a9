"""Unfinished messages that are larger than the journal, or than the ring itself."""

import mmap
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from tests.support.fake_ring import FakeRing, RingSource, Segment
from tests.support.hosts import configure, topology

from midstream.config import Config, HardworkerSection
from midstream.ebpf.records import FIN, KEPT_BYTES, KEPT_HEAD, LARGEST_RECORD, OPEN
from midstream.errors import KernelError
from midstream.framing import Framing, encode
from midstream.hardworker import Hardworker
from midstream.hardworker.pinned import patience
from midstream.hardworker.spill import Spill, Unfinished

SEGMENT = 500


class Full(dict[bytes, bytes]):
    """A map that has room for so many entries, as the kernel's E2BIG and ENOMEM say."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def __setitem__(self, key: bytes, value: bytes) -> None:
        if len(self) == self.room:
            raise KernelError("a map cannot be written: Argument list too long", errno=7)
        super().__setitem__(key, value)


def messages(framing: Framing, size: int) -> list[bytes]:
    """More than one, of which each is several times as large as the ring."""
    random = Random(size)
    lengths = [size] * 3 if framing == "fixed" else [size, 0, 7, size // 2]
    return [random.randbytes(length).replace(b"\n", b"n") for length in lengths]


@pytest.mark.parametrize("every", [1, 3, 1000], ids=["a kill every look", "some kills", "no kill"])
@pytest.mark.parametrize("behind_a_hole", [False, True], ids=["in order", "behind a hole"])
@pytest.mark.parametrize("framing", ["fixed", "length", "line"])
def test_messages_larger_than_ring_and_journal(
    tmp_path: Path, framing: Framing, every: int, behind_a_hole: bool
) -> None:
    size = 20_000
    sent = messages(framing, size)
    data = b"".join(encode(framing, payload, size=size, max_size=1 << 20) for payload in sent)
    segments = [Segment(1, 0, 4, at, 7, 0, data[at : at + SEGMENT]) for at in range(0, len(data), SEGMENT)]
    if behind_a_hole:  # of every five the first comes last
        fives = [segments[at : at + 5] for at in range(0, len(segments), 5)]
        segments = [segment for first, *others in fives for segment in (*others, first)]
    stream = [Segment(1, 0, 4, 0, 7, OPEN, b""), *segments, Segment(1, 0, 4, len(data), 7, FIN, b"")]
    ring = FakeRing(4096, patience=300)
    config = configure(tmp_path, size=size, framing=framing)
    received: dict[int, bytes] = {}
    looks = done = 0
    hardworker = Hardworker(config, source=RingSource(ring)).__enter__()
    while stream or hardworker.connections:
        while stream and ring.put(stream[0]) is not None:
            del stream[0]
        looks += 1
        for message in hardworker.messages():
            assert received.setdefault(message.sequence, message.payload) == message.payload
            assert message.sequence in (done, done - 1)  # the last one again, after a kill
            done = message.sequence + 1
        hardworker.commit()
        if looks % every == 0:
            hardworker.close()  # as a kill does: nothing is committed
            hardworker = Hardworker(config, source=RingSource(ring)).__enter__()
    assert list(received.items()) == list(enumerate(sent))
    assert (hardworker.totals.broken, hardworker.totals.skipped) == (0, 0)
    hardworker.commit()
    hardworker.close()
    assert not ring.unfinished
    assert ring.producer > 8 * ring.size


def test_the_largest_entry_has_the_size_of_struct_kept() -> None:
    memory: dict[bytes, bytes] = {}
    Spill(memory).keep(0, (1, 0, bytes(KEPT_BYTES)))
    assert [len(value) for value in memory.values()] == [KEPT_HEAD + KEPT_BYTES]


def test_bytes_come_back_in_the_order_in_which_they_were_kept() -> None:
    memory: dict[bytes, bytes] = {}
    data = Random(1).randbytes(3 * KEPT_BYTES + 1)
    spill = Spill(memory)
    for number in range(300):
        spill.keep(number, (2, number, bytes([number % 256])))
    spill.keep(400, (1, 1000, data))
    found = Spill(memory).load({1: (0, 400), 2: (0, 400)})[::-1]
    assert found[:300] == [(2, number, bytes([number % 256])) for number in range(300)]
    assert b"".join(piece for _, _, piece in found[300:]) == data
    assert [offset for _, offset, _ in found[300:]] == [1000 + n * KEPT_BYTES for n in range(4)]


@pytest.mark.parametrize(
    ("committed", "left"),
    [
        pytest.param({}, 0, id="nothing was ever committed"),
        pytest.param({1: (0, 10)}, 1, id="written at the commit"),
        pytest.param({1: (0, 9)}, 0, id="written, and killed before the commit"),
        pytest.param({1: (102, 20)}, 1, id="the last byte is needed"),
        pytest.param({1: (103, 20)}, 0, id="its message is whole"),
        pytest.param({2: (0, 20)}, 0, id="its connection has ended"),
    ],
)
def test_what_is_not_needed_is_removed(committed: Unfinished, left: int) -> None:
    memory: dict[bytes, bytes] = {}
    Spill(memory).keep(10, (1, 100, b"abc"))
    assert len(Spill(memory).load(committed)) == len(memory) == left


def test_an_entry_written_by_a_later_life_takes_no_other_place() -> None:
    memory: dict[bytes, bytes] = {}
    Spill(memory).keep(10, (1, 0, b"abc"))
    second = Spill(memory)
    second.load({1: (0, 10)})
    second.keep(20, (1, 3, b"def"))
    assert Spill(memory).load({1: (0, 20)}) == [(1, 3, b"def"), (1, 0, b"abc")]


def test_no_room_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    """And what was committed before is still there."""
    memory = Full(2)
    spill = Spill(memory)
    spill.keep(1, (1, 0, bytes(2 * KEPT_BYTES)))
    with pytest.raises(KernelError, match=r"nothing is lost.*free memory.*shorter messages"):
        spill.keep(2, (1, 2 * KEPT_BYTES, b"x"))
    spill.forget({})
    assert not memory


def test_an_application_that_commits_only_after_messages_gets_large_ones(tmp_path: Path) -> None:
    """Before the first is whole there is nothing to act upon; the ring must not fill up meanwhile."""
    sent = [bytes([number]) * 10_000 for number in range(5)]
    data = b"".join(encode("length", payload, size=0, max_size=1 << 20) for payload in sent)
    stream = [Segment(1, 0, 4, at, 7, 0, data[at : at + SEGMENT]) for at in range(0, len(data), SEGMENT)]
    ring = FakeRing(4096, patience=300)
    ring.put(Segment(1, 0, 4, 0, 7, OPEN, b""))
    received = []
    config = configure(tmp_path, framing="length")
    with Hardworker(config, source=RingSource(ring), autocommit=False) as hardworker:
        while stream:
            while stream and ring.put(stream[0]) is not None:
                del stream[0]
            for message in hardworker.messages():
                received.append(message.payload)
                assert hardworker.commit()
            hardworker.wait(0.001)
            assert ring.producer - ring.consumer <= ring.patience
    assert received == sent


def test_what_was_not_committed_is_not_given_back(tmp_path: Path) -> None:
    ring = FakeRing(4096)
    ring.put(Segment(1, 0, 4, 0, 7, OPEN, b""))
    ring.put(Segment(1, 0, 4, 0, 7, 0, encode("length", b"a", size=0, max_size=9) * 2))
    with Hardworker(
        configure(tmp_path, framing="length"), source=RingSource(ring), autocommit=False
    ) as hardworker:
        messages = hardworker.messages()
        next(messages)
        assert hardworker.commit()  # of the first of two, in the same record
        next(messages)
        assert list(messages) == []
        hardworker.wait(0.001)
        assert list(hardworker.messages()) == []
        again = RingSource(ring)
        with Hardworker(configure(tmp_path, framing="length"), source=again) as second:
            assert [message.sequence for message in second.messages()] == [1]
        assert ring.consumer == ring.producer


def test_a_large_message_stays_in_the_ring_as_long_as_there_is_room(tmp_path: Path) -> None:
    ring = FakeRing(8192, patience=4000)
    ring.put(Segment(1, 0, 4, 0, 7, OPEN, b""))
    source, opened = RingSource(ring), ring.producer
    with Hardworker(configure(tmp_path, framing="length"), source=source) as hardworker:
        for number in range(10):
            ring.put(Segment(1, 0, 4, number * SEGMENT, 7, 0, b"\0\0\x99\x99".ljust(SEGMENT, b"x")))
            assert list(hardworker.messages()) == []
            hardworker.wait(0)
            assert bool(ring.unfinished) == (ring.producer - opened > 4000)
            assert (ring.consumer == opened) != bool(ring.unfinished)
            if ring.unfinished:
                return
    pytest.fail("it was never copied")


@pytest.mark.parametrize("sensors", [1, 20])
@pytest.mark.parametrize("quota", [0.001, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("ring_size", [mmap.PAGESIZE, 65536, 4 << 20])
def test_no_sensor_is_refused_while_a_large_message_is_waited_for(
    sensors: int, quota: float, ring_size: int
) -> None:
    hosts = topology()
    hosts = replace(hosts, sensors=hosts.sensors[:sensors])
    config = Config(hardworker=HardworkerSection(ring_size=ring_size, quota=quota))
    room = ring_size if sensors == 1 else ring_size * quota / 2
    most = patience(config, hosts)
    assert 0 <= most <= ring_size / 2
    assert most == 0 or most + LARGEST_RECORD <= room
