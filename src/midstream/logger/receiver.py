"""Connections to stored messages: every connection is framed, and its messages are committed in batches.

One event loop receives; a thread commits. While one batch is being committed the next one fills; when that is
full too, nothing more is read from any socket, TCP's windows close and the sensors wait: memory stays bounded
and nothing is dropped.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from midstream.errors import FramingError, StoreError
from midstream.framing import Decoder
from midstream.logger.store import Batch, ConnectionRow, Store

MAX_BATCH_BYTES = 16 << 20  # payload in a batch: batch_size alone would let long messages fill the memory
POLL = 0.05  # seconds between two looks at `stop`
STOPPED = "the logger was stopped"  # the reason in the row of a connection that we end
DRAIN_SECONDS = 0.5  # most time after a stop for reading what the kernel has acknowledged already


@dataclass(slots=True)
class LoggerSummary:
    connections: int = 0  # accepted
    messages: int = 0  # committed
    bytes: int = 0  # received, frames included
    commits: int = 0  # transactions
    unfinished: int = 0  # connections that ended inside a message
    resets: int = 0  # connections that ended by a reset or a time-out instead of a FIN
    framing_errors: int = 0  # connections closed because their bytes do not follow the framing
    seconds: float = 0.0  # of serving


class Receiver:
    """The peers of a listener and the batch that their messages wait in. Counts into `summary`."""

    def __init__(
        self,
        store: Store,
        new_decoder: Callable[[], Decoder],
        summary: LoggerSummary,
        *,
        batch_interval: float,
        batch_size: int,
    ) -> None:
        self._store = store
        self._new_decoder = new_decoder
        self._summary = summary
        self._batch_interval = batch_interval
        self._batch_size = batch_size
        self._peers: set[_Peer] = set()
        self._batch = Batch()
        self._ended: list[_Peer] = []  # their ends are in the batch: closed when it is committed
        self._work = asyncio.Event()  # the batch holds something
        self._full = asyncio.Event()  # the batch must not wait for batch_interval
        self._paused = False
        self._stopping = False
        self._fault: BaseException | None = None

    def new_peer(self) -> asyncio.Protocol:
        """The protocol of a connection that was accepted."""
        return _Peer(self, self._new_decoder())

    async def run(
        self, server: asyncio.AbstractServer, stop: Callable[[], bool] | None, seconds: float
    ) -> None:
        """Store what the peers bring until `stop()` or for `seconds`; then close the server, end every
        connection and commit. StoreError if a commit fails.
        """
        asyncio.get_running_loop().set_exception_handler(self._callback_failed)
        writer = asyncio.create_task(self._write_batches())
        try:
            await self._until(stop, time.monotonic() + seconds, writer)
            await self._drain(writer)
        finally:
            server.close()
            self._stopping = True
            for peer in self._peers:
                peer.end(STOPPED)
            self._work.set()
            self._full.set()
            try:
                await writer
            finally:
                for peer in self._peers:
                    peer.close()
        if self._fault is not None:
            raise self._fault

    def opened(self, peer: "_Peer") -> None:
        self._summary.connections += 1
        self._peers.add(peer)
        self._batch.opened.append(peer.row)
        self._work.set()
        if self._stopping:  # it was being accepted when the server closed
            peer.end(STOPPED)
        elif self._paused:
            peer.pause()

    def received(self, row: ConnectionRow, sequence: int, messages: list[bytes], size: int) -> None:
        """Take `size` bytes of a stream and the messages they completed, numbered from `sequence`."""
        self._summary.bytes += size
        if not messages:
            return
        now = time.time_ns()
        batch = self._batch
        batch.messages.extend((row, sequence + index, now, payload) for index, payload in enumerate(messages))
        batch.payload_bytes += sum(map(len, messages))
        self._work.set()
        if len(batch.messages) >= self._batch_size or batch.payload_bytes >= MAX_BATCH_BYTES:
            self._full.set()
            self._pause()

    def ended(self, peer: "_Peer") -> None:
        self._summary.unfinished += bool(peer.row.unfinished)
        self._summary.resets += peer.row.reset
        self._summary.framing_errors += peer.broken
        self._batch.closed.append(peer.row)
        self._ended.append(peer)
        self._work.set()

    def gone(self, peer: "_Peer") -> None:
        self._peers.discard(peer)

    async def _until(
        self, stop: Callable[[], bool] | None, deadline: float, writer: asyncio.Task[None]
    ) -> None:
        """Return when asked to stop, when the time is over, or when nothing can be stored any more."""
        while not (writer.done() or self._fault or (stop is not None and stop())):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            await asyncio.wait({writer}, timeout=min(POLL, left))

    async def _drain(self, writer: asyncio.Task[None]) -> None:
        """Read until no more comes, or for DRAIN_SECONDS: bytes in the kernel are acknowledged."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline and not writer.done():
            before = self._summary.bytes
            await asyncio.wait({writer}, timeout=POLL)
            if self._summary.bytes == before and not self._paused:
                return

    async def _write_batches(self) -> None:
        while True:
            await self._work.wait()
            try:
                async with asyncio.timeout(self._batch_interval):
                    await self._full.wait()
            except TimeoutError:
                pass
            if not self._batch:
                return  # only a stop wakes the writer without work
            batch, self._batch = self._batch, Batch()
            ended, self._ended = self._ended, []
            if not self._stopping:
                self._work.clear()
                self._full.clear()
            self._resume()
            try:
                self._summary.commits += await asyncio.to_thread(self._store.write, batch)
            except StoreError as error:
                self._pause()  # from here on TCP must not acknowledge what nobody will store
                lost = len(batch.messages) + len(self._batch.messages)
                raise StoreError(f"{error}. Up to {lost} received messages were not stored") from error
            self._summary.messages += len(batch.messages)
            for peer in ended:
                peer.close()

    def _callback_failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A failed accept (no descriptor left; asyncio tries again) is a warning; all else is fatal."""
        error = context.get("exception")
        if isinstance(error, OSError):
            logging.getLogger(__name__).warning("%s: %s", context["message"], error.strerror)
        else:
            self._fault = self._fault or error or RuntimeError(context["message"])

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            for peer in self._peers:
                peer.pause()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            for peer in self._peers:
                peer.resume()


class _Peer(asyncio.Protocol):
    """One connection. Closed only after its end is committed: our FIN tells the sensor that all is stored."""

    def __init__(self, receiver: Receiver, frames: Decoder) -> None:
        self._receiver = receiver
        self._decoder = frames
        self._digest = hashlib.sha256()
        self._sequence = 0
        self._over = False
        self.broken = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sensor, port = transport.get_extra_info("peername")
        self.row = ConnectionRow(sensor=sensor, port=port, opened_ns=time.time_ns())
        self._receiver.opened(self)

    def data_received(self, data: bytes) -> None:
        self._digest.update(data)
        self.row.size += len(data)
        try:
            messages = self._decoder.feed(data)
        except FramingError:
            messages = []  # the fault is in decoder.error, also when whole messages came before it
        self._receiver.received(self.row, self._sequence, messages, len(data))
        self._sequence += len(messages)
        if self._decoder.error is not None:
            self.broken = True
            self.end(str(self._decoder.error))

    def eof_received(self) -> bool:
        self.end("end of stream")
        return True  # keep it open until the end is committed

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self.end(str(error), reset=True)
        self._receiver.gone(self)

    def end(self, reason: str, *, reset: bool = False) -> None:
        """Nothing more is read from this connection; its row is complete. Only the first reason counts."""
        if self._over:
            return
        self._over = True
        self._transport.pause_reading()
        self.row.closed_ns = time.time_ns()
        self.row.digest = self._digest.hexdigest()
        self.row.reason = reason
        self.row.reset = reset
        self.row.unfinished = self._decoder.unfinished
        self._receiver.ended(self)

    def pause(self) -> None:
        if not self._over:
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self._over:
            self._transport.resume_reading()

    def close(self) -> None:
        self._transport.close()
