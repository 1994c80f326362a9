"""The connections of a stream of the logger's: which there are, and where their messages lie.

`jetstream` says what is published. A connection's id is the number that its opening has in the stream, so it
stays what it is. Where the stream's own limits have removed the opening, its first message that is left takes
its place, and all messages before that count as removed on purpose.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from midstream.config import DATA
from midstream.errors import StoreError
from midstream.storage.published import CHECKSUM, PLACE
from midstream.storage.stored import MAX_BYTES, MAX_ROWS
from midstream.storage.stream import Found, JetStreamStream, Question, StreamState


@dataclass(slots=True)
class Known:
    """What is known of a connection. Numbers are those of messages in the stream, 0: none is known."""

    id: int
    stream: str
    name: str  # NAME.SENSOR.PORT.TOKEN, as in its subjects; an older logger has left out NAME
    event: dict[str, Any]  # of its opening, or what stands for it
    opening: int = 0
    clock_ns: int = 0  # by how much the servers' clock was ahead of the logger's, or less
    end: dict[str, Any] | None = None
    end_number: int = 0
    unfinished: bytes | None = None
    messages: int = 0
    counted: int | None = None  # how many there were when the last one was asked for
    first: int = 0  # the sequence of the first message that is left
    last: int | None = None  # the sequence of the last one
    last_number: int = 0
    last_ns: int = 0  # when it was received
    last_end: int = 0  # where its frame ends in the connection's stream
    following: tuple[int, int] = (0, 1)  # a sequence, and a number from which on it and all later ones are

    @property
    def sensor_stream(self) -> str:
        """The kind of its messages."""
        name: str = self.event.get("stream", DATA)
        return name

    @property
    def is_nameless(self) -> bool:
        """Has a version before streams opened it? Its subjects begin with the sensor, not with a letter."""
        return self.name[:1].isdigit()

    @property
    def opened_ns(self) -> int:
        opened_ns: int = self.event["opened_ns"]
        return opened_ns

    def subject(self, kind: str) -> str:
        return f"{self.stream}.{kind}.{self.name}"

    @property
    def oldest(self) -> Question:
        """Which message is the first that is left?"""
        return {"seq": 1, "next_by_subj": self.subject("data")}


class StreamConnections:
    """All connections of a stream, by what their subjects call them and by id; `refresh` sees what is new."""

    def __init__(self, stream: JetStreamStream) -> None:
        self._stream = stream
        self._event = 0  # number of the last opening or end that was read
        self.state = StreamState(0, 0, {})
        self.known: dict[str, Known] = {}
        self.by_id: dict[int, Known] = {}
        self.faults: list[str] = []  # connections that were opened twice

    def refresh(self) -> None:
        """See which connections there are, which have ended, and how many messages they have."""
        self.look()  # before the events: whatever it names has been opened
        self._read_events()
        counts = self.state.counts
        for known in self.known.values():
            known.messages = counts.get(known.subject("data"), 0)
        for subject, count in counts.items():
            name = subject.split(".", 2)[2]
            if name not in self.known:
                self._add_without_opening(name, count)

    def look(self) -> None:
        """See how the stream is now."""
        self.state = self._stream.state(f"{self._stream.stream}.data.>")

    def _read_events(self) -> None:
        events = f"{self._stream.stream}.connections.>"
        newest = self._stream.get({"last_by_subj": events})
        while newest is not None and self._event < newest.number:
            found, _ = self._stream.read(events, self._event + 1, MAX_ROWS, MAX_BYTES, newest.number)
            if not found:
                return  # they have been removed just now
            for each in found:
                self._take_event(each)
            self._event = found[-1].number

    def _take_event(self, found: Found) -> None:
        name = found.subject.split(".", 2)[2]
        try:
            event = json.loads(found.data)
            if event["state"] == "open":
                if name in self.known:
                    self.faults.append(f"JetStream: connection {name} was opened twice")
                    return
                stored_ns = int(datetime.fromisoformat(found.stored).timestamp() * 1e9)
                self._add(
                    Known(
                        found.number,
                        self._stream.stream,
                        name,
                        event,
                        found.number,
                        clock_ns=stored_ns - event["opened_ns"],
                    )
                )
                return
            if name not in self.known:
                self._add(Known(found.number, self._stream.stream, name, event))
            known = self.known[name]
            known.end, known.end_number = event, found.number
            if not known.opening:
                known.event = event  # which says what the opening said
        except (ValueError, KeyError, TypeError) as error:
            raise self._foreign(found) from error

    def _add_without_opening(self, name: str, count: int) -> None:
        first = self._stream.get({"seq": 1, "next_by_subj": f"{self._stream.stream}.data.{name}"})
        if first is not None:
            *named, sensor, port, _, _ = name.split(".")
            event = {
                **({"stream": named[0]} if named else {}),
                "sensor": sensor.replace("-", "."),
                "port": int(port),
                "opened_ns": self.place(first)[2],
            }
            self._add(Known(first.number, self._stream.stream, name, event, messages=count))

    def _add(self, known: Known) -> None:
        self.known[known.name] = self.by_id[known.id] = known

    def unfinished(self, known: Known) -> bytes:
        """The bytes after the last whole message of a connection that has ended."""
        if known.unfinished is None and known.end is not None:
            size = known.end["unfinished"]
            position, data = known.end["bytes"] - size, b""
            number, more = 1, size > 0
            while more:
                found, more = self._stream.read(
                    known.subject("fragments"), number, MAX_ROWS, MAX_BYTES, known.end_number
                )
                for each in found:
                    number = each.number + 1
                    if each.headers.get(PLACE) == str(position + len(data)):
                        data += each.data
            known.unfinished = data
        return known.unfinished or b""

    def pruned(self, known: Known) -> int:
        """The stream removes its oldest messages: none of a connection goes before its opening."""
        if not self._stream.keeps_some and (self.state.first <= 1 or self.has_opening(known)):
            return 0
        first = self._stream.get(known.oldest)
        if first is not None:
            known.first = self.place(first)[0]
            return known.first
        return 0 if known.last is None else known.last + 1

    def has_opening(self, known: Known) -> bool:
        return known.opening >= max(1, self.state.first)

    def number_of(self, known: Known, sequence: int) -> int:
        """A number in the stream from which on the message with this sequence is, and no earlier one."""
        if sequence == known.following[0]:
            return known.following[1]
        if sequence <= known.first:
            return 1
        low, high = 1, known.last_number + 1
        while low < high:
            middle = (low + high) // 2
            found = self._stream.get(known.oldest | {"seq": middle})
            if found is None or self.place(found)[0] >= sequence:
                high = middle
            else:
                low = found.number + 1
        return low

    def place(self, found: Found) -> tuple[int, int, int, int | None]:
        """A message's sequence, offset, received_ns and checksum."""
        try:
            sequence, offset, received = map(int, found.headers[PLACE].split())
            crc = found.headers.get(CHECKSUM)
            return sequence, offset, received, None if crc is None else int(crc)
        except (KeyError, ValueError) as error:
            raise self._foreign(found) from error

    def _foreign(self, found: Found) -> StoreError:
        remove = f"nats stream rmm {self._stream.stream} {found.number}"
        return StoreError(
            f"{self._stream.name}: message {found.number} of the stream, in {found.subject}, is none that a "
            f"logger has written. What to do: {remove}, if another program has published it"
        )
