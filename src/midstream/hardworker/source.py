"""Where the hardworker's bytes come from: the ring of the eBPF program, or ordinary sockets."""

from typing import NamedTuple, Protocol

import numpy as np

from midstream.hardworker.journal import Snapshot
from midstream.hardworker.streams import Streams


class Segment(NamedTuple):
    """Some bytes of a stream, or an event of a connection, or both.

    The fields are those of struct record in ebpf/record.h.
    """

    connection: int
    sensor: int
    port: int
    offset: int
    time: int
    flags: int
    data: bytes


class Source(Protocol):
    """What a Hardworker reads from."""

    def look(self) -> None:
        """What has arrived until now is what `regular` and `next` give, until the next look: a reader that
        is slower than the sensors must give room back before it has read all."""
        ...

    def regular(self, size: int, streams: Streams) -> np.ndarray:
        """The next messages of `size` bytes, as far as they lie whole and in order: maybe a view, valid until
        `commit`; maybe empty."""
        ...

    def next(self) -> Segment | None:
        """The next segment; None if there is none yet."""
        ...

    def pace(self, dtype: np.dtype, size: int, period: int, follow: int, stop: int) -> None:
        """Prepare `turn` to give messages of `size` bytes as rows of `dtype`, a `batch_dtype`, and to wait
        for `period` nanoseconds, begun `follow` nanoseconds after `newest` or, if that is 0, with the clock;
        without a period, until something arrives.
        `stop`: a descriptor that ends a turn when it is readable.
        """
        ...

    def turn(self, streams: Streams) -> tuple[np.ndarray, int] | None:
        """Commit, wait as `pace` says, look, and give what `regular` would; and whether `next` may
        have more, which needs another look. None, and nothing done, if that takes more than one step."""
        ...

    def restore(self) -> Snapshot | None:
        """What an earlier reader committed, from which this one goes on."""
        ...

    def commit(self, streams: Streams) -> bool:
        """What has been read is done with; False, and nothing done, if that cannot be remembered yet."""
        ...

    def fileno(self) -> int:
        """A descriptor that polls readable when there is something to read."""
        ...

    @property
    def newest(self) -> int:
        """When the last segment read arrived, CLOCK_MONOTONIC nanoseconds; 0: unknown, or none was read."""
        ...

    @property
    def fill(self) -> float:
        """How full the buffer is, from 0 to 1."""
        ...

    @property
    def began(self) -> float:
        """Since when every connection that opens is here from its first byte: seconds since 1970."""
        ...

    def close(self) -> None:
        """Let go of descriptors and mappings."""
        ...
