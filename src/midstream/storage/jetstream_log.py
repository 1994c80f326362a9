"""The log in a JetStream: the messages of one connection piece by piece.

Nothing is kept on the servers for a reader, which asks for each piece anew: see `stream`.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from midstream.closing import Closing
from midstream.errors import StoreError
from midstream.storage.formats import NO_STREAMS, Formats, StreamFormat
from midstream.storage.published import PLACE, arrivals_subject
from midstream.storage.store import FRAME
from midstream.storage.stored import (
    MAX_BYTES,
    MAX_ROWS,
    Extent,
    StoredConnection,
    StoredMessage,
    told_open,
)
from midstream.storage.stream import Found, JetStreamStream
from midstream.storage.stream_connections import Known, StreamConnections
from midstream.told import ArrivalTimes, Forgotten, HeldConnection, Knowledge, Pending

if TYPE_CHECKING:
    from midstream.fields import Layout

TIME_MARGIN = 60 * 10**9
"""ns before a time from which the stream is read: it has the times at which messages were stored."""


class JetStreamLog(Closing):
    """The stream at a nats:// URL, for reading. streams: what the sensors' messages are, for
    connections whose opening is no longer in it.

    StoreError if there is none, or if it cannot be read: the message says what to do.
    """

    def __init__(self, url: str, streams: Formats = NO_STREAMS) -> None:
        self._streams = streams
        self._stream = JetStreamStream(url)
        self.name = self._stream.name
        self._all = StreamConnections(self._stream)
        self._layouts: dict[str, Layout] = {}
        self._removed = (-1, -1)

    def close(self) -> None:
        self._stream.close()

    def connections(self) -> list[StoredConnection]:
        self._all.refresh()
        there = [
            known for known in self._all.known.values() if known.messages or self._all.has_opening(known)
        ]
        there.sort(key=lambda known: (known.opened_ns, known.id))
        return told_open([self._connection(known) for known in there])

    def extents(self, *, gaps: bool = True) -> dict[int, Extent]:  # noqa: ARG002  the stream counts
        self._all.refresh()
        there = [known for known in self._all.known.values() if known.messages]
        firsts = self._stream.get_all([known.oldest for known in there])
        self._ask_for_last(there)
        extents = {}
        for known, first in zip(there, firsts, strict=True):
            if first is None or known.last is None:
                continue  # it has been removed just now
            known.first, start, first_ns, _ = self._all.place(first)
            extents[known.id] = Extent(
                known.messages,
                known.first,
                # There are as many, so one that is there twice does not hide the last ones.
                max(known.last, known.first + known.messages - 1),
                first_ns,
                known.last_ns,
                start,
                known.last_end,
            )
        return extents

    def last_sequences(self) -> dict[int, int]:
        self._all.refresh()
        removed = (self._all.state.first, self._all.state.deleted)
        changed = [
            known
            for known in self._all.known.values()
            if known.messages and (known.messages != known.counted or removed != self._removed)
        ]
        self._ask_for_last(changed)
        self._removed = removed  # while nothing is removed, the counts tell whether something has come
        return {known.id: known.last for known in self._all.known.values() if known.last is not None}

    def first_since(self, connection: StoredConnection, since_ns: int, /) -> int:
        known = self._all.by_id[connection.id]
        moment = self._moment(known, since_ns)
        found = self._stream.get({"next_by_subj": known.subject("data"), "start_time": moment.isoformat()})
        if found is not None:
            return self._all.place(found)[0]
        self._ask_for_last([known])
        return 0 if known.last is None else known.last + 1

    def _moment(self, known: Known, since_ns: int) -> datetime:
        """By the servers' clocks, nothing that the logger received later was stored earlier."""
        start = max(0, since_ns + min(0, known.clock_ns) - TIME_MARGIN)
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=start // 1000)

    def piece(
        self, connection: StoredConnection, start: int, stop: int, max_bytes: int = MAX_BYTES
    ) -> tuple[list[StoredMessage], int]:
        known = self._all.by_id[connection.id]
        found, more = self._stream.read(
            known.subject("data"),
            self._all.number_of(known, start),
            min(MAX_ROWS, max(1, stop - start)),
            min(max_bytes, MAX_BYTES),
            known.last_number,
        )
        messages: list[StoredMessage] = []
        for each in found:
            sequence, offset, received, crc = self._all.place(each)
            if sequence >= stop:
                known.following = (stop, each.number)
                return messages, stop
            messages.append(StoredMessage(connection, sequence, received, each.data, offset, crc))
        following = messages[-1].sequence + 1 if more and messages else stop
        if found:
            known.following = (following, found[-1].number + 1)
        return messages, following

    def pruned(self, connection: StoredConnection) -> int:
        self._all.look()
        return self._all.pruned(self._all.by_id[connection.id])

    def told(self) -> Knowledge:
        held: dict[tuple[object, ...], HeldConnection] = {}
        for found in self._all_of("held"):
            said = HeldConnection.parse(json.loads(found.data))
            key = said.stream, said.sensor, said.port, said.first, said.opened_ns
            before = held.get(key)
            held[key] = said if before is None else replace(said, bytes=max(said.bytes, before.bytes))
        holes = [Forgotten(**json.loads(found.data)) for found in self._all_of("forgotten")]
        forgotten = {(hole.stream, hole.sensor, hole.first_ns): hole for hole in holes}
        waiting = self._stream.get({"last_by_subj": f"{self._stream.stream}.pending"})
        pending = [Pending.parse(each) for each in json.loads(waiting.data)] if waiting else []
        return Knowledge(list(held.values()), pending, list(forgotten.values()))

    def arrivals(
        self, connection: StoredConnection, start: int, end: int, since_ns: int, /
    ) -> list[ArrivalTimes]:
        assert connection.first is not None
        known = self._all.by_id[connection.id]
        moment = self._moment(known, since_ns)
        found: list[ArrivalTimes] = []
        for name in (connection.stream, "") if known.is_nameless else (connection.stream,):
            place = connection.sensor, connection.port, connection.first
            subject = arrivals_subject(self._stream.stream, name, *place)
            said = self._stream.get({"next_by_subj": subject, "start_time": moment.isoformat()})
            number, more = said.number if said else 0, said is not None
            while more:
                some, more = self._stream.read(subject, number, MAX_ROWS, MAX_BYTES)
                told = [ArrivalTimes.parse((*json.loads(each.headers[PLACE]), each.data)) for each in some]
                found += [each for each in told if each.start < end and each.end > start]
                if not some or told[-1].start >= end:
                    break
                number = some[-1].number + 1
        return found

    def _all_of(self, kind: str) -> Iterator[Found]:
        """All messages of a kind, in their order."""
        number, more = 1, True
        while more:
            found, more = self._stream.read(f"{self._stream.stream}.{kind}.>", number, MAX_ROWS, MAX_BYTES)
            yield from found
            number = found[-1].number + 1 if found else number

    def faults(self) -> list[str]:
        self._all.refresh()
        faults = list(self._all.faults)
        if self._all.state.first <= 1:  # nothing was removed
            missing = [known.name for known in self._all.known.values() if not known.opening]
            faults += [f"JetStream: the opening of connection {name} is missing" for name in missing]
        return faults

    def readings_table(self, _: StoredConnection, /) -> None:
        return None

    def readings(self, *_: object) -> dict[int, tuple[object, ...]]:
        return {}

    def _framing(self, known: Known) -> str:
        framing: str = known.event.get("framing") or self._stored_without(known).framing
        return framing

    def _stored_without(self, known: Known) -> StreamFormat:
        return self._streams.get(known.sensor_stream, StreamFormat())

    def _connection(self, known: Known) -> StoredConnection:
        event, end = known.event, known.end or {}
        framing = self._framing(known)
        layout = self._stored_without(known).layout if framing == "fixed" else None
        if event.get("layout"):
            layout = self._parsed(event["layout"], known)
        return StoredConnection(
            id=known.id,
            sensor=event["sensor"],
            port=event["port"],
            opened_ns=event["opened_ns"],
            closed_ns=end.get("closed_ns"),
            size=end.get("bytes"),
            digest=end.get("digest"),
            reset=bool(end.get("reset")),
            reason=end.get("reason", ""),
            unfinished=self._all.unfinished(known),
            framing=framing,
            layout=layout,
            pruned=self._all.pruned(known),
            token=event.get("token", ""),
            first=event.get("first"),
            spooled=bool(event.get("spooled") or end.get("spooled")),
            stream=known.sensor_stream,
        )

    def _parsed(self, text: str, known: Known) -> "Layout":
        if text not in self._layouts:
            from midstream.fields import Layout  # with NumPy, which not every reader needs

            try:
                self._layouts[text] = Layout.parse(text)
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(
                    f"{self.name}: the fields of connection {known.id} cannot be read ({error}). "
                    "What to do: install the newer midstream that has stored them"
                ) from error
        return self._layouts[text]

    def _ask_for_last(self, asked: list[Known]) -> None:
        answers = self._stream.get_all([{"last_by_subj": known.subject("data")} for known in asked])
        for known, found in zip(asked, answers, strict=True):
            if found is not None:
                known.counted = known.messages
                known.last, offset, known.last_ns, _ = self._all.place(found)
                known.last_number = found.number
                known.last_end = offset + len(found.data) + FRAME[self._framing(known)]
