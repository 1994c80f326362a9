"""NATS JetStream as the logger's database: a replicated log for a fleet of loggers and its readers.

For each connection there are three subjects below the stream's name; NAME is that of its kind of messages (a
stream of the sensors' in config.toml), the last part is the connection's token:

 STREAM.data.NAME.SENSOR.PORT.RUN.NUMBER         its messages
 STREAM.connections.NAME.SENSOR.PORT.RUN.NUMBER  JSON: what is known when it opens, and when it has ended
 STREAM.fragments.NAME.SENSOR.PORT.RUN.NUMBER    the beginning of a message that is not whole (yet)

A version that had one stream has published without NAME: that is read as of the stream called data. A
connection of it that goes on (by a spool) does so in its own subjects.

Messages are published in atomic batches (nats-server 2.12.1), the first of each subject with the number that
the subject's last message must have in the stream. So a batch is stored as a whole and in its place, or not,
and what a lost answer leaves open the stream itself tells. `Nats-Msg-Id` is the token and the offset.
"""

import json
import time
import uuid
from collections.abc import Collection, Mapping
from typing import Any

from nats.js.api import RawStreamMsg, StreamConfig
from nats.js.errors import APIError, NotFoundError

from midstream.closing import Closing
from midstream.config import DATA
from midstream.errors import StoreError
from midstream.nats_url import EXPECTED
from midstream.storage.formats import ONE_STREAM, Formats
from midstream.storage.nats_servers import ADVICE, API_TIMEOUT, VERSION, NatsServers, address
from midstream.storage.published import (
    BATCH_MESSAGES,
    HEADERS_SIZE,
    PLACE,
    Item,
    Published,
    batches,
)
from midstream.storage.store import Batch, ConnectionRow, Position, Unavailable
from midstream.told import OPEN, ArrivalTimes, Forgotten, HeldConnection, Pending

ANSWER_TIMEOUT = 5.0  # seconds for a batch
_NOT_CLUSTERED, _NO_PEERS = 10074, 10005  # err_code: one server and replicas > 1; servers are missing
SELDOM = 60.0  # seconds after which it is published again how far an open connection is held
DUPLICATE_WINDOW = 120.0  # seconds in which the server remembers message ids


class JetStreamStore(Closing):
    """The stream that a nats:// URL names; it is made if it is missing."""

    def __init__(self, url: str, *, streams: Formats = ONE_STREAM) -> None:
        """streams: those that there may be messages of. StoreError if the servers do not take them."""
        self._address = address(url)
        self._streams = streams
        self._published = Published(self._address.stream, streams)
        self._said: dict[str, float] = {}  # when that of an open connection was last published
        self._unsaid: dict[str, HeldConnection] = {}
        self._last: dict[str, int] = {}  # stream sequence of each subject's last message
        self._servers = NatsServers(self._address)
        try:
            self._servers.connect()
            self._servers.run(self._open())
        except (StoreError, Unavailable):
            self.close()
            raise

    def resume(self, rows: Collection[ConnectionRow]) -> Mapping[str, Position]:
        return self._servers.run(self._resume(rows))

    def find(self, row: ConnectionRow) -> ConnectionRow | None:
        return self._servers.run(self._find(row))

    def note_forgotten(self, holes: Collection[Forgotten]) -> None:
        self._servers.run(self._note_forgotten(holes))

    def note_held(
        self,
        streams: Collection[HeldConnection],
        waiting: Collection[Pending] | None,
        arrivals: Collection[ArrivalTimes] = (),
    ) -> None:
        self._servers.run(self._note_held(streams, waiting, arrivals))

    def write(self, batch: Batch) -> int:
        return self._servers.run(self._write(batch))

    def close(self) -> None:
        self._servers.close()

    async def _open(self) -> None:
        manager = self._servers.client.jsm(timeout=API_TIMEOUT)
        name = self._address.stream
        try:
            try:
                config = (await manager.stream_info(name)).config
            except NotFoundError:
                config = (await manager.add_stream(self._stream())).config
        except APIError as error:
            told = f"{self._address.name}: {error.description}. What to do: "
            if error.err_code == _NOT_CLUSTERED or (error.code == 400 and error.err_code != _NO_PEERS):
                raise StoreError(f"{told}name another stream, or other replicas. {EXPECTED}") from error
            raise Unavailable(f"{told}{ADVICE}") from error
        self._servers.check(config)
        if not config.allow_atomic:
            raise StoreError(
                f"{self._address.name}: the server has no atomic batches. Install nats-server 2.12.1 or "
                f"newer, and remove the stream {name}, which an older one has made"
            )

        self._refuse_too_long(config)

    def _refuse_too_long(self, config: StreamConfig) -> None:
        limits = {"max_payload": self._servers.client.max_payload, "max_msg_size": config.max_msg_size or -1}
        name, most = min(limits.items(), key=lambda each: each[1] if each[1] > 0 else float("inf"))
        room = most - HEADERS_SIZE
        for stream, known in self._streams.items():
            what, needed, advice = "a message (size)", known.size, "choose shorter messages"
            if known.fixed_size is None:
                what, advice = "the longest message (max_size)", f"set max_size = {room}"
            if self._published.opening_size(stream) > room:
                what, needed = "the description of the fields (field)", self._published.opening_size(stream)
                advice = "name fewer fields"
            if needed > room:
                raise StoreError(
                    f"{self._address.name}: {what} of the stream {stream} has {needed} bytes, and {name} of "
                    f"the server or stream leaves room for {room}. What to do: {advice}, or raise {name}"
                )
        self._published.piece = room

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
            found = await self._last_message(self._published.subject("connections", row))
            event = json.loads(found.data or b"{}") if found is not None else None
            position = await self._position(row, event)
            if position is not None:
                positions[row.token] = position
        return positions

    async def _find(self, row: ConnectionRow) -> ConnectionRow | None:
        """The events of all connections of this stream from this port of this sensor are looked at."""
        forms = (False, True) if row.stream == DATA else (False,)
        for nameless in forms:
            own = await self._message(self._published.subject("connections", row, nameless=nameless))
            if own is not None:
                return self._row(own, nameless)
        found: dict[str, ConnectionRow] = {}
        for nameless in forms:
            subject = self._published.subject("connections", row, "*.*", nameless=nameless)
            number = 1
            while row.first is not None and (event := await self._message(subject, number)) is not None:
                known = self._row(event, nameless)
                if known.first == row.first:
                    found[known.token] = known
                number = (event.seq or number) + 1
        return min(found.values(), key=lambda known: abs(known.opened_ns - row.opened_ns), default=None)

    def _row(self, message: RawStreamMsg, nameless: bool) -> ConnectionRow:
        """What an event says of its connection."""
        event = json.loads(message.data or b"{}")
        if nameless:
            self._published.nameless.add(event["token"])
        return ConnectionRow(
            token=event["token"],
            sensor=event["sensor"],
            port=event["port"],
            opened_ns=event["opened_ns"],
            first=event.get("first"),
            spooled=bool(event.get("spooled")),
            id=0,
            closed_ns=event.get("closed_ns"),
            size=event.get("bytes") or 0,
            digest=event.get("digest"),
            reset=bool(event.get("reset")),
            reason=event.get("reason", ""),
            stream=event.get("stream", DATA),
        )

    async def _note_forgotten(self, holes: Collection[Forgotten]) -> None:
        for hole in holes:
            item = self._published.hole(hole)
            known = await self._last_message(item.subject)
            if known is None or json.loads(known.data or b"{}")["messages"] < hole.messages:
                await self._publish([item])

    async def _note_held(
        self,
        streams: Collection[HeldConnection],
        waiting: Collection[Pending] | None,
        arrivals: Collection[ArrivalTimes],
    ) -> None:
        """How far an open connection is held now and then: whatever is published stays."""
        now, items = time.monotonic(), [self._published.arrivals(told) for told in arrivals]
        if waiting is not None:
            items.append(self._published.waiting(waiting))
        for stream in streams:
            item = self._published.held(stream)
            self._unsaid[item.subject] = stream
        for subject, stream in list(self._unsaid.items()):
            if stream.state != OPEN or now >= self._said.get(subject, float("-inf")) + SELDOM:
                items.append(self._published.held(stream))
        for item in items:
            await self._last_message(item.subject)
        for start in range(0, len(items), BATCH_MESSAGES):
            await self._publish(items[start : start + BATCH_MESSAGES])
        for item in items:
            self._last.pop(item.subject, None)
            stream_said = self._unsaid.pop(item.subject, None)
            if stream_said is not None and stream_said.state == OPEN:
                self._said[item.subject] = now
            else:
                self._said.pop(item.subject, None)

    async def _position(self, row: ConnectionRow, event: dict[str, Any] | None) -> Position | None:
        """None if nothing is known. The stream's limits may have removed the opening, and left messages."""
        last = await self._last_message(self._published.subject("data", row))
        if event is None and last is None:
            return None
        sequence = offset = 0
        if last is not None:
            before, start, _ = map(int, _header(last)[PLACE].split())
            sequence, offset = before + 1, start + len(last.data or b"") + self._streams[row.stream].frame
        fragments = self._published.subject("fragments", row)
        await self._last_message(fragments)
        head, number = b"", 1
        while (found := await self._message(fragments, number)) is not None:
            if int(_header(found)[PLACE]) >= offset:
                head += found.data or b""
            number = found.seq + 1 if found.seq is not None else number
        closed = event is not None and event["state"] == "closed"
        size = event["bytes"] if event is not None and closed else 0
        return Position(0, sequence, max(offset + len(head), size), head, closed=closed)

    async def _last_message(self, subject: str) -> RawStreamMsg | None:
        """A subject's last message; what is expected of the next one is noted."""
        message = await self._message(subject)
        self._last[subject] = message.seq if message is not None and message.seq else 0
        return message

    async def _message(self, subject: str, number: int | None = None) -> RawStreamMsg | None:
        """The last message of a subject, or the first that has this or a higher number in the stream."""
        try:
            return await self._servers.client.jsm(timeout=API_TIMEOUT).get_msg(
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
                await self._servers.client.jsm(timeout=API_TIMEOUT).purge_stream(
                    self._address.stream, subject=subject
                )
                self._last[subject] = 0
        for row in batch.closed:
            for kind in ("data", "connections", "fragments"):
                self._last.pop(self._published.subject(kind, row), None)
        return commits

    async def _publish(self, items: list[Item]) -> None:
        """Have a batch stored, as a whole. Unavailable if it is not, or not known to be."""
        client, name = self._servers.client, uuid.uuid4().hex
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
            raise Unavailable(f"{self._address.name}: {reason}. What to do: {ADVICE}")
        for subject, index in seen.items():
            self._last[subject] = result["seq"] - (len(items) - 1 - index)


def _header(message: RawStreamMsg) -> Mapping[str, str]:
    return message.headers or {}
