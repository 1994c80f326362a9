"""What a reader has done, kept in a map that outlives it: where it is in the ring, and in each stream.

The eBPF program never looks at it. `commit` (in ring.c) writes the copy that is not valid, then makes it so
in one step; a reader that was killed leaves the one before, and the next reader goes on from there: it sees
every message that was not committed, and none that was.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from midstream.ebpf import records
from midstream.hardworker.streams import OPEN_STREAM, Piece

_GENERATION = records.JOURNAL_GENERATION
_HEAD = struct.Struct("<QII")  # struct copy of ring.h


@dataclass(frozen=True)
class Snapshot:
    """A committed state: position in the ring, rows of OPEN_STREAM, bytes of unfinished messages.

    kept: those bytes that are not in the journal but where there is more room (spill.py).
    """

    position: int
    table: np.ndarray
    pending: bytes
    kept: Sequence[Piece] = ()


@dataclass(frozen=True)
class Journal:
    """The journal's memory, with room for so many open connections and bytes of unfinished messages."""

    memory: np.ndarray
    connections: int
    pending: int

    @property
    def copy_size(self) -> int:
        """Bytes of one copy."""
        return records.journal_copy_size(self.connections, self.pending)

    def load(self) -> Snapshot | None:
        """The last committed state; None if nothing was ever committed."""
        generation = int(self.memory[:_GENERATION].view("<u8")[0])
        if not generation:
            return None
        start = _GENERATION + (generation & 1) * self.copy_size
        position, count, pending = _HEAD.unpack_from(self.memory.data, start)
        table = start + _HEAD.size
        rest = table + count * OPEN_STREAM.itemsize
        rows = self.memory[table:rest].view(OPEN_STREAM).copy()
        return Snapshot(position, rows, self.memory[rest : rest + pending].tobytes())
