"""What the reader does is linear in what arrives, in however small pieces and whatever order."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.support.reader import Site

from midstream.framing import Framing, decoder
from midstream.hardworker.early import PIECE
from midstream.hardworker.journal import Snapshot
from midstream.hardworker.recording import Recording, recorded_dtype
from midstream.hardworker.spill import Spill
from midstream.hardworker.streams import Stream, Streams

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


def fill(order: Callable[[int], list[int]], count: int, commit: Callable[[Streams], object]) -> None:
    """One-byte segments behind a hole, a commit after each; then the byte that fills the hole."""
    streams, stream = Streams(), Stream()
    streams.open(1, stream)
    offsets = order(count)
    for offset in offsets:
        assert stream.push(offset, b"x") == b""
        streams.checkin(1, stream)
        commit(streams)
    assert stream.push(0, b"x") == b"x" * (len(offsets) + 1)
    assert not stream.has_early


@pytest.mark.parametrize("order", ORDERS)
def test_bytes_behind_a_hole(order: Callable[[int], list[int]]) -> None:
    assert_linear(lambda count: fill(order, count, lambda streams: streams.fresh_size), 1_000)


@pytest.mark.parametrize("order", ORDERS)
def test_bytes_behind_a_hole_that_are_kept_elsewhere(order: Callable[[int], list[int]]) -> None:
    """The journal has room for some only."""

    def commit(spill: Spill, streams: Streams) -> None:
        if streams.fresh_size > 16 * PIECE.size:
            for piece in streams.fresh():
                spill.keep(1, piece)
            streams.keep()
        assert len(streams.pending()) <= streams.fresh_size
        spill.forget(streams)

    def run(count: int) -> None:
        spill = Spill({})
        fill(order, count, lambda streams: commit(spill, streams))

    assert_linear(run, 500)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_half_a_million_segments_behind_a_hole(order: Callable[[int], list[int]]) -> None:
    began = time.process_time()
    fill(order, 500_000, lambda streams: streams.fresh_size)
    assert time.process_time() - began < 60


def test_a_message_that_is_kept_in_many_pieces() -> None:
    def run(count: int) -> None:
        streams, stream, memory = Streams(), Stream(), dict[bytes, bytes]()
        spill = Spill(memory)
        streams.open(1, stream)
        for offset in range(count):
            stream.carry += stream.push(offset, b"x")
            streams.checkin(1, stream)
            for piece in streams.fresh():
                spill.keep(1, piece)
            streams.keep()
            spill.forget(streams)
        assert len(memory) == count
        snapshot = Snapshot(1, streams.table[: streams.count], b"")
        kept = Spill(memory).load(snapshot)
        restored = Streams.restore(snapshot.table, b"", kept, lambda: None).checkout(1)
        assert restored is not None and restored.carry == stream.carry

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
