"""An honest sensor on bad wires, with this machine's own TCP at both ends: all arrives, and soon.

The peer is a logger, or a socket of the hardworker's own stack.
"""

import errno
import random
import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack, closing, suppress

import pytest
from tests.program.bench import Bench
from tests.program.stack import PATIENCE, Triangle

from midstream.daemon.reassembly import Stream
from midstream.ebpf.records import HERE

SIZE = 200_000


class BadWires(Triangle):
    """Of the sensor's frames some are lost, some come twice, and some late."""

    def __init__(self, bench: Bench, loss: float) -> None:
        super().__init__(bench)
        self._random, self._loss, self._late = random.Random(3), loss, list[bytes]()

    def from_sensor(self) -> Iterable[bytes]:
        frames, self._late = [*self.sensor.read(), *self._late], []
        for frame in frames:
            fate = self._random.random()
            if fate < self._loss:
                continue
            if fate > 0.98:
                self._late.append(frame)
                continue
            yield from [frame] * (2 if fate > 0.96 else 1)


@pytest.mark.parametrize("loss", [0.03, pytest.param(0.1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sack", ["1", "0"])
@pytest.mark.parametrize("destination", [0, HERE], ids=["logger", "here"])
def test_all_arrives(loss: float, sack: str, destination: int) -> None:
    """With selective acknowledgements, and without: then a sensor repeats what lies behind a hole, too."""
    data = random.Random(1).randbytes(SIZE)
    sent, logged, delivered, stream = 0, bytearray(), bytearray(), Stream()
    with closing(Bench(connections=2)) as bench, closing(BadWires(bench, loss)) as triangle:
        bench.destination = destination
        with triangle.sensor.inside(), open("/proc/sys/net/ipv4/tcp_sack", "w") as setting:
            setting.write(sack)
        with triangle.connected() as client:
            bench.destination = 0 if destination else HERE  # it stays where it is
            peer = triangle.peer(destination)
            triangle.wait(peer.has_connection)
            accepted, _ = peer.listener.accept()
            with accepted:
                accepted.setblocking(False)
                deadline = time.monotonic() + PATIENCE * (1 + 100 * loss)
                while len(logged) < SIZE:
                    assert time.monotonic() < deadline, f"{len(logged)} of {SIZE} bytes"
                    with suppress(BlockingIOError):
                        sent += client.send(data[sent : sent + 700])
                    triangle.move()
                    with suppress(BlockingIOError):
                        logged += accepted.recv(1 << 16)
                    for record in bench.ring.take():
                        delivered += stream.push(record.offset, record.payload)
                    assert delivered[: len(logged)] == logged, "acknowledged, and not held"
                assert bench.counters()[0, "out_of_order"] > 0
    assert delivered == logged == data


def test_maps_made_anew_under_a_connection_of_the_stack() -> None:
    """The stack never sees what the new ring has not. Both ends learn that it is over."""
    with ExitStack() as opened:
        old, new = (opened.enter_context(closing(Bench(connections=2))) for _ in range(2))
        triangle = opened.enter_context(closing(Triangle(old)))
        old.destination = HERE
        client = opened.enter_context(triangle.connected())
        triangle.wait(triangle.hardworker.has_connection)
        accepted = opened.enter_context(triangle.hardworker.listener.accept()[0])
        accepted.setblocking(False)
        client.send(b"held")
        triangle.wait(lambda: received(accepted) == b"held")
        triangle.bench = new
        client.send(b"not held")
        triangle.wait(lambda: ended(client))
        with pytest.raises(BlockingIOError):
            accepted.recv(100)
        assert not new.ring.take()
        accepted.send(b"is anybody there?")  # the sensor's reset is for the stack
        triangle.wait(lambda: ended(accepted))


def received(one: socket.socket) -> bytes:
    try:
        return one.recv(100)
    except BlockingIOError:
        return b""


def ended(one: socket.socket) -> bool:
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (errno.ECONNRESET, errno.EPIPE)
