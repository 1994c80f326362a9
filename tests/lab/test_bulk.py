"""Bulk in one stream does not touch another: small messages at a high rate beside a sender that is as fast as
its TCP, whose reader keeps up, or does not read at all."""

import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from tests.lab.triangle import HARDWORKER, PATIENCE, TOS, wait_until

from midstream.lab import Lab

IMU, CAMERA = 12345, 12375  # ports
RATE, SIZE, LARGE = 1000, 64, 102_400
LAB = {
    "sensors": 2,
    "stream": [
        {"name": "imu", "port": IMU, "size": SIZE, "freq": float(RATE), "period": 0.002},
        {"name": "camera", "port": CAMERA, "framing": "length", "max_size": 131_072, "ring_size": "8MiB"},
    ],
}
HEAD = struct.Struct("<QQ")  # number, and when it was sent
ROW = np.dtype([("number", "<u8"), ("sent", "<u8"), ("received", "<u8")])  # nanoseconds, CLOCK_MONOTONIC
READER = """
import signal, sys, time
import numpy as np
from midstream import Hardworker
config, stream, path = sys.argv[1:]
with open(path, "wb", buffering=0) as out, Hardworker(config, stream=stream) as hardworker:
    signal.signal(signal.SIGTERM, lambda *_: hardworker.stop())
    print("receiving", flush=True)
    if stream == "imu":
        for batch in hardworker.batches():
            if len(batch):
                now = time.monotonic_ns()
                head = np.ascontiguousarray(batch["payload"][:, :16]).view("<u8")
                out.write(np.column_stack((head, np.full(len(batch), now, "<u8"))).tobytes())
    else:
        for message in hardworker:
            out.write(message.payload[:16] + time.monotonic_ns().to_bytes(8, "little"))
"""


class Sent(NamedTuple):
    """port: its sensor's."""

    port: int
    messages: int


class Measured(NamedTuple):
    """rows: of `imu`, as they were delivered. beside: messages of `camera` meanwhile."""

    rows: np.ndarray
    beside: int

    @property
    def latencies(self) -> np.ndarray:
        """Microseconds, from the sending of a message until the application has it."""
        found: np.ndarray = (self.rows["received"] - self.rows["sent"]) / 1e3
        return found


@contextmanager
def reading(lab: Lab, stream: str, path: Path) -> Iterator[Path]:
    """An application of the stream, and the file with its rows."""
    program: list[str | Path] = [sys.executable, "-c", READER, lab.config, stream, path]
    reader = lab.popen("hardworker", program, stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdout and reader.stdout.readline() == "receiving\n"
        yield path
        reader.send_signal(signal.SIGTERM)
        assert reader.wait(PATIENCE) == 0
    finally:
        reader.kill()
        reader.communicate()


def rows(path: Path) -> np.ndarray:
    return np.fromfile(path, ROW, path.stat().st_size // ROW.itemsize)


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """It waits for its peer's end of the stream at the end: so all of it has arrived."""
    with socket.socket() as client:
        client.settimeout(2 * PATIENCE)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.connect((HARDWORKER, port))
        yield client
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def send_small(count: int) -> Sent:
    """At their rate, without drift."""
    with connected(IMU) as client:
        begin = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, begin + number / RATE - time.monotonic()))
            client.sendall(HEAD.pack(number, time.monotonic_ns()).ljust(SIZE, b"\0"))
        return Sent(client.getsockname()[1], count)


def send_large(stop: Path, least: int) -> Sent:
    """As fast as it goes, at least so many, until the file exists."""
    number, filler = 0, bytes(LARGE - HEAD.size)
    with connected(CAMERA) as client:
        while number < least or not stop.exists():
            client.sendall(struct.pack(">I", LARGE) + HEAD.pack(number, time.monotonic_ns()) + filler)
            number += 1
        return Sent(client.getsockname()[1], number)


def measured(lab: Lab, folder: Path, seconds: float, beside: str = "") -> Measured:
    """Send `imu`, and maybe `camera`, whose reader is `beside`; both arrive whole, in both places.

    beside: "alive", or "dead" until the last message of `imu` was delivered; "": no camera sends.
    """
    count, stop, names = round(seconds * RATE), folder / "stop", ("imu", "camera")
    imu, camera = (folder / name for name in names)
    least = 300 if beside == "dead" else 0  # much more than there is room for
    # Programs are started in front of the senders: a fork beside the start of one would keep its pipe open.
    with ThreadPoolExecutor(2) as pool, ExitStack() as alive:
        alive.callback(stop.touch)
        alive.enter_context(reading(lab, "imu", imu))
        if beside == "alive":
            alive.enter_context(reading(lab, "camera", camera))
        large = pool.submit(lab.call, "sensor-2", send_large, stop, least) if beside else None
        time.sleep(0.5 if large else 0.0)  # its ring is full, if nobody reads
        small = pool.submit(lab.call, "sensor", send_small, count).result()
        wait_until(lambda: len(rows(imu)) == count)
        meanwhile = len(rows(camera)) if beside == "alive" else 0
        if large:
            assert not large.done(), "nothing is beside it any more"
            if beside == "dead":
                alive.enter_context(reading(lab, "camera", camera))
            stop.touch()
            sent = large.result()
            wait_until(lambda: len(rows(camera)) == sent.messages)
    found = rows(imu)
    assert found["number"].tolist() == list(range(count))
    assert numbers_logged(lab, "imu", small.port) == list(range(count))
    if large:
        assert rows(camera)["number"].tolist() == list(range(sent.messages))
        wait_until(lambda: len(numbers_logged(lab, "camera", sent.port)) >= sent.messages)
        assert numbers_logged(lab, "camera", sent.port) == list(range(sent.messages))
    return Measured(found, meanwhile)


def numbers_logged(lab: Lab, stream: str, port: int) -> list[int]:
    """Of the messages of the stream's latest connection from that port, as the log has them in order."""
    query = """
        SELECT substr(payload, 1, 8) FROM messages
        WHERE connection_id = (SELECT max(id) FROM connections WHERE stream = ? AND port = ?)
        ORDER BY sequence
    """
    with sqlite3.connect(f"file:{lab.run_dir / 'midstream.db'}?mode=ro", uri=True) as store:
        found = [int.from_bytes(head, "little") for (head,) in store.execute(query, (stream, port))]
    store.close()
    return found


@pytest.mark.parametrize("beside", ["alive", "dead"])
def test_bulk_beside_it(triangle: Lab, tmp_path: Path, beside: str) -> None:
    found = measured(triangle, tmp_path, 1.0, beside)
    assert len(found.rows) == RATE
    # Not when the other has ended. How long it takes: test_what_bulk_costs.
    assert np.median(found.latencies) < 500_000


@pytest.mark.slow
def test_what_bulk_costs(triangle: Lab, tmp_path: Path) -> None:
    """Prints the latencies of `imu` without and with `camera`, in turns."""
    found: dict[str, list[np.ndarray]] = {"": [], "alive": [], "dead": []}
    for turn in range(3):
        for beside, latencies in found.items():
            folder = tmp_path / f"{turn}{beside}"
            folder.mkdir()
            one = measured(triangle, folder, 4.0, beside)
            latencies.append(one.latencies)
            megabytes = one.beside * LARGE / 1e6
            print(f"{beside or 'without':8}", *_percentiles(one.latencies), f"beside {megabytes:.0f} MB")
    for beside, latencies in found.items():
        print(f"{beside or 'without':8} in all", *_percentiles(np.concatenate(latencies)))


def _percentiles(latencies: np.ndarray) -> Iterator[str]:
    for percent in (50, 90, 99, 99.9):
        yield f"p{percent:g} {np.percentile(latencies, percent):.0f} us"
