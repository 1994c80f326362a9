"""What the benchmark's receivers in Python do with a message, and what they say of it."""

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.support.fake_ring import FakeRing, Segment, opens

from midstream.framing import encode
from midstream.hardworker import views
from midstream.load import Incoming
from midstream.load.message import message, payload
from midstream.load.mix import ROBOT
from midstream_bench.receiver import Job, Setting
from midstream_bench.receivers import RECEIVERS, python
from midstream_bench.receivers.application import Application, Stream, places, summarize

SIZE = 64


@pytest.fixture
def application() -> Iterator[Application]:
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield Application(lambda: None)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_stream_is_cut_wherever_its_bytes_come_apart(application: Application) -> None:
    stream = Stream(application, Incoming(12345, SIZE))
    data = b"".join(message(3, n, 0, SIZE) for n in range(5))
    for start, end in itertools.pairwise([0, 1, 64, 200, 320]):
        stream.feed(data[start:end])
    assert (application.messages, application.bytes, application.errors) == (5, 320, 0)
    assert application.verified == 5


@pytest.mark.parametrize("fault", ["lost", "repeated", "changed"])
def test_a_fault_is_seen(application: Application, fault: str) -> None:
    stream = Stream(application, Incoming(12345, SIZE))
    data = [message(0, n, 0, SIZE) for n in range(3)]
    if fault == "lost":
        del data[1]
    elif fault == "repeated":
        data.insert(1, data[0])
    else:
        data[1] = data[1][:-1] + bytes([data[1][-1] ^ 1])
    stream.feed(b"".join(data))
    assert application.errors >= 1


def test_only_the_window_has_latencies_and_nothing_is_verified_in_it(application: Application) -> None:
    stream = Stream(application, Incoming(12345, SIZE))
    stream.feed(message(0, 0, 0, SIZE))
    os.kill(os.getpid(), signal.SIGUSR1)
    application.now = 1500
    stream.feed(message(0, 1, 1000, SIZE) + message(0, 2, 1200, SIZE))
    os.kill(os.getpid(), signal.SIGUSR2)
    stream.feed(message(0, 3, 0, SIZE))
    assert (application.window, application.verified, application.errors) == (2, 2, 0)
    assert list(application.latencies[:2]) == [500, 300]


def test_a_batch_is_delivered_as_its_messages_would_be(application: Application) -> None:
    ring = FakeRing(1 << 14)
    reader = ring.reader(SIZE)
    opens(ring, 1, 2)
    reader.look()
    assert not len(reader.rows())
    callback = python.Columns(application, SIZE)
    view = views.Columns(SIZE, callback.payload, python.COLUMNS)

    def deliver(*rows: tuple[int, int], said: int | None = None) -> int:
        before = application.errors
        for number, sequence in rows:
            data = message(number, sequence if said is None else said, 0, SIZE)
            ring.put(Segment(number, 0, 1, sequence * SIZE, 5, 0, data))
        reader.look()
        batch = reader.rows()
        callback.deliver(len(batch), view.of(batch))
        if not application.measuring:
            callback.verify(batch)
        reader.commit()
        return application.errors - before

    assert deliver((1, 0), (2, 0)) == 0
    assert deliver((1, 1), (1, 2), (2, 1)) == 0  # a connection twice
    assert reader.standing.newest == 5
    assert (application.messages, application.verified) == (5, 5)
    assert deliver((1, 3), said=7) == 1
    os.kill(os.getpid(), signal.SIGUSR1)
    application.now = 1500
    assert deliver((1, 4), (2, 2)) == 0
    application.now = 1300
    assert deliver(*((1, 5 + n) for n in range(130))) == 0  # more than usual
    assert deliver((2, 3), (1, 135), (2, 4), said=3) == 2
    assert (application.window, application.verified) == (135, 6)
    assert list(application.latencies[:136]) == [1500] * 2 + [1300] * 133 + [0]


def test_percentiles_and_histogram() -> None:
    told = summarize(np.array([-5, 3, 16, 17, 1000, 1_000_000]))
    assert (told["p50"], told["max"]) == (16, 1_000_000)
    assert told["histogram"] == [[0, 1], [3, 1], [16, 2], [960, 1], [983040, 1]]


def test_names_are_unique_and_every_form_does_the_whole_job() -> None:
    names = [one.name for one in RECEIVERS]
    assert len(set(names)) == len(names)
    for name in ("c-epoll", "c-tuned", "c-tuned-20ms", "c-busy", "python", "asyncio", "uvloop"):
        jobs = {one.job for one in RECEIVERS if one.name.rpartition("-")[0] == name}
        assert jobs == {Job.RECEIVE, Job.RELAY}


@pytest.mark.parametrize("incoming", ROBOT.incoming, ids=lambda incoming: str(incoming.port))
def test_a_stream_of_any_framing(application: Application, incoming: Incoming) -> None:
    stream = Stream(application, incoming)
    size = 79 if incoming.framing == "line" else incoming.size
    payloads = [payload(incoming.framing, 3, n, 0, size) for n in range(3)]
    frames = [encode(incoming.framing, each, size=size, max_size=size) for each in payloads]
    data = b"".join(frames)
    for start in range(0, len(data), 50_001):
        stream.feed(data[start : start + 50_001])
    assert (application.messages, application.errors, application.verified) == (3, 0, 3)
    stream.feed(frames[0])
    assert application.errors == 1, "its number is not the next"


def test_a_handler_is_told_what_comes_to_which_port() -> None:
    setting = Setting(Path("c"), Path("d"), 5, ROBOT.incoming, "10.0.0.1", "10.0.0.2")
    address, logger, tos, incoming = places(["10.0.0.1", "10.0.0.2", "104", *setting.ports])
    assert (address, logger, tos, incoming) == ("10.0.0.1", "10.0.0.2", 104, ROBOT.incoming)
    assert places(["10.0.0.1", "-", "0", *setting.ports])[1] == ""
