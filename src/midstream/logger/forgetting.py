"""What a spool forgets while it can store nothing, counted for each stream of a sensor until it is noted.

The application on the hardworker goes on meanwhile. The log knows what it lacks all the same, also if the
count is lost with its process: the hardworker's daemon tells it how much was held (told.py).
"""

from midstream.storage.store import Batch
from midstream.told import Forgotten


class Forgetting:
    """A hole for each stream of each sensor."""

    def __init__(self) -> None:
        self._holes: dict[tuple[str, str], Forgotten] = {}

    def add(self, batch: Batch) -> None:
        for piece in batch.pieces:
            if not piece.payloads:
                continue
            key, size = (piece.row.sensor, piece.row.stream), sum(map(len, piece.payloads))
            sensor, stream = key
            hole = self._holes.get(key) or Forgotten(sensor, piece.received_ns[0], 0, 0, 0, stream)
            self._holes[key] = hole._replace(
                last_ns=piece.received_ns[-1],
                messages=hole.messages + len(piece.payloads),
                bytes=hole.bytes + size,
            )

    def holes(self) -> list[Forgotten]:
        return list(self._holes.values())

    def clear(self) -> None:
        """The spool has it."""
        self._holes.clear()
