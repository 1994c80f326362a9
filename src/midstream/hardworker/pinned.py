"""The ring of the attached eBPF program as a source."""

import os
from pathlib import Path

import numpy as np

from midstream.config import Config
from midstream.ebpf import pins
from midstream.hardworker.ring import Ring
from midstream.hardworker.source import Segment
from midstream.hardworker.streams import Streams
from midstream.network import Topology


class PinnedRing:
    """Opens the pins of the hardworker's program.

    Raises KernelError if nothing is attached, or what is attached was made from other files.
    """

    def __init__(self, config: Config, topology: Topology) -> None:
        folder = Path(config.network.pins, "hardworker")
        pins.verify(folder, pins.stamp("hardworker", config, topology))
        self._fd = pins.open_map(folder, "ring")
        try:
            self._ring = Ring.map(self._fd)
        except BaseException:
            os.close(self._fd)
            raise

    def regular(self, size: int, streams: Streams) -> np.ndarray:
        return self._ring.regular(size, streams)

    def next(self) -> Segment | None:
        return self._ring.next()

    def release(self) -> None:
        self._ring.release()

    def fileno(self) -> int:
        return self._fd

    @property
    def fill(self) -> float:
        return self._ring.used / self._ring.size

    def close(self) -> None:
        # Views that the application still holds keep the mapping alive.
        os.close(self._fd)
