"""The ring of the attached eBPF program as a source, and the stack's sockets while there is no logger."""

import mmap
import select
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from midstream.config import Config
from midstream.ebpf import handover, pins, records
from midstream.errors import KernelError, NetworkError
from midstream.hardworker.journal import Snapshot
from midstream.hardworker.ring import Ring
from midstream.hardworker.source import Segment
from midstream.hardworker.standin import FIRST, StandIn
from midstream.hardworker.streams import Streams
from midstream.network import Topology


class PinnedRing:
    """Opens the pins of the hardworker's program, or gets the ring from the process that serves it.

    Raises KernelError if nothing is attached, what is attached was made from other files, another application
    reads already, or this one may not. The daemon's word that there is no logger is a number in mapped
    memory, which every look reads; the ring wakes its reader when that changes.
    """

    def __init__(self, config: Config, topology: Topology) -> None:
        self._topology = topology
        layout = pins.layout("hardworker", config, topology)
        if path := config.hardworker.socket:
            self._held = handover.request(Path(path), layout)
        else:
            self._held = handover.open_pinned(pins.default_folder("hardworker", config), layout)
        self._stand_in: StandIn | None = None
        self._both: select.epoll | None = None
        try:
            held = self._held
            self._ring = Ring.map(held.ring, held.journal, held.size, config.hardworker.connections)
            self._mode = _map_mode(held.control)
        except BaseException:
            self._held.close()
            raise

    def look(self) -> None:
        if self._mode[0] or self._stand_in:
            self._follow()
        self._ring.look()

    def regular(self, size: int, streams: Streams) -> np.ndarray:
        return self._ring.regular(size, streams)

    def next(self) -> Segment | None:
        segment = self._ring.next()
        return self._stand_in.next() if segment is None and self._stand_in else segment

    def restore(self) -> Snapshot | None:
        """Without the connections of the stack: they ended with the process that had them."""
        snapshot = self._ring.snapshot
        return snapshot and replace(snapshot, table=snapshot.table[snapshot.table["connection"] < FIRST])

    def commit(self, streams: Streams, pending: bytes) -> bool:
        return self._ring.commit(streams, pending)

    def fileno(self) -> int:
        return self._both.fileno() if self._both else self._held.ring

    @property
    def fill(self) -> float:
        return self._ring.used / self._ring.size

    def close(self) -> None:
        # Views that the application still holds keep the mapping alive.
        if self._stand_in:
            self._stand_in.close()
        if self._both:
            self._both.close()
        self._held.close()

    def _follow(self) -> None:
        """Listen while there is no logger; then hand back, and let go when all has ended."""
        if self._mode[0] == records.MODE_HANDLER:
            if self._stand_in is None:
                with suppress(
                    NetworkError
                ):  # the port is taken: the daemon's status says that nobody listens
                    self._stand_in = StandIn(self._topology)
                    self._both = select.epoll()
                    for fd in (self._held.ring, self._stand_in.fileno()):
                        self._both.register(fd, select.EPOLLIN)
        elif self._stand_in:
            self._stand_in.hand_back()
        if self._stand_in:
            self._stand_in.look()
            if self._stand_in.is_done and self._both:
                self._stand_in.close()
                self._both.close()
                self._stand_in = self._both = None


def _map_mode(control: int) -> np.ndarray:
    try:
        memory = mmap.mmap(control, mmap.PAGESIZE, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:
        raise KernelError(
            f"what the daemon tells cannot be mapped ({error}); is it pinned by this midstream?"
        ) from error
    return np.frombuffer(memory, "<u4", 1)
