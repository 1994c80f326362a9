"""The ring of the attached eBPF program as a source."""

from pathlib import Path

from midstream.config import Config
from midstream.ebpf import handover, pins
from midstream.hardworker.ring import Ring
from midstream.network import Topology


def open_ring(config: Config, topology: Topology) -> Ring:
    """Open the pins of the hardworker's program, or get the ring from the process that serves it.

    Raises KernelError if nothing is attached, what is attached was made from other files, another application
    reads already, or this one may not.
    """
    stamp = pins.stamp("hardworker", config, topology)
    if path := config.hardworker.socket:
        held = handover.request(Path(path), stamp)
    else:
        held = handover.open_pinned(pins.default_folder("hardworker", config), stamp)
    try:
        return Ring.map(held, config.hardworker.connections)
    except BaseException:
        held.close()
        raise
