"""An application that is killed at random moments and started anew, and clients that send meanwhile."""

import hashlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.lab.triangle import (
    HARDWORKER,
    PATIENCE,
    PINS,
    PORT,
    TOS,
    counted,
    counters,
    stack,
    wait_until,
)

from midstream.ebpf.progress import progress
from midstream.lab import Lab

READY = "receiving"  # what an application says on standard error when it reads
STARTING = 0.25  # of all deaths: before it is ready
LONGEST_START, LONGEST_WORK = 1.0, 0.3  # seconds


class Mortal:
    """A program on the hardworker. It is killed at the latest at the end."""

    def __init__(self, lab: Lab, folder: Path, argv: Sequence[str | os.PathLike[str]], seed: int = 0) -> None:
        self._lab, self._argv = lab, argv
        self._errors = folder / "application.err"
        self._random = Random(seed)
        self._process: subprocess.Popen[Any]

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def die(self) -> None:
        """kill -9 while it starts or while it works, and another life."""
        if self._random.random() < STARTING:
            time.sleep(self._random.uniform(0, LONGEST_START))
        else:
            self.wait_until_ready()
            time.sleep(self._random.uniform(0, LONGEST_WORK))
        assert self._process.poll() is None, self._errors.read_text()
        self._kill()
        self._start()

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self._process.poll() is None, self._errors.read_text()
            return READY in self._errors.read_text()

        wait_until(ready)

    def drain(self) -> None:
        """Wait until it has committed everything that the program stored."""
        self.wait_until_ready()
        wait_until(is_drained)

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def _start(self) -> None:
        quiet = subprocess.DEVNULL
        with self._errors.open("wb") as errors:
            self._process = self._lab.popen(
                "hardworker", self._argv, stdin=quiet, stdout=quiet, stderr=errors
            )

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()


def is_drained() -> bool:
    return progress(PINS / "hardworker").fill == 0


class Sent(NamedTuple):
    """What a client sent: own port, length and SHA-256 of the stream."""

    port: int
    bytes: int
    digest: str


def stream(pieces: Iterator[bytes], rate: float, source: int = 0) -> Sent:
    """A plain client: a write a piece, `rate` bytes a second without drift, then the end of the stream."""
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("", source))
        client.connect((HARDWORKER, PORT))
        digest, sent, start = hashlib.sha256(), 0, time.monotonic()
        for piece in pieces:
            time.sleep(max(0.0, start + sent / rate - time.monotonic()))
            client.sendall(piece)
            digest.update(piece)
            sent += len(piece)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        return Sent(client.getsockname()[1], sent, digest.hexdigest())


Pieces = Callable[[Path], Iterator[bytes]]


@contextmanager
def streaming(
    lab: Lab, folder: Path, *sensors: Pieces, rate: float = 1e6, source: int = 0
) -> Iterator[list[Future[Sent]]]:
    """Plain clients, one a sensor, that send until the block ends; then wait for them."""
    stop = folder / "stop"
    with ThreadPoolExecutor(len(sensors)) as pool:
        futures = [
            pool.submit(lab.call, host.name, stream, pieces(stop), rate, source)
            for host, pieces in zip(lab.sensors, sensors, strict=False)
        ]
        try:
            yield futures
            assert not any(future.done() for future in futures), "a client ended before it was asked to"
        finally:
            stop.touch()


def ragged(stop: Path, seed: int, size: int) -> Iterator[bytes]:
    """Random bytes in writes of any length, in all a multiple of `size`, until a file `stop` exists."""
    random, total = Random(seed), 0
    while not stop.exists():
        piece = random.randbytes(random.randint(1, 4999))
        total += len(piece)
        yield piece
    yield random.randbytes(-total % size)


def equal(stop: Path, seed: int, size: int) -> Iterator[bytes]:
    """Writes of `size` bytes."""
    random = Random(seed)
    while not stop.exists():
        yield random.randbytes(size)


def framed(stop: Path, seed: int) -> Iterator[bytes]:
    """Messages behind their length, from nothing to larger than what the reader's journal has room for."""
    random = Random(seed)
    while not stop.exists():
        longest = random.choice([0, 100, 1500, 1500, 6000, 6000, 20_000])
        size = 150_000 if random.random() < 0.03 else random.randint(0, longest)
        yield size.to_bytes(4, "big") + random.randbytes(size)


class Before:
    """Counters before a test."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._counters = counters()
        self._resets = self._count_resets()

    def assert_no_connection_ended(self) -> None:
        """Each sensor that sent opened one connection, and none was reset anywhere."""
        *sensors, _ = counted(self._counters)
        assert {sensor.get("opened") for sensor in sensors} <= {1, None}
        for sensor in sensors:
            assert not {"reset", "replaced", "table_full"} & set(sensor), sensor
        assert self._count_resets() == self._resets

    def _count_resets(self) -> dict[str, int]:
        return {host.name: stack(self._lab, host.name)["Tcp.EstabResets"] for host in self._lab.hosts}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
