"""What a turn gives: batches and columns."""

import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tests.support.fake_ring import HEADER, RingSource, blocks
from tests.support.hosts import configure
from tests.support.reader import SIZE, Site, later, payload, unhurried

from midstream.ebpf.records import RECORD
from midstream.errors import ConfigError
from midstream.hardworker import Hardworker


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


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
        assert received == hardworker.totals.messages == 29
        assert [message.payload for message in hardworker.messages()] == [payload(29)]


@pytest.mark.parametrize("period", [0.0, 0.002])
def test_batches_put_together_what_is_no_message(site: Site, period: float) -> None:
    data = b"".join(map(payload, range(8)))
    pieces = [(0, 24), (24, 30), (30, 72), (120, 144), (72, 120), (144, 168), (168, 192)]
    seen = b""
    for start, end in pieces:
        site.open(1) if not start else None
        site.put(1, start, data[start:end])
        with site.hardworker(period=period) as hardworker:  # each of them goes on where the last one was
            batch = next(hardworker.batches())
            received = batch["payload"].tobytes()
            assert received == data[batch["offset"][0] :][: len(received)] if len(batch) else not received
            seen += received
        site.source = RingSource(site.ring)
    assert seen == data


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
        assert hardworker.read()["offset"].tolist() == [number * SIZE for number in range(4, 9)]
        site.put(1, 9 * SIZE, payload(9))
        assert next(hardworker.messages()).sequence == 9  # at the last
        site.put(1, 10 * SIZE, payload(10))
        assert next(turns)["offset"].tolist() == [10 * SIZE]


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
    period = 0.2
    with site.hardworker(period=period) as hardworker:
        turns = hardworker.batches()
        next(turns)
        for _ in range(3):  # nothing is read that it could follow
            time.sleep(period / 10)  # the multiple just waited for is certainly over
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


def test_batches_of_a_hardworker_that_is_closed_meanwhile(site: Site) -> None:
    with site.hardworker(period=0.002) as hardworker:
        turns = hardworker.batches()
        next(turns)
        hardworker.close()
        with pytest.raises(ConfigError, match="closed; use it inside its `with` block"):
            next(turns)
