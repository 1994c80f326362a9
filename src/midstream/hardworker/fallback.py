"""The ring as a source, and beside it the stack's sockets while there is no logger.

The daemon's word that there is none is a number in mapped memory, which every look reads; the ring wakes its
reader when that changes.
"""

import mmap
import select
from contextlib import suppress
from dataclasses import replace

import numpy as np

from midstream.ebpf.records import CONTROL
from midstream.errors import KernelError, NetworkError
from midstream.hardworker.forms import Form, Turn
from midstream.hardworker.journal import Snapshot
from midstream.hardworker.ring import Ring
from midstream.hardworker.source import Pace, Segment
from midstream.hardworker.standin import FIRST, StandIn
from midstream.hardworker.streams import Streams
from midstream.network import Topology

_ALWAYS = np.ones(1, "<u4")
_HANDLER = 0  # nobody tells that the application is to take connections


class RingOrStack:
    """control: the descriptor of the map in which the daemon tells. KernelError if it cannot be mapped.

    Closing it closes the ring too.
    """

    def __init__(self, ring: Ring, control: int, topology: Topology) -> None:
        self._ring, self._topology = ring, topology
        self._stand_in: StandIn | None = None
        self._both: select.epoll | None = None
        self._told = _map(control)
        ring.heed(self._told)
        if self._told[0]:
            self._follow()

    def look(self) -> None:
        if self._told[0] or self._stand_in:
            self._follow()
        self._ring.look()

    @property
    def timer(self) -> int:
        return self._ring.timer

    def tend(self) -> None:
        self._ring.tend()

    def regular(self, size: int, streams: Streams) -> np.ndarray:
        return self._ring.regular(size, streams)

    def pace(self, form: Form, pace: Pace, streams: Streams) -> Turn:
        return self._ring.pace(form, pace, streams)

    def resume(self) -> np.ndarray | None:
        return self._ring.resume()

    def found(self) -> np.ndarray | None:
        return self._ring.found()

    @property
    def given(self) -> int:
        return self._ring.given

    def next(self) -> Segment | None:
        segment = self._ring.next()
        return self._stand_in.next() if segment is None and self._stand_in else segment

    def restore(self) -> Snapshot | None:
        """Without the connections of the stack, which ended with the process that had them."""
        snapshot = self._ring.restore()
        if snapshot is None:
            return None
        return replace(snapshot, table=snapshot.table[snapshot.table["connection"] < FIRST])

    @property
    def has_uncommitted(self) -> bool:
        return self._ring.has_uncommitted

    def commit(self, streams: Streams) -> bool:
        return self._ring.commit(streams)

    def fileno(self) -> int:
        return self._both.fileno() if self._both else self._ring.fileno()

    @property
    def fill(self) -> float:
        return self._ring.fill

    @property
    def newest(self) -> int:
        return self._ring.newest

    @property
    def began(self) -> float:
        return self._ring.began

    def close(self) -> None:
        self._let_go()
        self._ring.close()

    def _follow(self) -> None:
        """Listen while there is no logger; then hand back, and let go when all has ended."""
        if self._told[0] & _HANDLER:
            if self._stand_in is None:
                with suppress(
                    NetworkError
                ):  # the port is taken, which the daemon's status shows; tried again
                    self._stand_in = StandIn(self._topology)
                    self._ring.heed(_ALWAYS)
                    self._both = select.epoll()
                    for fd in (self._ring.fileno(), self._stand_in.fileno()):
                        self._both.register(fd, select.EPOLLIN)
        elif self._stand_in:
            self._stand_in.hand_back()
        if self._stand_in:
            self._stand_in.look()
            if self._stand_in.is_done:
                self._let_go()

    def _let_go(self) -> None:
        if self._stand_in:
            self._stand_in.close()
            self._ring.heed(self._told)
        if self._both:
            self._both.close()
        self._stand_in = self._both = None


def _map(control: int) -> np.ndarray:
    try:
        memory = mmap.mmap(control, mmap.PAGESIZE, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise KernelError(
            f"what the daemon tells cannot be mapped ({error}); is it pinned by this midstream?"
        ) from error
    return np.frombuffer(memory, CONTROL, 1)["unlinked"]
