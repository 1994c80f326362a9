"""A full table and this machine's own TCP as the sensor: what it has forgotten goes, what it knows stays."""

import select
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest
from tests.program.bench import Bench
from tests.program.stack import Triangle

from midstream.ebpf import records

SECOND = 10**9
_TCP_REPAIR = 19  # linux/tcp.h


@pytest.fixture
def triangle() -> Iterator[Triangle]:
    with closing(Bench(connections=2)) as bench, closing(Triangle(bench)) as triangle:
        yield triangle


@pytest.mark.slow
def test_forgotten_and_known(triangle: Triangle) -> None:
    bench = triangle.bench
    known, forgotten = triangle.connected(), triangle.connected()
    port = forgotten.getsockname()[1]
    now = time.monotonic_ns()
    triangle.change(known, seen=now - 20 * SECOND)
    triangle.change(forgotten, seen=now - 30 * SECOND)
    forgotten.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)  # closed so, nobody is told
    forgotten.close()
    bench.ring.take()
    before = bench.counters()
    with triangle.connect() as late:
        triangle.wait(lambda: triangle.established(late))
        assert {(0, "table_full"), (0, "reset"), (0, "opened")} <= set(bench.counters() - before)
        assert bench.connection(0, port) is None
        ended = [record for record in bench.ring.take() if record.flags == records.RESET]
        assert [record.port for record in ended] == [port]

        known.send(b"goes on")
        triangle.wait(lambda: any(record.payload == b"goes on" for record in bench.ring.take()))
        triangle.change(known, seen=time.monotonic_ns() - 20 * SECOND)
        with triangle.connect():  # asked, and known: nobody makes room
            triangle.wait(lambda: seen(bench, known) > now)
        state = bench.connection(0, known.getsockname()[1])
        assert state is not None and state["asked"] > now and state["questions"] == 0
        known.send(b"still")
        triangle.wait(lambda: any(record.payload == b"still" for record in bench.ring.take()))
    known.close()


def test_a_logger_that_refuses_and_then_comes_up(triangle: Triangle) -> None:
    """Nobody listens, and the sensor tries again and again: none of that is left in the way."""
    bench = triangle.bench
    triangle.logger.listener.close()
    ports = set()
    for _ in range(40):
        with triangle.connect() as refused:
            ports.add(refused.getsockname()[1])
            triangle.wait(partial(failed, refused))
    assert len(ports) > 20
    assert bench.open_connections() == int(bench.share(0)["open"]) == 2
    triangle.logger.listen()
    bench.ring.take()
    with triangle.connected() as client:
        client.send(b"good")
        triangle.wait(lambda: any(record.payload == b"good" for record in bench.ring.take()))
        accepted, _ = triangle.logger.listener.accept()
        with accepted:
            triangle.wait(lambda: bool(select.select([accepted], [], [], 0)[0]))
            assert accepted.recv(100) == b"good"


def failed(client: socket.socket) -> bool:
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def seen(bench: Bench, client: socket.socket) -> int:
    state = bench.connection(0, client.getsockname()[1])
    assert state is not None
    return int(state["seen"])
