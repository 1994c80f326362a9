"""Hardworker, as an application uses it: reading, waiting, stopping, joining late, and what goes wrong."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from tests.support.fake_ring import RingSource
from tests.support.hosts import SENSORS, configure
from tests.support.reader import SIZE, Site, later, payload, unhurried

from midstream.ebpf.records import FIN, OPEN, RESET
from midstream.errors import ConfigError
from midstream.framing import Framing, encode
from midstream.hardworker import Hardworker, Message


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


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
        assert hardworker.commit()
        assert 0 < site.ring.consumer < site.ring.producer
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


def test_a_wait_for_the_clock_ends_when_it_is_stopped(site: Site) -> None:
    called: list[float] = []

    def stop() -> None:
        called.append(time.monotonic())
        hardworker.stop()

    with site.hardworker(period=unhurried()) as hardworker, later(stop, 0.01):
        assert not hardworker.wait()
        assert time.monotonic() - called[0] < 0.07


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
