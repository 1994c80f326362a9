"""A logger on loopback, and what its database must say."""

import hashlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text

from midstream.logger import Logger, LoggerSummary, server
from midstream.logger.__main__ import work
from midstream.logger.holder import Child
from midstream.network import Host, SensorStream, Topology, write
from midstream.storage.store import checksum

SIZE = 32
TOS = 104


class Site:
    """A folder with config.toml, const.toml and the database, and a free port on loopback.

    Of a logger; or with `spool` of a hardworker's spool, whose sensor is who connects. streams: as const.toml
    names them, but for their ports, which are free ones.
    """

    def __init__(
        self, folder: Path, url: str = "", *, spool: bool = False, streams: Sequence[SensorStream] = ()
    ) -> None:
        self.folder = folder
        self.url = url or f"sqlite:///{folder}/midstream.db"
        self.spool = spool
        sensor, hardworker, logger = (
            Host(IPv4Address(f"127.0.0.{n}"), f"02:00:00:00:00:{n:02x}")
            for n in ((1, 2, 12) if spool else (11, 2, 1))
        )
        self.address = str((hardworker if spool else logger).ip)
        with ExitStack() as opened:
            probes = [
                opened.enter_context(socket.create_server((self.address, 0)))
                for _ in range(max(1, len(streams)))
            ]
            ports = [int(probe.getsockname()[1]) for probe in probes]
        self.port = ports[0]
        self.streams = {
            each.name: replace(each, port=port) for each, port in zip(streams, ports, strict=False)
        }
        self.topology = Topology(
            (sensor,),
            hardworker,
            logger,
            tos=TOS,
            port=self.port,
            mtu=1500,
            size=streams[0].size if streams else SIZE,
            streams=tuple(self.streams.values()),
        )
        write(folder / "const.toml", self.topology, "a test")
        self.configure()

    def configure(
        self,
        *,
        framing: str = "fixed",
        max_size: int = 1 << 20,
        interval: float = 0.02,
        logger: str = "",
        hardworker: str = "spool_free = 0\n",
    ) -> None:
        target, spool = ("hardworker", make_url(self.url).database) if self.spool else ("logger", "spool.db")
        data = "" if self.streams else f'[data]\nframing = "{framing}"\nmax_size = {max_size}\n'
        (self.folder / "config.toml").write_text(
            f'[sensor]\ntarget = "{target}"\n'
            f'[hardworker]\nspool = "{spool}"\n{hardworker}'
            f"{data}"
            f'[logger]\ndatabase = "{self.url}"\nbatch_interval = {interval}\n{logger}'
        )

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    def connect(self, stream: str = "", source: tuple[str, int] | None = None) -> socket.socket:
        """To the port of that stream, or of the first. source: an address and port that others have too."""
        port = self.streams[stream].port if stream else self.port
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if source:
            client.bind(source)
        client.settimeout(60)
        try:
            client.connect((self.address, port))
        except OSError:
            client.close()
            raise
        return client

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        engine = create_engine(self.url)
        try:
            with engine.connect() as database:
                return [tuple(row) for row in database.execute(text(statement))]
        finally:
            engine.dispose()

    def execute(self, statement: str) -> None:
        engine = create_engine(self.url)
        try:
            with engine.begin() as database:
                database.execute(text(statement))
        finally:
            engine.dispose()

    def wait_for(self, statement: str, expected: list[tuple[Any, ...]]) -> None:
        wait_until(lambda: self.query(statement) == expected)


class Serving(threading.Thread):
    """A logger that serves in a thread until the `with` block ends."""

    def __init__(
        self,
        config: Path,
        *,
        spool: bool = False,
        doors: Sequence[int] = (),
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        super().__init__()
        self.logger = Logger(config, spool=spool, doors=doors, tell=tell)
        self.summary = LoggerSummary()
        self.error: Exception | None = None
        self._stop_requested = threading.Event()

    def __enter__(self) -> "Serving":
        self.logger.__enter__()
        self.start()
        return self

    def run(self) -> None:
        try:
            self.summary = self.logger.serve(self._stop_requested.is_set)
        except Exception as error:
            self.error = error

    @staticmethod
    def lets_in(site: Site) -> bool:
        """Can a sensor connect?"""
        try:
            site.connect().close()
        except ConnectionRefusedError:
            return False
        return True

    def has(self, **counts: int) -> bool:
        """Does its summary say so by now?"""
        summary = asdict(self.logger.summary)
        return summary == summary | counts

    def stop(self) -> None:
        self._stop_requested.set()
        self.join(60)
        assert not self.is_alive()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.logger.close()


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class ThreadWorker(threading.Thread):
    """A worker in a thread of this process, which starts at once. It cannot be killed."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__()
        self._channel = channel.dup()
        self.start()

    def run(self) -> None:
        with self._channel:
            work(self._channel)

    def wait(self, timeout: float | None = None) -> int:
        self.join(timeout)
        return 0

    def kill(self) -> None:
        pass


class Workers:
    """The worker processes that loggers start, while `monkeypatch` lives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[Child] = []
        self._killed = 0
        start = server._start_worker

        def start_and_remember(channel: socket.socket) -> Child:
            worker = start(channel)
            self.started.append(worker)
            return worker

        monkeypatch.setattr(server, "_start_worker", start_and_remember)

    def kill(self) -> None:
        """kill -9 a worker that was not killed before: the one that works now, or the next."""
        wait_until(lambda: len(self.started) > self._killed)
        self._killed = len(self.started)
        self.started[-1].kill()


def verify(site: Site, frame: int = 0) -> dict[tuple[str, int], str]:
    """Every connection's messages follow each other without a gap and bear their checksums.

    Returns the SHA-256 of each stream, made from the messages; `frame` is what each has besides its payload.
    """
    digests = {}
    for key, sensor, port, size, digest, unfinished in site.query(
        "SELECT id, sensor, port, bytes, digest, unfinished FROM connections"
    ):
        stream, offset = hashlib.sha256(), 0
        rows = site.query(
            "SELECT sequence, stream_offset, received_ns, payload, crc FROM messages "
            f"WHERE connection_id = {key} ORDER BY sequence"
        )
        for number, (sequence, start, received, payload, crc) in enumerate(rows):
            assert (sequence, start) == (number, offset)
            assert crc == checksum(sequence, start, received, payload)
            framed = {0: payload, 1: payload + b"\n", 4: len(payload).to_bytes(4, "big") + payload}[frame]
            stream.update(framed)
            offset += len(framed)
        if size is not None:
            stream.update(unfinished or b"")
            assert offset + len(unfinished or b"") == size
            assert digest in (None, stream.hexdigest())
        digests[sensor, port] = stream.hexdigest()
    assert site.query("SELECT count(*) FROM fragments") == [(0,)]
    return digests
