"""Batches for a store, as a worker makes them."""

from collections.abc import Sequence

from midstream.config import DATA
from midstream.fields import Layout
from midstream.storage.formats import StreamFormat
from midstream.storage.store import Batch, ConnectionRow, Piece


def batch_of(
    row: ConnectionRow, payloads: Sequence[bytes], *, sequence: int = 0, offset: int = 0, frame: int = 0
) -> Batch:
    """The messages of one connection, which is opened if it has no id; received at 1000 + their number."""
    times = [1000 + number for number in range(sequence, sequence + len(payloads))]
    piece = Piece(row, sequence, offset, list(payloads), times, frame)
    return Batch(
        opened=[row] if row.id is None else [],
        pieces=[piece],
        messages=len(payloads),
        payload_bytes=sum(map(len, payloads)),
    )


def end(row: ConnectionRow, size: int, *, unfinished: bytes = b"") -> ConnectionRow:
    """The connection, ended after `size` bytes."""
    row.closed_ns, row.size, row.reason, row.unfinished = 9, size, "end of stream", unfinished
    row.digest = "ab" * 32
    return row


def laid_out(layout: Layout) -> dict[str, StreamFormat]:
    """The only stream, with fields."""
    return {DATA: StreamFormat(size=layout.size, layout=layout)}
