"""Hardworker, as an application uses it: reading, waiting, stopping, joining late, and what goes wrong."""

import asyncio
import gc
import os
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.unit.fake_ring import HEADER, FakeRing, RingSource, blocks
from tests.unit.hosts import SENSORS, configure

from midstream.ebpf.records import FIN, OPEN, RECORD, RESET
from midstream.errors import ConfigError
from midstream.framing import Framing, encode
from midstream.hardworker import Hardworker, Message
from midstream.hardworker.forms import Form, Turn
from midstream.hardworker.source import Pace, Segment
from midstream.hardworker.streams import Streams

SIZE = 24


class Site:
    """A ring, and the files of a Hardworker that reads it."""

    def __init__(self, folder: Path) -> None:
        self.ring = FakeRing(1 << 16)
        self.source = RingSource(self.ring)
        self.folder = folder
        self.seen = b""

    def hardworker(
        self, *, framing: Framing = "fixed", size: int = SIZE, period: float = 0, max_size: int = 1 << 20
    ) -> Hardworker:
        path = configure(self.folder, framing=framing, size=size, period=period, max_size=max_size)
        return Hardworker(path, source=self.source)

    def put(
        self,
        connection: int,
        offset: int,
        data: bytes = b"",
        *,
        flags: int = 0,
        sensor: int = 0,
        time: int = 5,
    ) -> None:
        assert (
            self.ring.put(Segment(connection, sensor, 40000, offset, time, flags, data), capacity=None)
            is not None
        )

    def open(self, *connections: int) -> None:
        for connection in connections:
            self.put(connection, 0, flags=OPEN)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def payload(number: int, size: int = SIZE) -> bytes:
    return number.to_bytes(size, "little")


def unhurried() -> float:
    """A period in whose middle it is now: none of its turns is due soon."""
    return time.monotonic() / 1.5


@contextmanager
def later(action: Callable[[], object], seconds: float = 0.05) -> Iterator[None]:
    timer = threading.Timer(seconds, action)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def interrupt() -> None:
    """A signal for the test's own thread."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


@contextmanager
def handled(handler: Callable[..., object]) -> Iterator[None]:
    """What `interrupt` sends is handled so."""
    old = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, old)


def give_up(*_: object) -> None:
    raise KeyboardInterrupt


def test_whole_messages_are_read_without_a_copy(site: Site) -> None:
    with site.hardworker() as hardworker:
        site.open(1)
        assert len(hardworker.read()) == 0
        for number in range(100):
            site.put(1, number * SIZE, payload(number))
        batch = hardworker.read()
        assert np.shares_memory(batch, site.ring.data)
        assert not batch.flags.writeable
        assert batch["payload"].view("<u8")[:, 0].tolist() == list(range(100))
        assert len(hardworker.read()) == 0


def test_segments_that_are_no_messages_are_put_together(site: Site) -> None:
    stream = b"".join(map(payload, range(30)))
    with site.hardworker() as hardworker:
        site.open(1)
        for start in range(0, len(stream), 100):
            site.put(1, start, stream[start : start + 100])
        batch = hardworker.read()
        assert not np.shares_memory(batch, site.ring.data)
        assert batch["payload"].tobytes() == stream
        assert batch["offset"].tolist() == list(range(0, len(stream), SIZE))
        assert set(batch["length"].tolist()) == {SIZE}


def test_room_is_given_back_only_by_the_next_call(site: Site) -> None:
    with site.hardworker() as hardworker:
        site.open(1)
        for number in range(3):
            site.put(1, number * SIZE, payload(number))
        batch = hardworker.read()
        taken = site.ring.producer
        site.put(1, 3 * SIZE, payload(3))
        assert site.ring.consumer == 0
        assert 0 < hardworker.fill < 1
        assert hardworker.wait(1)
        assert site.ring.consumer == taken
        assert len(hardworker.read()) == 1
        assert site.ring.consumer == taken
        assert len(hardworker.read()) == 0
        assert site.ring.consumer == site.ring.producer
        assert hardworker.fill == 0
    assert len(batch) == 3


def test_a_loop_that_is_left_early_goes_on_where_it_was(site: Site) -> None:
    with site.hardworker() as hardworker:
        site.open(1)
        for number in range(5):
            site.put(1, number * SIZE, payload(number))
        for message in hardworker:
            if message.sequence == 1:
                break
        assert not hardworker.commit()
        assert [message.sequence for message in hardworker.messages()] == [2, 3, 4]
        assert hardworker.commit()
        assert site.ring.consumer == site.ring.producer


@pytest.mark.parametrize("autocommit", [True, False])
def test_what_was_not_committed_is_delivered_to_the_next_reader(
    site: Site, tmp_path: Path, autocommit: bool
) -> None:
    stream = b"".join(map(payload, range(6)))
    first = Hardworker(configure(tmp_path), source=site.source, autocommit=autocommit).__enter__()
    site.open(1)
    site.put(1, 0, stream[: 2 * SIZE + 5])
    assert first.read()["offset"].tolist() == [0, SIZE]
    if not autocommit:
        assert first.commit()
    site.put(1, 2 * SIZE + 5, stream[2 * SIZE + 5 : 4 * SIZE])
    assert first.read()["offset"].tolist() == [2 * SIZE, 3 * SIZE]
    first.close()
    assert 0 < site.ring.consumer < site.ring.producer
    with Hardworker(configure(tmp_path), source=RingSource(site.ring)) as second:
        assert second.connections == 1
        assert second.read()["payload"].tobytes() == stream[2 * SIZE : 4 * SIZE]


def test_closing_gives_back_what_was_read_and_leaves_the_rest(site: Site) -> None:
    with site.hardworker() as hardworker:
        site.open(1)
        site.put(1, 0, payload(0))
        hardworker.read()
        taken = site.ring.producer
        site.put(1, SIZE, payload(1))
    assert site.ring.consumer == taken
    assert site.source.closed == 1
    hardworker.close()
    assert site.source.closed == 1


def test_a_batch_outlives_the_hardworker(site: Site) -> None:
    with site.hardworker() as hardworker:
        site.open(1)
        hardworker.read()
        site.put(1, 0, payload(7))
        batch = hardworker.read()
    assert bytes(batch["payload"][0]) == payload(7)


def test_messages_say_where_they_come_from(site: Site) -> None:
    with site.hardworker() as hardworker:
        site.put(4, 0, flags=OPEN, sensor=2)
        site.put(4, 0, payload(0), sensor=2, time=100)
        site.put(4, SIZE, payload(1)[:10], sensor=2, time=200)
        site.put(4, SIZE + 10, payload(1)[10:], sensor=2, time=300)
        found = []
        for message in hardworker:
            found.append(message)
            if len(found) == 2:
                hardworker.stop()
    assert found == [Message(SENSORS[2], 4, 0, 100, payload(0)), Message(SENSORS[2], 4, 1, 300, payload(1))]


@pytest.mark.parametrize("framing", ["length", "line"])
def test_messages_of_any_length(site: Site, framing: Framing) -> None:
    payloads = [b"x" * (number * 7 % 50) for number in range(40)]
    stream = b"".join(encode(framing, p, size=SIZE, max_size=100) for p in payloads)
    with site.hardworker(framing=framing, max_size=100) as hardworker:
        site.open(1)
        for start in range(0, len(stream), 33):
            site.put(1, start, stream[start : start + 33])
        site.put(1, len(stream), flags=FIN)
        found = []
        for message in hardworker:
            found.append(message)
            if len(found) == len(payloads):
                hardworker.stop()
    assert [message.payload for message in found] == payloads
    assert [message.sequence for message in found] == list(range(len(payloads)))
    assert hardworker.totals.finished == 1
    assert hardworker.totals.skipped == 0


@pytest.mark.parametrize(
    ("framing", "fault"), [("length", (101).to_bytes(4, "big") + b"x" * 101), ("line", b"x" * 101 + b"\n")]
)
def test_a_connection_that_breaks_its_framing_is_given_up_and_others_go_on(
    site: Site, framing: Framing, fault: bytes
) -> None:
    good = encode(framing, b"good", size=SIZE, max_size=100)
    with site.hardworker(framing=framing, max_size=100) as hardworker:
        site.open(1, 2)
        site.put(1, 0, good + fault)
        site.put(2, 0, good)
        site.put(1, len(good + fault), good)
        site.put(1, len(good + fault + good), flags=FIN)
        site.put(2, len(good), good)
        found = []
        for message in hardworker:
            found.append((message.connection, message.payload))
            if len(found) == 3:
                hardworker.stop()
        totals = hardworker.totals
        assert hardworker.connections == 1
    assert found == [(1, b"good"), (2, b"good"), (2, b"good")]
    assert (totals.broken, totals.finished, totals.messages, totals.bytes) == (1, 1, 3, 12)
    assert totals.skipped == len(fault) + len(good)


@pytest.mark.parametrize("flags", [0, FIN, RESET])
def test_what_follows_a_reset_opens_nothing(site: Site, flags: int) -> None:
    with site.hardworker() as hardworker:
        site.put(3, 90 * SIZE, payload(90), flags=flags)
        assert len(hardworker.read()) == 0
        assert hardworker.connections == 0
        assert hardworker.totals.skipped == SIZE


@pytest.mark.parametrize("framing", ["length", "line"])
def test_without_a_fixed_size_no_message_is_made_of_a_middle(site: Site, framing: Framing) -> None:
    with site.hardworker(framing=framing) as hardworker:
        site.put(3, 90, b"\0\0\0\1x\n\0\0\0\1y\n")
        assert hardworker.latest() is None
        assert (hardworker.connections, hardworker.totals.skipped) == (0, 12)


def test_an_end_that_comes_before_the_last_message_is_noticed(site: Site) -> None:
    with site.hardworker() as hardworker:
        site.open(1)
        site.put(1, 0, payload(0))
        site.put(1, 2 * SIZE, flags=FIN)
        assert len(hardworker.read()) == 1
        assert hardworker.connections == 1
        site.put(1, SIZE, payload(1))
        assert len(hardworker.read()) == 1
        assert (hardworker.connections, hardworker.totals.finished) == (0, 1)


@pytest.mark.parametrize("flag", [FIN, RESET])
def test_what_is_left_of_a_message_when_its_connection_ends_is_skipped(site: Site, flag: int) -> None:
    with site.hardworker() as hardworker:
        site.open(1)
        site.put(1, 0, payload(0) + b"rest")
        site.put(1, SIZE + 4, flags=flag)
        assert len(hardworker.read()) == 1
        assert asdict(hardworker.totals) == {
            "messages": 1,
            "bytes": SIZE,
            "opened": 1,
            "finished": int(flag == FIN),
            "reset": int(flag == RESET),
            "broken": 0,
            "skipped": 4,
        }


def test_latest_passes_over_older_messages(site: Site) -> None:
    with site.hardworker() as hardworker:
        assert hardworker.latest() is None
        site.open(1)
        site.put(2, 0, flags=OPEN, sensor=1)
        for number in range(5):
            site.put(1, number * SIZE, payload(number), time=100 + number)
            site.put(2, number * SIZE, payload(50 + number), sensor=1, time=50 + number)
        newest = hardworker.latest()
        assert newest == Message(SENSORS[0], 1, 4, 104, payload(4))
        assert hardworker.latest(SENSORS[1]) == Message(SENSORS[1], 2, 4, 54, payload(54))
        assert hardworker.latest(SENSORS[2]) is None
        assert hardworker.latest() == newest
        site.put(2, 5 * SIZE, payload(55), sensor=1, time=200)
        newest = hardworker.latest()
        assert newest is not None and newest.payload == payload(55)


def test_stop_from_another_thread_ends_a_loop(site: Site) -> None:
    with site.hardworker() as hardworker, later(hardworker.stop):
        site.open(1)
        site.put(1, 0, payload(0))
        assert [message.payload for message in hardworker] == [payload(0)]
        assert list(hardworker) == []


def test_a_loop_waits_for_messages(site: Site) -> None:
    def store() -> None:
        for number in range(50):
            site.put(1, number * SIZE, payload(number))
            time.sleep(0.001)

    with site.hardworker() as hardworker, later(store):
        site.open(1)
        received = []
        for message in hardworker:
            received.append(message.sequence)
            if len(received) == 50:
                hardworker.stop()
    assert received == list(range(50))


@pytest.mark.parametrize("period", [0.0, 0.005])
def test_an_async_loop_waits_lets_others_run_and_stops(site: Site, period: float) -> None:
    async def application() -> tuple[list[int], int]:
        received: list[int] = []
        complete = asyncio.Event()
        turns = 0

        async def others() -> None:
            nonlocal turns
            for number in range(20):
                site.put(1, number * SIZE, payload(number))
                await asyncio.sleep(0.002)
                turns += 1
            await complete.wait()
            await asyncio.sleep(0.005)  # the loop waits, and has to be woken
            hardworker.stop()

        with site.hardworker(period=period) as hardworker:
            site.open(1)
            task = asyncio.create_task(others())
            async for message in hardworker:
                received.append(message.sequence)
                if len(received) == 20:
                    complete.set()
            await task
        return received, turns

    assert asyncio.run(application()) == (list(range(20)), 20)


def test_wait_says_whether_there_may_be_something(site: Site) -> None:
    with site.hardworker() as hardworker:
        before = time.monotonic()
        assert not hardworker.wait(0.05)
        assert 0.05 <= time.monotonic() - before < 1
        assert not hardworker.wait(0)
        with later(lambda: site.open(1)):
            assert hardworker.wait(10)
        assert hardworker.wait(0)
        hardworker.read()
        assert not hardworker.wait(0)
        with later(hardworker.stop):
            assert not hardworker.wait(10)
        assert not hardworker.wait(10)
        site.put(1, 0, payload(0))
        assert not hardworker.wait(10)


def test_with_a_period_a_reader_waits_for_its_clock_and_not_for_data(site: Site) -> None:
    period = 0.05
    with site.hardworker(period=period) as hardworker:
        site.open(1)
        hardworker.wait()
        site.put(1, 0, payload(0))
        for _ in range(4):
            before = time.monotonic()
            assert hardworker.wait()
            now = time.monotonic()
            assert now // period == before // period + 1
        assert not hardworker.wait(0.001)
        with later(hardworker.stop, 0.01):
            before = time.monotonic()
            assert not hardworker.wait()
        assert time.monotonic() - before < period + 0.02


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda hardworker: hardworker.read(), id="read"),
        pytest.param(lambda hardworker: hardworker.latest(), id="latest"),
        pytest.param(lambda hardworker: hardworker.wait(0), id="wait"),
        pytest.param(lambda hardworker: next(iter(hardworker)), id="for"),
        pytest.param(lambda hardworker: asyncio.run(anext(aiter(hardworker))), id="async for"),
        pytest.param(lambda hardworker: hardworker.fill, id="fill"),
    ],
)
def test_a_closed_hardworker_says_so(site: Site, use: Callable[[Hardworker], object]) -> None:
    with site.hardworker() as hardworker:
        pass
    with pytest.raises(ConfigError, match="closed; use it inside its `with` block"):
        use(hardworker)
    hardworker.stop()


def test_a_hardworker_that_was_not_entered_says_so_and_closes(site: Site) -> None:
    hardworker = site.hardworker()
    with pytest.raises(ConfigError, match="use it inside its `with` block"):
        hardworker.wait(0)
    hardworker.stop()
    hardworker.close()
    assert site.source.closed == 1


@pytest.mark.parametrize("framing", ["length", "line"])
def test_read_needs_messages_of_one_size(site: Site, framing: Framing) -> None:
    with (
        site.hardworker(framing=framing) as hardworker,
        pytest.raises(ConfigError, match=rf'config.toml: data.framing = "{framing}".*fixed framing'),
    ):
        hardworker.read()


def test_a_size_other_than_that_of_const_toml_is_refused(site: Site, tmp_path: Path) -> None:
    path = configure(tmp_path)
    path.write_text("[data]\nsize = 25\n")
    with pytest.raises(ConfigError, match=r"data\.size = 25: must equal"):
        Hardworker(path)


def test_batches_give_a_turn_at_a_time_and_take_no_copy(site: Site) -> None:
    with site.hardworker(period=0.002) as hardworker:
        site.open(1, 2)
        turns = hardworker.batches()
        assert len(next(turns)) == 0
        received, taken = [], site.ring.producer
        for number in range(3000):  # the ring goes round more than once
            site.put(1 + number % 2, number // 2 * SIZE, payload(number), sensor=number % 2)
            if number % 100:
                continue
            batch = next(turns)
            assert site.ring.consumer == taken  # what the turn before gave, and nothing of this one
            taken = site.ring.producer
            assert np.shares_memory(batch, site.ring.data)
            assert not batch.flags.writeable
            received += batch["payload"].view("<u8")[:, 0].tolist()
        received += next(turns)["payload"].view("<u8")[:, 0].tolist()
        assert received == list(range(3000))
        assert hardworker.totals.messages == 3000
        assert site.ring.consumer < site.ring.producer
        assert len(next(turns)) == 0
        assert site.ring.consumer == site.ring.producer
    assert (hardworker.totals.messages, hardworker.totals.bytes) == (3000, 3000 * SIZE), "also once closed"


@pytest.mark.parametrize("size", [24, 64, 100, 300, 600, 850, 1000, 5000])
@pytest.mark.parametrize("form", ["batches", "iteration", "columns"])
def test_a_message_a_turn_all_round_the_ring(site: Site, size: int, form: str) -> None:
    with site.hardworker(size=size) as hardworker:
        site.open(1)
        sequences = {
            "batches": (n // size for batch in hardworker.batches() for n in batch["offset"]),
            "iteration": (message.sequence for message in hardworker),
            "columns": (n for columns in hardworker.columns("sequence") for n in columns[0]),
        }[form]
        for number in range(3 * site.ring.size // (HEADER + RECORD.itemsize + blocks(size))):
            site.put(1, number * size, payload(number, size))
            assert next(sequences) == number
        assert hardworker.totals.messages == number + 1


def test_the_batch_is_that_of_the_last_turn_whoever_took_it(site: Site) -> None:
    with site.hardworker() as hardworker:
        site.open(1)
        site.put(1, 0, payload(0))
        site.put(1, SIZE, payload(1) + payload(2))  # put together, and broken off
        assert len(next(hardworker.batches())) == 3
        site.put(1, 3 * SIZE, payload(3))
        assert next(hardworker.columns("offset"))[0].tolist() == [3 * SIZE]
        assert hardworker.batch["offset"].tolist() == [3 * SIZE]


@pytest.mark.parametrize("period", [0.0, 0.002])
def test_iterating_takes_turns_and_what_is_left_early_comes_next(site: Site, period: float) -> None:
    with site.hardworker(period=period) as hardworker:
        site.open(1, 2)
        received = 0
        for number in range(30):
            site.put(1 + number % 2, number // 2 * SIZE, payload(number), sensor=number % 2)
            if number % 3 != 2:
                continue
            for message in hardworker:
                assert (message.connection, message.sequence) == (1 + received % 2, received // 2)
                assert message.payload == payload(received)
                assert type(message.payload) is bytes, "not of NumPy"
                received += 1
                if received == (number if number % 2 else number + 1):
                    break  # in the midst of a batch, or at its end
        assert (received, hardworker.totals.messages) == (29, 30)
        assert [message.payload for message in hardworker.messages()] == [payload(29)]


@pytest.mark.parametrize("period", [0.0, 0.002])
def test_batches_put_together_what_is_no_message(site: Site, period: float) -> None:
    data = b"".join(map(payload, range(8)))
    pieces = [(0, 24), (24, 30), (30, 72), (120, 144), (72, 120), (144, 168), (168, 192)]
    for start, end in pieces:
        site.open(1) if not start else None
        site.put(1, start, data[start:end])
        with site.hardworker(period=period) as hardworker:  # each of them goes on where the last one was
            batch = next(hardworker.batches())
            received = batch["payload"].tobytes()
            assert received == data[batch["offset"][0] :][: len(received)] if len(batch) else not received
            site.seen += received
        site.source = RingSource(site.ring)
    assert site.seen == data


@pytest.mark.parametrize("period", [0.0, 0.002])
def test_batches_show_the_payload_as_one_wants(site: Site, period: float) -> None:
    wanted = np.dtype([("number", "<u8"), ("rest", "<u8", (2,))])
    with site.hardworker(period=period) as hardworker:
        site.open(1)
        turns = hardworker.batches(wanted)
        for number in range(4):
            site.put(1, number * SIZE, payload(number))
        assert next(turns)["payload"]["number"].tolist() == [0, 1, 2, 3]
        site.put(1, 4 * SIZE, payload(4))
        site.put(1, 5 * SIZE, payload(5) + payload(6))
        assert next(turns)["payload"]["number"].tolist() == [4, 5, 6]
        with pytest.raises(ConfigError, match="a message has 24 bytes, and the dtype given"):
            next(hardworker.batches(np.dtype("<f8")))


def test_batches_of_messages_that_are_larger_than_the_ring(site: Site) -> None:
    size = 5 << 15  # two and a half rings
    message = bytes(range(256)) * (size // 256)
    with site.hardworker(period=0.001, size=size) as hardworker:
        site.open(1)
        turns = hardworker.batches()
        for start in range(0, size, 1 << 14):
            site.put(1, start, message[start : start + (1 << 14)])
            batch = next(turns)
        assert batch["payload"].tobytes() == message


def test_batches_go_on_with_what_was_read_otherwise(site: Site) -> None:
    with site.hardworker(period=0.002) as hardworker:
        site.open(1)
        for number in range(9):
            site.put(1, number * SIZE, payload(number))
            if number == 2:
                turns = hardworker.batches()
                assert next(turns)["offset"].tolist() == [0, SIZE, 2 * SIZE]
        assert next(hardworker.messages()).sequence == 3  # and is left early
        for otherwise in (hardworker.read, turns.__next__):  # what is newer than the rest
            with pytest.raises(ConfigError, match=r"broken off: take the rest of them with messages\(\)"):
                otherwise()
        rest = hardworker.messages()
        assert [next(rest).sequence for _ in range(5)] == [4, 5, 6, 7, 8]  # and left at the last
        site.put(1, 9 * SIZE, payload(9))
        assert next(hardworker.batches())["offset"].tolist() == [9 * SIZE]


SEEN = np.dtype([("head", "<u2"), ("pair", "<u4", (2,)), ("odd", "u1"), ("rest", "V13")])


def check(names: tuple[str, ...], columns: tuple[np.ndarray, ...], numbers: range) -> None:
    """These columns are of messages with these numbers, stored by `numbered`."""
    rows = np.frombuffer(b"".join(map(payload, numbers)), SEEN)
    expected = {name: rows[name] for name in SEEN.names or ()} | {
        "payload": rows,
        "sequence": np.array(numbers, "<u8") // 2,
        "connection": np.array(numbers, "<u4") % 2 + 1,
    }
    for name, column in zip(names, columns, strict=True):
        assert (column.dtype, column.shape) == (expected[name].dtype, expected[name].shape)
        assert column.tobytes() == expected[name].tobytes()
        assert column.flags.c_contiguous and column.flags.writeable


def numbered(site: Site, numbers: range) -> None:
    for number in numbers:
        site.put(1 + number % 2, number // 2 * SIZE, payload(number), sensor=number % 2, time=number)


def test_columns_give_the_values_of_a_turn_end_to_end(site: Site) -> None:
    names = ("sequence", "head", "connection", "pair", "odd", "payload")
    with site.hardworker(period=0.002) as hardworker:
        site.open(1, 2)
        turns = hardworker.columns(*names, payload=SEEN)
        assert [len(column) for column in next(turns)] == [0] * len(names)
        usual: dict[int, tuple[np.ndarray, ...]] = {}
        next_number = 0
        for turn in range(400):  # the ring goes round more than once
            numbers = range(next_number, next_number := next_number + turn % 9)
            numbered(site, numbers)
            taken = site.ring.producer
            columns = next(turns)
            check(names, columns, numbers)
            assert hardworker.batch["offset"].tolist() == [n // 2 * SIZE for n in numbers]
            assert hardworker.batch["payload"].tobytes() == b"".join(map(payload, numbers))
            assert not len(numbers) or np.shares_memory(hardworker.batch, site.ring.data)
            if turn > 8:
                assert usual[len(numbers)] is columns
            usual[len(numbers)] = columns
            next(turns)
            assert site.ring.consumer == taken, "what a turn gave is given back by the next"
        assert hardworker.totals.messages == next_number == 400 // 9 * 36 + 6
        hardworker.commit()
        assert not len(hardworker.batch)


@pytest.mark.parametrize("count", [255, 256, 300])
def test_columns_of_many_messages(site: Site, count: int) -> None:
    names = ("sequence", "head", "pair", "payload")
    with site.hardworker(period=0.0) as hardworker:
        site.open(1, 2)
        turns = hardworker.columns(*names, payload=SEEN)
        next(turns)
        for start in (0, count, 2 * count):
            numbers = range(start, start + count)
            numbered(site, numbers)
            check(names, next(turns), numbers)
            assert len(hardworker.batch) == count


@pytest.mark.parametrize("period", [0.0, 0.002])
def test_columns_put_together_what_is_no_message(site: Site, period: float) -> None:
    with site.hardworker(period=period) as hardworker:
        site.open(1)
        turns = hardworker.columns("sequence", "time", "port", "head", payload=SEEN)
        next(turns)
        site.put(1, 0, payload(0), time=3)
        site.put(1, SIZE, payload(1) + payload(2) + payload(3)[:5], time=4)
        columns = [column.tolist() for column in next(turns)]
        assert columns == [[0, 1, 2], [3, 4, 4], [40000] * 3, [0, 1, 2]]
        assert hardworker.batch["payload"].tobytes() == b"".join(map(payload, range(3)))
        site.put(1, 3 * SIZE + 5, payload(3)[5:], time=5)
        assert [column.tolist() for column in next(turns)] == [[3], [5], [40000], [3]]
        site.put(1, 4 * SIZE, payload(4), time=6)
        assert [column.tolist() for column in next(turns)] == [[4], [6], [40000], [4]]
        assert np.shares_memory(hardworker.batch, site.ring.data), "in one step again"


def test_columns_go_on_with_what_was_read_otherwise(site: Site) -> None:
    with site.hardworker(period=0.002) as hardworker:
        site.open(1)
        columns, batches = hardworker.columns("sequence"), hardworker.batches()
        received = []
        for number in range(0, 60, 4):
            site.put(1, number * SIZE, payload(number))
            received += next(columns)[0].tolist()
            site.put(1, (number + 1) * SIZE, payload(number + 1))
            received += (next(batches)["offset"] // SIZE).tolist()
            site.put(1, (number + 2) * SIZE, payload(number + 2))
            received += [message.sequence for message in hardworker.messages()]
            site.put(1, (number + 3) * SIZE, payload(number + 3))
            received += (hardworker.read()["offset"] // SIZE).tolist()
            assert not len(hardworker.batch), "a turn's messages are not valid any more"
        assert received == list(range(60))


def test_columns_without_autocommit_are_given_again(site: Site) -> None:
    path = configure(site.folder, period=0.002)
    site.open(1)
    site.put(1, 0, payload(0))
    with Hardworker(path, source=site.source, autocommit=False) as first:
        turns = first.columns("sequence")
        assert next(turns)[0].tolist() == [0]
        site.put(1, SIZE, payload(1))
        assert next(turns)[0].tolist() == [1]
    with Hardworker(path, source=RingSource(site.ring), autocommit=False) as second:
        assert next(second.columns("sequence"))[0].tolist() == [0, 1]


def test_columns_have_the_names_of_the_fields_and_then_of_the_record(site: Site) -> None:
    with site.hardworker() as hardworker:
        site.open(1)
        site.put(1, 0, payload(7), time=9)
        assert next(hardworker.columns("time", payload="<u8,<u8,<u8"))[0].tolist() == [9]
        site.put(1, SIZE, payload(8))
        layout = [("time", "<u8"), ("rest", "V16")]  # hides the record's
        assert next(hardworker.columns("time", payload=layout))[0].tolist() == [8]


@pytest.mark.parametrize(
    ("names", "payload", "words"),
    [
        (
            ["speed"],
            None,
            r"config\.toml: columns\(\) was asked for 'speed', which no message has",
        ),
        (["time", "head"], np.dtype([("odd", "V24")]), "asked for 'head'"),
        ([], None, "asked for nothing; name at least one field"),
        (["time"], "<f8", r"a message has 24 bytes, and the dtype given to columns\(\) 8"),
        (["a"], np.dtype([("a", "O", 3)]), "has Python objects, which no message holds"),
    ],
)
def test_columns_that_no_message_has(
    site: Site, names: list[str], payload: npt.DTypeLike | None, words: str
) -> None:
    with site.hardworker() as hardworker, pytest.raises(ConfigError, match=words):
        hardworker.columns(*names, payload=payload)


def test_columns_of_messages_that_are_larger_than_records(site: Site) -> None:
    size = 1 << 20
    with site.hardworker(size=size) as hardworker:
        site.open(1)
        tracemalloc.start()
        turns = hardworker.columns("sequence", "payload")
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 2 * size
        for number in range(2):
            for start in range(0, size, 1 << 14):
                site.put(1, number * size + start, bytes([number + 1]) * (1 << 14))
                sequence, payloads = next(turns)
            assert (sequence.tolist(), payloads.tobytes()) == ([number], bytes([number + 1]) * size)


def test_columns_need_messages_of_one_size(site: Site) -> None:
    with site.hardworker(framing="line") as other, pytest.raises(ConfigError, match=r"columns\(\) gives"):
        other.columns("time")


def test_totals_are_told_while_another_thread_reads(site: Site) -> None:
    with site.hardworker(period=0.0) as hardworker:
        site.open(1)
        seen: list[int] = []
        asking = threading.Thread(target=lambda: seen.extend(hardworker.totals.messages for _ in range(5000)))
        asking.start()
        for number in range(200):
            site.put(1, number * SIZE, payload(number))
            hardworker.read()
        asking.join()
        assert hardworker.totals.messages == 200
        assert seen == sorted(seen)


def test_batches_without_autocommit_are_given_again(site: Site) -> None:
    path = configure(site.folder, period=0.002)
    site.open(1)
    site.put(1, 0, payload(0))
    first = Hardworker(path, source=site.source, autocommit=False).__enter__()
    turns = first.batches()
    assert len(next(turns)) == 1
    assert len(next(turns)) == 0
    first.close()
    with Hardworker(path, source=RingSource(site.ring), autocommit=False) as second:
        assert len(next(second.batches())) == 1
        assert second.commit()
    with Hardworker(path, source=RingSource(site.ring)) as third:
        assert len(next(third.batches())) == 0


def test_batches_keep_to_the_clock_and_stop_at_once(site: Site) -> None:
    period = 0.05
    with site.hardworker(period=period) as hardworker:
        turns = hardworker.batches()
        for _ in range(4):  # nothing is read that it could follow
            before = time.monotonic()
            next(turns)
            assert time.monotonic() // period == before // period + 1
    for period in (0.0, unhurried()):
        with site.hardworker(period=period) as hardworker, later(hardworker.stop):
            before = time.monotonic()
            assert [len(batch) for batch in hardworker.batches()] == [0]
            assert time.monotonic() - before < 5


def test_batches_without_a_period_come_when_something_is_stored(site: Site) -> None:
    with site.hardworker() as hardworker:
        site.open(1)
        turns = hardworker.batches()
        assert len(next(turns)) == 0
        os.eventfd_read(site.ring.event)  # as the kernel does, once all was given back
        with later(lambda: site.put(1, 0, payload(0))):
            assert next(turns)["payload"].tobytes() == payload(0)


@pytest.mark.parametrize("paced", [False, True])
def test_a_signal_is_handled_in_a_turn(site: Site, paced: bool) -> None:
    hardworker = site.hardworker(period=unhurried() if paced else 0.0)
    with hardworker, handled(lambda *_: hardworker.stop()), later(interrupt):
        assert [len(batch) for batch in hardworker.batches()] == [0]


class InterruptedSource(RingSource):
    """Something raises KeyboardInterrupt, if it is to, once a turn or a step has read."""

    due = False

    def pace(self, form: Form, pace: Pace, streams: Streams) -> Turn:
        turn = super().pace(form, pace, streams)

        def interrupted() -> Any:
            given = turn()
            if given is not None:
                self._interrupt()
            return given

        return interrupted

    def resume(self) -> np.ndarray | None:
        found = super().resume()
        if found is not None and len(found):
            self._interrupt()
        return found

    def regular(self, size: int, streams: Streams) -> np.ndarray:
        found = super().regular(size, streams)
        if len(found):
            self._interrupt()
        return found

    def next(self) -> Segment | None:
        segment = super().next()
        if segment is not None and segment.data:
            self._interrupt()
        return segment

    def _interrupt(self) -> None:
        if self.due:
            self.due = False
            raise KeyboardInterrupt


WAYS: dict[str, Callable[[Hardworker], object]] = {
    "batches": lambda hardworker: next(hardworker.batches()),
    "columns": lambda hardworker: next(hardworker.columns("sequence")),
    "read": lambda hardworker: hardworker.read(),
    "messages": lambda hardworker: next(hardworker.messages()),
    "iteration": lambda hardworker: next(iter(hardworker)),
    "latest": lambda hardworker: hardworker.latest(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pieces", [[SIZE, SIZE], [SIZE + 5, SIZE - 5]])
def test_what_was_read_when_a_handler_raised_is_given_to_the_next(
    site: Site, way: str, pieces: list[int]
) -> None:
    path = configure(site.folder)
    site.open(1)
    with Hardworker(path, source=RingSource(site.ring)) as first:
        first.read()
    source = InterruptedSource(site.ring)
    with Hardworker(path, source=source) as hardworker:  # it ends without an error, and commits nothing
        stored = 0
        for length in pieces:
            site.put(1, stored, (payload(0) + payload(1))[stored : stored + length])
            stored += length
        source.due = True
        with pytest.raises(KeyboardInterrupt):
            WAYS[way](hardworker)
        assert not hardworker.commit()
        for other in WAYS.values():
            with pytest.raises(ConfigError, match="came in the midst of reading: close this Hardworker"):
                other(hardworker)
    with Hardworker(path, source=RingSource(site.ring)) as last:
        assert last.read()["payload"].tobytes() == payload(0) + payload(1)


@pytest.mark.parametrize("way", ["batches", "columns", "iteration"])
@pytest.mark.parametrize("autocommit", [False, True])
def test_what_raises_while_nothing_is_read_does_no_harm(site: Site, way: str, autocommit: bool) -> None:
    path = configure(site.folder, period=unhurried())
    site.open(1)
    with Hardworker(path, source=site.source, autocommit=autocommit) as hardworker:
        site.put(1, 0, payload(0))
        assert len(hardworker.read()) == 1
        with handled(give_up), later(interrupt), pytest.raises(KeyboardInterrupt):
            WAYS[way](hardworker)
        site.put(1, SIZE, payload(1))
        assert hardworker.read()["offset"].tolist() == [SIZE]
        assert hardworker.commit()


@pytest.mark.parametrize("paced", [False, True])
def test_an_exception_ends_a_turn(site: Site, paced: bool) -> None:
    hardworker = site.hardworker(period=unhurried() if paced else 0.0)
    with hardworker, handled(give_up), later(interrupt), pytest.raises(KeyboardInterrupt):
        next(hardworker.columns("sequence"))


@pytest.mark.parametrize("paced", [False, True])
def test_a_signal_may_close_what_has_its_turn(site: Site, paced: bool) -> None:
    def close(*_: object) -> None:
        hardworker.close()
        gc.collect()
        descriptors.extend(os.pipe())  # they get the numbers that are free now

    descriptors: list[int] = []
    with site.hardworker(period=unhurried() if paced else 0.0) as hardworker:
        site.source = RingSource(site.ring)  # the hardworker has the only reference to its own
        try:
            with handled(close), later(interrupt), pytest.raises(ConfigError, match="closed; use it inside"):
                next(hardworker.columns("sequence"))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def test_a_signal_may_take_a_turn_of_another_form(site: Site) -> None:
    def take(*_: object) -> None:
        site.put(1, 0, payload(0))
        columns.append(next(hardworker.columns("sequence"))[0].tolist())
        site.put(1, SIZE, payload(1))

    columns: list[list[int]] = []
    with site.hardworker() as hardworker:
        site.open(1)
        hardworker.read()
        os.eventfd_read(site.ring.event)
        with handled(take), later(interrupt):
            assert next(hardworker.batches())["offset"].tolist() == [SIZE]
    assert columns == [[0]]


def test_batches_of_a_hardworker_that_is_closed_meanwhile(site: Site) -> None:
    with site.hardworker(period=0.002) as hardworker:
        turns = hardworker.batches()
        next(turns)
        hardworker.close()
        with pytest.raises(ConfigError, match="closed; use it inside its `with` block"):
            next(turns)
