"""Stores in the spool what a logger that failed may have lost: `python -m midstream.daemon.salvage CONFIG`.

It reads that from its standard input (lost.py), puts each stream in order, and ends with 0 when all is
committed. A part behind a hole is left out: no logger has acknowledged it, and its sensor sends it again.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from midstream import config, modes
from midstream.daemon.reassembly import Stream
from midstream.errors import MidstreamError
from midstream.logger.spool import path_of
from midstream.lost import Lost, Part, load
from midstream.storage.databases import open_spool
from midstream.storage.formats import AnyStream
from midstream.storage.run import new_name
from midstream.storage.store import Batch, ConnectionRow, Piece, Store, Unavailable

FAILED = "its logger failed; the hardworker had retained what that had not stored"


def save(lost: Iterator[Lost], store: Store) -> None:
    """Each connection in a transaction, as far as batch_size allows. Raises as Store.write."""
    run = new_name()
    for number, each in enumerate(lost, 1):
        parts = list(in_order(each))
        if not parts:
            continue
        known = f"{run}.{number}", each.sensor, each.port, each.opened_ns, each.first
        row = ConnectionRow(*known, spooled=True, stream=each.stream)
        row.closed_ns, row.size = time.time_ns(), parts[-1].offset + len(parts[-1].data)
        row.reset, row.reason = not each.closed, FAILED
        payloads, times = [part.data for part in parts], [part.received_ns for part in parts]
        piece = Piece(row, 0, parts[0].offset, payloads, times, frame=0)
        store.write(Batch(opened=[row], pieces=[piece], closed=[row], messages=len(parts)))


def in_order(lost: Lost) -> Iterator[Part]:
    """What follows the bytes that the logger has committed, or the first that are there behind them."""
    start = min((part.offset for part in lost.parts), default=0)
    stream = Stream(max(start, lost.committed))
    for part in lost.parts:
        offset = stream.next
        if ready := stream.push(part.offset, part.data):
            yield Part(offset, part.received_ns, ready)


def main() -> int:
    settings = config.load(Path(sys.argv[1]))
    try:
        with open_spool(settings, path_of(settings), AnyStream()) as store:
            save(load(sys.stdin.buffer), store)
    except (MidstreamError, Unavailable) as error:
        print(f"spool: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    modes.restrain()
    sys.exit(main())
