"""The ring of the attached eBPF program as a source."""

import os
from pathlib import Path

import numpy as np

from midstream.config import Config
from midstream.ebpf import handover, pins
from midstream.errors import KernelError
from midstream.hardworker.journal import Snapshot
from midstream.hardworker.ring import Ring
from midstream.hardworker.source import Segment
from midstream.hardworker.streams import Streams
from midstream.network import Topology


class PinnedRing:
    """Opens the pins of the hardworker's program, or gets the ring from the process that serves it.

    Raises KernelError if nothing is attached, what is attached was made from other files, another application
    reads already, or this one may not.
    """

    def __init__(self, config: Config, topology: Topology) -> None:
        stamp = pins.stamp("hardworker", config, topology)
        if path := config.hardworker.socket:
            self._held = handover.request(Path(path), stamp)
        else:
            self._held = handover.open_pinned(pins.default_folder("hardworker", config), stamp)
        try:
            held = self._held
            self._ring = Ring.map(held.ring, held.journal, held.size, config.hardworker.connections)
        except BaseException:
            self._held.close()
            raise

    def look(self) -> None:
        self._ring.look()

    def regular(self, size: int, streams: Streams) -> np.ndarray:
        return self._ring.regular(size, streams)

    def next(self) -> Segment | None:
        return self._ring.next()

    def restore(self) -> Snapshot | None:
        return self._ring.snapshot

    def commit(self, streams: Streams, pending: bytes) -> bool:
        return self._ring.commit(streams, pending)

    def fileno(self) -> int:
        return self._held.ring

    @property
    def fill(self) -> float:
        return self._ring.used / self._ring.size

    @property
    def began(self) -> float:
        """When the ring was pinned. Raises KernelError if this user may not look."""
        try:
            return os.stat("ring", dir_fd=self._held.lock).st_mtime
        except OSError as error:
            raise KernelError(
                f"the ring's pin cannot be looked at ({error.strerror}), so it is not known since when it "
                "holds what arrives; let this user search the pins' folder (network.pins), or run as root"
            ) from error

    def close(self) -> None:
        # Views that the application still holds keep the mapping alive.
        self._held.close()
