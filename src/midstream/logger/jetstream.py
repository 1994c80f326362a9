"""NATS JetStream as the logger's database: a replicated log for a fleet of loggers and its readers.

For each connection there are three subjects below the stream's name; the last part is the connection's token:

 STREAM.data.SENSOR.PORT.RUN.NUMBER         its messages
 STREAM.connections.SENSOR.PORT.RUN.NUMBER  JSON: what is known when it opens, and when it has ended
 STREAM.fragments.SENSOR.PORT.RUN.NUMBER    the beginning of a message that is not whole yet, or never will be

Messages are published in atomic batches (nats-server 2.12.1), the first of each subject with the number that
the subject's last message must have in the stream. So a batch is stored as a whole and in its place, or not,
and what a lost answer leaves open the stream itself tells. `Nats-Msg-Id` is the token and the offset.
"""

import asyncio
import json
import random
import threading
import uuid
from collections.abc import Collection, Coroutine, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import RawStreamMsg, StreamConfig
from nats.js.errors import APIError, NotFoundError

from midstream.errors import StoreError
from midstream.framing import Framing
from midstream.logger.nats_url import EXPECTED, NatsUrl
from midstream.logger.published import HEADERS_SIZE, PLACE, Item, Published, batches
from midstream.logger.store import FRAME, Batch, ConnectionRow, Position, Unavailable

if TYPE_CHECKING:
    from midstream.fields import Layout

VERSION = 1  # of subjects, headers and JSON; in the stream's metadata
CONNECT_TIMEOUT = 2.0  # seconds for each server
API_TIMEOUT = 2.0  # seconds for a question to the stream
ANSWER_TIMEOUT = 5.0  # seconds for a batch
DUPLICATE_WINDOW = 120.0  # seconds in which the server remembers message ids


_ADVICE = "see that the servers run, most of the stream's replicas among them, and have room"

_Result = TypeVar("_Result")


class JetStreamStore:
    """The stream that a nats:// URL names; it is made if it is missing."""

    def __init__(self, url: str, *, framing: Framing = "fixed", layout: "Layout | None" = None) -> None:
        self._address = NatsUrl.parse(url)
        self._framing = framing
        described = layout.describe() if layout is not None else None
        self._published = Published(self._address.stream, framing, described)
        self._last: dict[str, int] = {}  # stream sequence of each subject's last message
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="midstream-nats", daemon=True)
        self._thread.start()
        self._client: Client | None = None
        try:
            self._run(self._open())
        except (StoreError, Unavailable):
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def resume(self, rows: Collection[ConnectionRow]) -> Mapping[str, Position]:
        return self._run(self._resume(rows))

    def write(self, batch: Batch) -> int:
        return self._run(self._write(batch))

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        if self._client is not None:
            client, self._client = self._client, None
            with suppress(NatsError, OSError, TimeoutError):
                asyncio.run_coroutine_threadsafe(client.close(), self._loop).result(CONNECT_TIMEOUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Do it in the loop's thread, which answers the server's pings in between too."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except (NatsError, OSError, TimeoutError) as error:
            reason = str(error) or "no answer"
            raise Unavailable(
                f"{self._address.name}: {reason.removeprefix('nats: ')}. What to do: {_ADVICE}"
            ) from error

    @property
    def _open_client(self) -> Client:
        assert self._client is not None
        return self._client

    async def _open(self) -> None:
        self._client = await self._connect()
        manager = self._client.jsm(timeout=API_TIMEOUT)
        name = self._address.stream
        try:
            try:
                config = (await manager.stream_info(name)).config
            except NotFoundError:
                config = (await manager.add_stream(self._stream())).config
        except APIError as error:
            raise Unavailable(f"{self._address.name}: {error.description}. What to do: {_ADVICE}") from error
        version = (config.metadata or {}).get("midstream")
        if version is None:
            raise StoreError(
                f"{self._address.name}: the stream {name} is not midstream's. "
                "Name another one ([logger] database)"
            )
        if int(version) > VERSION:
            raise StoreError(
                f"{self._address.name}: the stream {name} has version {version}, and this midstream knows "
                f"those up to {VERSION}. Install the newer midstream, or name another stream"
            )
        if not config.allow_atomic:
            raise StoreError(
                f"{self._address.name}: the server has no atomic batches. Install nats-server 2.12.1 or "
                f"newer, and remove the stream {name}, which an older one has made"
            )

    async def _connect(self) -> Client:
        """Connect to any of the servers. No reconnecting in the background: a failure shall be noticed."""
        failures = []
        for server in random.sample(self._address.servers, len(self._address.servers)):
            try:
                return await nats.connect(
                    server,
                    allow_reconnect=False,
                    connect_timeout=CONNECT_TIMEOUT,
                    max_reconnect_attempts=1,  # by default even the first connection is tried for minutes
                    reconnect_time_wait=0.05,
                    error_cb=_ignore,
                )
            except (NatsError, OSError, TimeoutError) as error:
                failures.append(error)
        if any("authorization" in str(error).lower() for error in failures):
            raise StoreError(f"{self._address.name}: the servers refuse user or password. {EXPECTED}")
        raise failures[-1]

    def _stream(self) -> StreamConfig:
        return StreamConfig(
            name=self._address.stream,
            description="midstream: the messages of sensors",
            subjects=[f"{self._address.stream}.>"],
            num_replicas=self._address.replicas,
            duplicate_window=DUPLICATE_WINDOW,
            allow_atomic=True,
            allow_direct=True,
            metadata={"midstream": str(VERSION)},
        )

    async def _resume(self, rows: Collection[ConnectionRow]) -> dict[str, Position]:
        positions = {}
        for row in rows:
            event = await self._last_message(self._published.subject("connections", row))
            if event is not None:
                positions[row.token] = await self._position(row, json.loads(event.data or b"{}"))
        return positions

    async def _position(self, row: ConnectionRow, event: dict[str, Any]) -> Position:
        last = await self._last_message(self._published.subject("data", row))
        sequence = offset = 0
        if last is not None:
            before, start, _ = map(int, _header(last)[PLACE].split())
            sequence, offset = before + 1, start + len(last.data or b"") + FRAME[self._framing]
        if event["state"] == "closed":
            return Position(0, sequence, event["bytes"], closed=True)
        fragments = self._published.subject("fragments", row)
        await self._last_message(fragments)
        head, number = b"", 1
        while (found := await self._message(fragments, number)) is not None:
            if int(_header(found)[PLACE]) >= offset:
                head += found.data or b""
            number = found.seq + 1 if found.seq is not None else number
        return Position(0, sequence, offset + len(head), head)

    async def _last_message(self, subject: str) -> RawStreamMsg | None:
        """A subject's last message; what is expected of the next one is noted."""
        message = await self._message(subject)
        self._last[subject] = message.seq if message is not None and message.seq else 0
        return message

    async def _message(self, subject: str, number: int | None = None) -> RawStreamMsg | None:
        """The last message of a subject, or the first that has this or a higher number in the stream."""
        try:
            return await self._open_client.jsm(timeout=API_TIMEOUT).get_msg(
                self._address.stream, subject=subject, seq=number, next=number is not None
            )
        except NotFoundError:
            return None

    async def _write(self, batch: Batch) -> int:
        commits = 0
        for items in batches(self._published.items(batch)):
            await self._publish(items)
            commits += 1
        for row in batch.completed:
            subject = self._published.subject("fragments", row)
            if row.closed_ns is None or not row.unfinished:
                await self._open_client.jsm(timeout=API_TIMEOUT).purge_stream(
                    self._address.stream, subject=subject
                )
                self._last[subject] = 0
        for row in batch.closed:
            for kind in ("data", "connections", "fragments"):
                self._last.pop(self._published.subject(kind, row), None)
        return commits

    async def _publish(self, items: list[Item]) -> None:
        """Have a batch stored, as a whole. Unavailable if it is not, or not known to be."""
        client, name = self._open_client, uuid.uuid4().hex
        for item in items:
            if len(item.payload) + HEADERS_SIZE > client.max_payload:
                raise StoreError(
                    f"{self._address.name}: a message of {len(item.payload)} bytes, and the server takes "
                    f"{client.max_payload} with its headers: raise max_payload there"
                )
        seen: dict[str, int] = {}
        for index, item in enumerate(items):
            item.headers["Nats-Batch-Id"] = name
            item.headers["Nats-Batch-Sequence"] = str(index + 1)
            if item.subject not in seen:
                item.headers["Nats-Expected-Last-Subject-Sequence"] = str(self._last.get(item.subject, 0))
            seen[item.subject] = index
            if index < len(items) - 1:
                await client.publish(item.subject, item.payload, headers=item.headers)
        item.headers["Nats-Batch-Commit"] = "1"
        answer = await client.request(
            item.subject, item.payload, timeout=ANSWER_TIMEOUT, headers=item.headers
        )
        result = json.loads(answer.data)
        if "error" in result:
            reason = result["error"].get("description", "refused")
            raise Unavailable(f"{self._address.name}: {reason}. What to do: {_ADVICE}")
        for subject, index in seen.items():
            self._last[subject] = result["seq"] - (len(items) - 1 - index)


def _header(message: RawStreamMsg) -> Mapping[str, str]:
    return message.headers or {}


async def _ignore(_: Exception) -> None:
    """What goes wrong shows in the answer that does not come."""
