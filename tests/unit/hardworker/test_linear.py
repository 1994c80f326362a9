"""What the reader does is linear in what arrives, in however small pieces and whatever order."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.support.fake_ring import FakeRing, Segment, opens
from tests.support.reader import Site

from midstream.daemon.reassembly import Stream
from midstream.framing import Framing, decoder
from midstream.hardworker.recording import Recording, recorded_dtype

TIMES = 8.0
"""So much longer may four times the work take: linear is 4, quadratic is 16."""
FRAMINGS: tuple[Framing, ...] = ("fixed", "length", "line")


def forwards(count: int) -> list[int]:
    return list(range(1, count))


def backwards(count: int) -> list[int]:
    return list(range(count - 1, 0, -1))


def outwards(count: int) -> list[int]:
    """From the middle, in turn to both sides."""
    middle = count // 2
    return [middle + (step + 1) // 2 * (1 if step % 2 else -1) for step in range(count - 1)]


def joining(count: int) -> list[int]:
    """Eight runs, each forwards and one byte short of the next; then the bytes between them."""
    size = count // 8
    runs = [run * size + byte for byte in range(1, size) for run in range(8)]
    return runs + [run * size for run in range(1, 8)]


ORDERS = (forwards, backwards, outwards, joining)


def fill(order: Callable[[int], list[int]], count: int) -> None:
    """One-byte segments behind a hole; then the byte that fills the hole."""
    stream = Stream()
    offsets = order(count)
    for offset in offsets:
        assert stream.push(offset, b"x") == b""
    assert stream.push(0, b"x") == b"x" * (len(offsets) + 1)
    assert not stream.has_early


def read(order: Callable[[int], list[int]], count: int, patience: int, every: int) -> None:
    """The same by the application's reader, which commits after so many segments."""
    offsets = order(count)
    ring = FakeRing(1 << (128 * count).bit_length(), patience=patience)
    opens(ring, 1)
    reader = ring.reader(len(offsets) + 1)
    for number, offset in enumerate([*offsets, 0]):
        assert ring.put(Segment(1, 0, 1, offset, 1, 0, b"x")) is not None
        if number % every == every - 1 or not offset:
            reader.look()
            rows = reader.rows()
            assert reader.commit()
    assert rows["payload"].tobytes() == b"x" * (len(offsets) + 1)
    assert not ring.unfinished


@pytest.mark.parametrize("order", ORDERS)
def test_bytes_behind_a_hole(order: Callable[[int], list[int]]) -> None:
    assert_linear(lambda count: fill(order, count), 1_000)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("every", [1, 1 << 30])
def test_bytes_behind_a_hole_in_the_ring(order: Callable[[int], list[int]], every: int) -> None:
    assert_linear(lambda count: read(order, count, 1 << 30, every), 500)


@pytest.mark.parametrize("order", ORDERS)
def test_bytes_behind_a_hole_that_are_kept_elsewhere(order: Callable[[int], list[int]]) -> None:
    assert_linear(lambda count: read(order, count, 1000, 1), 500)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_half_a_million_segments_behind_a_hole(order: Callable[[int], list[int]]) -> None:
    began = time.process_time()
    fill(order, 500_000)
    assert time.process_time() - began < 60


def test_a_message_that_is_kept_in_many_pieces() -> None:
    """And put together again by the next reader."""

    def run(count: int) -> None:
        ring = FakeRing(1 << 12, patience=0)
        opens(ring, 1)
        reader = ring.reader(count + 1)
        for offset in range(count):
            ring.put(Segment(1, 0, 1, offset, 1, 0, b"x"))
            reader.look()
            assert not len(reader.rows())
            assert reader.commit()
        assert len(ring.unfinished) == count
        ring.put(Segment(1, 0, 1, count, 1, 0, b"x"))
        successor = ring.reader(count + 1)
        successor.look()
        assert successor.rows()["payload"].tobytes() == b"x" * (count + 1)
        assert successor.commit()
        assert not ring.unfinished

    assert_linear(run, 500)


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_stream_in_single_bytes(framing: Framing) -> None:
    """Long messages, then many short ones at once."""
    short = {"fixed": b"x" * 8, "length": b"\0\0\0\1x", "line": b"x\n"}[framing]

    def run(count: int) -> None:
        frames = decoder(framing, size=count if framing == "fixed" else 8, max_size=count)
        head = count.to_bytes(4, "big") if framing == "length" else b""
        for byte in head + b"x" * (count - 1):
            assert frames.feed(bytes([byte])) == []
        frames = decoder(framing, size=8, max_size=8)
        assert len(frames.feed(short * count)) == count

    assert_linear(run, 5_000)


def test_a_record_of_many_connections(tmp_path: Path) -> None:
    """`--record FILE --resume` looks at how far each of them came."""
    hardworker = Site(tmp_path).hardworker()

    def run(count: int) -> None:
        rows = np.zeros(count, recorded_dtype(hardworker.message_size))
        rows["message"]["connection"] = np.arange(count)
        path = tmp_path / str(count)
        path.write_bytes(rows.tobytes())
        with Recording(path, hardworker, resume=True):
            pass

    assert_linear(run, 1_000)


def assert_linear(run: Callable[[int], object], count: int) -> None:
    """Once more if it is not: the machine may have been busy with something else."""
    for _ in range(3):
        one, four = seconds(run, count), seconds(run, 4 * count)
        if four < TIMES * one:
            return
    pytest.fail(f"{4 * count} took {four:.3f} s, {count} only {one:.3f} s, three times in a row")


def seconds(run: Callable[[int], object], count: int) -> float:
    """Of processor time."""
    began = time.process_time()
    run(count)
    return time.process_time() - began
