"""Parts of a stream that go on where the logger's messages of it end, cut into messages as a worker does."""

from bisect import bisect_left
from itertools import accumulate

from midstream.errors import FramingError
from midstream.storage.formats import StreamFormat
from midstream.storage.store import Batch, ConnectionRow, Piece, Position


class Streamed:
    """Of one connection. position: how far it is stored.

    The beginning of a message that is in the row of a connection which is closed becomes a fragment again.
    """

    def __init__(self, row: ConnectionRow, position: Position, stream: StreamFormat) -> None:
        self._row, self._stream = row, stream
        self._decoder = stream.decoder()
        self._skipped = False
        is_in_row = position.closed and bool(row.unfinished) and position.offset == row.size
        self._begun = len(position.head)  # bytes of a message in front of what comes
        self._kept = 0 if is_in_row else self._begun  # of these, in fragments
        self._sequence = position.sequence
        self._next = position.offset
        self._pieces: list[tuple[int, int, list[bytes]]] = []  # sequence, offset, payloads
        self._ends: list[tuple[int, int]] = []  # where each part ends, and when it came
        self._feed(position.head)

    def take(self, offset: int, received_ns: int, data: bytes) -> bool:
        """The next part; what is stored already is left out. False if bytes are missing before it, and it
        cannot be told where the next message begins."""
        if offset > self._next:
            if self._stream.fixed_size is None:
                return False
            self._skip_to(offset, self._stream.fixed_size)
        new = data[max(0, self._next - offset) :]
        if new:
            self._next = offset + len(data)
            self._ends.append((self._next, received_ns))
            self._feed(new)
        return True

    def batch(self) -> Batch:
        """The messages that are whole now."""
        batch, frame = Batch(), self._stream.frame
        ends, times = [end for end, _ in self._ends], [then for _, then in self._ends]
        for sequence, offset, payloads in self._pieces:
            behind = accumulate((len(payload) + frame for payload in payloads), initial=offset)
            received = [times[bisect_left(ends, end)] for end in list(behind)[1:]]
            batch.pieces.append(Piece(self._row, sequence, offset, payloads, received, frame))
            batch.messages += len(payloads)
        if self._pieces and self._kept:
            batch.completed.append(self._row)
        return batch

    def rest(self) -> Batch:
        """The beginning of a message, to be written behind the batch. Behind bytes that are missing there has
        to be a message first."""
        batch, unfinished = Batch(), self._decoder.unfinished
        begun, kept = (0, 0) if self._pieces else (self._begun, self._kept)
        follows = bool(self._pieces) or not self._skipped
        if len(unfinished) > begun and self._decoder.error is None and follows:
            batch.fragments.append((self._row, self._next - len(unfinished) + kept, unfinished[kept:]))
        return batch

    def _feed(self, data: bytes) -> None:
        begin = self._next - len(data) - self._decoder.pending
        try:
            payloads = self._decoder.feed(data) if data else []
        except FramingError:  # what follows means nothing, to the hardworker's application neither
            return
        if payloads:
            self._pieces.append((self._sequence, begin, payloads))
            self._sequence += len(payloads)

    def _skip_to(self, offset: int, size: int) -> None:
        """Messages of one size begin at its multiples."""
        self._skipped, self._begun, self._kept = True, 0, 0
        self._sequence = -(-offset // size)
        self._next = self._sequence * size
        self._decoder = self._stream.decoder()
