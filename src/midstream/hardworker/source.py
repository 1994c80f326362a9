"""Where the hardworker's bytes come from: the ring of the eBPF program, or ordinary sockets."""

from collections.abc import Callable
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


class Pace(NamedTuple):
    """What a turn gives, and how it waits.

    dtype: of its rows, a `batch_dtype` for messages of `size` bytes. period: nanoseconds, begun `follow`
    nanoseconds after `newest` or, if that is 0, with the clock; 0: until something arrives. stop: a
    descriptor that ends a turn when it is readable. whole: makes a whole batch of the rows of a turn behind
    which `next` may have more, after another look.
    """

    dtype: np.dtype
    size: int
    period: int
    follow: int
    stop: int
    whole: Callable[[np.ndarray], np.ndarray]


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

    def pace(self, pace: Pace, streams: Streams) -> None:
        """Prepare `turn`."""
        ...

    def turn(self) -> np.ndarray | None:
        """Commit, wait, look, and give what `regular` would, as `pace` says. None, and nothing done, if that
        takes more than one step."""
        ...

    @property
    def given(self) -> int:
        """How many messages `regular` and `turn` have given: who takes them need not count them."""
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
