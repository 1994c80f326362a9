"""A hardworker's spool, a logger that takes it, and what both have."""

import itertools
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from sqlalchemy import URL
from tests.support.exchanges import KEY
from tests.support.site import SIZE

from midstream.config import Config
from midstream.framing import Framing
from midstream.logger.backfill import Sender
from midstream.logger.exchange import Exchange, handlers
from midstream.network import load
from midstream.storage.databases import open_log
from midstream.storage.formats import StreamFormat, formats
from midstream.storage.sql import SqlStore
from midstream.storage.store import FRAME, Batch, ConnectionRow, Piece

Facts = tuple[int | None, int | None, str | None, bool, str, bytes]
Rows = list[tuple[int, int, int | None, int | None, bytes]]

NEVER: Callable[[float], bool] = threading.Event().wait
"""To be told to stop: it waits as long as is asked for."""


def payloads(count: int, size: int = SIZE) -> list[bytes]:
    return [number.to_bytes(4, "little") * (size // 4) for number in range(count)]


def batch(
    row: ConnectionRow,
    some: Sequence[bytes],
    *,
    sequence: int = 0,
    offset: int = 0,
    framing: Framing = "fixed",
) -> Batch:
    """The next messages of a connection, which is opened if it has no id; each came a microsecond later."""
    times = [row.opened_ns + 1000 * (sequence + index) for index in range(len(some))]
    piece = Piece(row, sequence, offset, list(some), times, FRAME[framing])
    return Batch(opened=[row] if row.id is None else [], pieces=[piece] if some else [], messages=len(some))


def ended(row: ConnectionRow, size: int, *, unfinished: bytes = b"", digest: str | None = None) -> Batch:
    row.closed_ns, row.size, row.reason = row.opened_ns + 10**9, size, "end of stream"
    row.unfinished, row.digest = unfinished, digest
    return Batch(opened=[row] if row.id is None else [], closed=[row])


def opening(number: int, *, first: int | None = None, port: int = 40000) -> ConnectionRow:
    """As a spool's logger names it."""
    return ConnectionRow(f"aa.{number}", "10.83.0.11", port, 10**18 + number * 10**9, first, True)


def spool(config: Config) -> SqlStore:
    assert config.spool_path
    url = URL.create("sqlite", database=str(config.spool_path))
    return SqlStore(url, batch_size=4096, streams=streams(config, as_bytes=True))


def streams(config: Config, *, as_bytes: bool = False) -> dict[str, StreamFormat]:
    """As config.toml and const.toml say."""
    return formats(config, load(config.const_path), as_bytes=as_bytes)


def contents(url: str) -> dict[tuple[str, int, int], tuple[Facts, Rows]]:
    """What a database has, by sensor, port and when the connection opened."""
    found = {}
    with open_log(url) as log:
        for each in log.connections():
            rows: Rows = []
            following = 0
            while True:
                some, following = log.piece(each, following, 1 << 40)
                rows += [(one.sequence, one.received_ns, one.offset, one.crc, one.payload) for one in some]
                if following == 1 << 40:
                    break
            facts = (each.closed_ns, each.size, each.digest, each.reset, each.reason, each.unfinished)
            key = (each.sensor, each.port, each.opened_ns)
            assert key not in found, "a connection is there twice"
            found[key] = facts, rows
    return found


class Receiving(threading.Thread):
    """The logger's part that hardworkers speak with, in a thread of this process."""

    def __init__(self, config: Config, address: str = "127.0.0.1") -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server((address, config.logger.replay_port))
        self._exchange = Exchange(KEY, handlers(config, streams(config)))

    def run(self) -> None:
        with suppress(OSError):
            self._exchange.serve(self.listener)

    def __enter__(self) -> "Receiving":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.join()
        self.listener.close()


class Cutting(threading.Thread):
    """Passes on what a sender says, on another port, and ends each connection after so many bytes."""

    def __init__(self, port: int, limits: Sequence[int]) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self._to, self._limits = port, itertools.chain(limits, itertools.repeat(1 << 40))

    def run(self) -> None:
        with suppress(OSError):
            while True:
                accepted, _ = self.listener.accept()
                with accepted, socket.create_connection(("127.0.0.1", self._to)) as other:
                    self._pass(accepted, other, next(self._limits))

    def _pass(self, one: socket.socket, other: socket.socket, limit: int) -> None:
        back = threading.Thread(target=_copy, args=(other, one, 1 << 40))
        back.start()
        _copy(one, other, limit)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        back.join()

    def __enter__(self) -> "Cutting":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.join()
        self.listener.close()


def _copy(source: socket.socket, sink: socket.socket, limit: int) -> None:
    with suppress(OSError):
        while limit > 0 and (data := source.recv(min(limit, 1 << 16))):
            sink.sendall(data)
            limit -= len(data)


def drain(config: Config, said: list[str] | None = None, loggers: Sequence[str] = ("127.0.0.1",)) -> None:
    """Send all that is there."""
    told = [] if said is None else said
    Sender(config, lambda: loggers, told.append).run(NEVER, drain=True)
