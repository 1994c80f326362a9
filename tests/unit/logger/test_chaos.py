"""Chaos around the logger: what was acknowledged is stored, once and in order, whatever is killed or full.

A program checks it, message by message: each says which sensor, connection and place it is of.
"""

import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from tests.support.program import Program, unacknowledged
from tests.support.site import SIZE, Site, verify, wait_until

MESSAGE = struct.Struct(f"<III{SIZE - 12}x")  # sensor, its connection, number


@dataclass
class Sent:
    """A connection of a sensor: bytes that were sent, and of these acknowledged for certain."""

    sent: int = 0
    acknowledged: int = 0


@dataclass
class ChaosSensor(threading.Thread):
    """Sends at a rate, and connects again whenever the logger ends a connection."""

    number: int
    port: int
    rate: float
    connections: list[Sent] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__()

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        while not self.ending.is_set():
            try:
                connection = socket.create_connection(("127.0.0.1", self.port), timeout=5)
            except OSError:
                time.sleep(0.02)
                continue
            with connection:
                self._send(connection)

    def _send(self, connection: socket.socket) -> None:
        own = len(self.connections)
        self.connections.append(record := Sent())
        connection.settimeout(60)
        try:
            while not self.ending.is_set():
                message = MESSAGE.pack(self.number, own, record.sent // SIZE)
                if select.select([connection], [], [], 1 / self.rate)[0] and not connection.recv(1):
                    break  # the logger has ended it
                connection.sendall(message)
                record.sent += SIZE
            else:
                connection.shutdown(socket.SHUT_WR)
                if connection.recv(1) == b"":  # it was stored, or else the logger was killed and stores it
                    record.acknowledged = record.sent - max(0, unacknowledged(connection) - 1)
                    return
        except OSError:
            record.sent += SIZE  # of the last message some part may have gone
        record.acknowledged = max(0, record.sent - SIZE - unacknowledged(connection))


class Chaos:
    """A logger to which it happens, on a disk of its own."""

    def __init__(self, site: Site, disk: Path) -> None:
        self.site, self._filler = site, disk / "filler"
        self._orphans: list[int] = []
        self.logger = Program(site, files=64)
        self.start()

    def start(self) -> None:
        self.logger = Program(self.site, files=64)
        self.logger.__enter__()

    def kill_worker(self) -> None:
        with suppress(ValueError, OSError):  # there is none just now
            os.kill(self.logger.worker, signal.SIGKILL)

    def kill_holder(self) -> None:
        """While a worker has the sockets, too: nothing is promised if both die at once."""
        wait_until(self._worker_has_all, 60)
        self._orphans.append(self.logger.worker)
        self.logger.__exit__()
        self.start()

    def _worker_has_all(self) -> bool:
        with suppress(ValueError, OSError):
            return sockets(self.logger.worker) >= sockets(self.logger.process.pid) - 1 > 1
        return False

    def stop_for_a_while(self) -> None:
        with suppress(ValueError, OSError):
            stopped = [self.logger.worker, self.logger.process.pid]
            for process in stopped:
                os.kill(process, signal.SIGSTOP)
            time.sleep(0.3)
            for process in stopped:
                os.kill(process, signal.SIGCONT)

    def fill_the_disk(self) -> None:
        with suppress(OSError), self._filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        time.sleep(0.5)
        self._filler.unlink()

    def end(self) -> int:
        """Everything is stored; the exit code."""
        for orphan in self._orphans:
            wait_until(lambda orphan=orphan: is_gone(orphan), 60)  # type: ignore[misc]
        self.logger.wait_for("listening")
        code = self.logger.stop()
        self.logger.__exit__()
        return code


def sockets(process: int) -> int:
    """How many it has: of the holder one listens, and of both one is the channel between them."""
    folder = Path(f"/proc/{process}/fd")
    return sum(str(each.readlink()).startswith("socket:") for each in folder.iterdir())


def is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts a small disk")
@pytest.mark.parametrize(("events", "rate"), [(4, 300.0), (200, 100.0)], ids=["short", "long"])
def test_what_is_acknowledged_is_stored_once_and_in_order(tmp_path: Path, events: int, rate: float) -> None:
    random = Random(11)
    with small_disk(tmp_path / "disk") as disk:
        site = Site(tmp_path, f"sqlite:///{disk}/midstream.db")
        chaos = Chaos(site, disk)
        sensors = [ChaosSensor(number, site.port, rate) for number in range(6)]
        try:
            chaos.logger.wait_for("listening")
            for sensor in sensors:
                sensor.start()
            kinds = [chaos.kill_worker, chaos.fill_the_disk, chaos.stop_for_a_while, chaos.kill_holder]
            for number in range(events):
                time.sleep(random.uniform(0.1, 0.4))
                kinds[number % 4 if number < 4 else random.randrange(4)]()
            chaos.logger.wait_for("listening")
            time.sleep(0.3)
        finally:
            for sensor in sensors:
                sensor.ending.set()
            for sensor in sensors:
                sensor.join(60)
            code = chaos.end()
        assert code == 0
        compare(site, sensors)


def compare(site: Site, sensors: list[ChaosSensor]) -> None:
    verify(site)
    stored: dict[tuple[int, int], list[int]] = {}
    places: dict[tuple[int, int], set[int]] = {}
    rows = site.query("SELECT connection_id, payload FROM messages ORDER BY connection_id, sequence")
    for connection, payload in rows:
        sensor, own, number = MESSAGE.unpack(payload)
        stored.setdefault((sensor, own), []).append(number)
        places.setdefault((sensor, own), set()).add(connection)
    assert all(len(found) == 1 for found in places.values())
    total = 0
    for sensor in sensors:
        for own, sent in enumerate(sensor.connections):
            numbers = stored.get((sensor.number, own), [])
            assert numbers == list(range(len(numbers)))  # once, and in order
            assert sent.acknowledged // SIZE <= len(numbers) <= sent.sent // SIZE
            total += len(numbers)
    assert total == len(rows) > 100
