"""An honest sensor on bad wires, with this machine's own TCP at both ends: all arrives, and soon."""

import random
import time
from collections.abc import Iterable
from contextlib import closing, suppress

import pytest
from tests.program.bench import Bench
from tests.program.stack import PATIENCE, Triangle

from midstream.hardworker.streams import Stream

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
def test_all_arrives(loss: float, sack: str) -> None:
    """With selective acknowledgements, and without: then a sensor repeats what lies behind a hole, too."""
    data = random.Random(1).randbytes(SIZE)
    sent, logged, delivered, stream = 0, bytearray(), bytearray(), Stream()
    with closing(Bench(connections=2)) as bench, closing(BadWires(bench, loss)) as triangle:
        with triangle.sensor.inside(), open("/proc/sys/net/ipv4/tcp_sack", "w") as setting:
            setting.write(sack)
        with triangle.connected() as client:
            triangle.wait(triangle.logger.has_connection)
            accepted, _ = triangle.logger.listener.accept()
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
                assert bench.counters()[0, "early"] > 0
    assert delivered == logged == data
