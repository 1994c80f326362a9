"""A Hardworker that reads a ring, and what may happen to it meanwhile."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.fake_ring import FakeRing, RingSource, Segment
from tests.support.hosts import configure

from midstream.ebpf.records import OPEN
from midstream.framing import Framing
from midstream.hardworker import Hardworker

SIZE = 24


class Site:
    """A ring, and the files of a Hardworker that reads it."""

    def __init__(self, folder: Path) -> None:
        self.ring = FakeRing(1 << 16)
        self.source = RingSource(self.ring)
        self.folder = folder

    def hardworker(
        self,
        *,
        framing: Framing = "fixed",
        size: int = SIZE,
        period: float = 0,
        max_size: int = 1 << 20,
        deadline: float = 0,
    ) -> Hardworker:
        path = configure(
            self.folder, framing=framing, size=size, period=period, max_size=max_size, deadline=deadline
        )
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
