"""The ring of the attached eBPF program as a source."""

from pathlib import Path

from midstream.config import Config
from midstream.ebpf import handover, pins
from midstream.ebpf.records import LARGEST_RECORD
from midstream.hardworker.fallback import RingOrStack
from midstream.hardworker.ring import Ring
from midstream.network import Topology


def open_ring(config: Config, topology: Topology) -> RingOrStack:
    """Open the pins of the hardworker's program, or get the ring from the process that serves it.

    Raises KernelError if nothing is attached, what is attached was made from other files, another application
    reads already, or this one may not.
    """
    layout = pins.layout("hardworker", config, topology)
    if path := config.hardworker.socket:
        held = handover.request(Path(path), layout)
    else:
        held = handover.open_pinned(pins.default_folder("hardworker", config), layout)
    try:
        if (
            not path
        ):  # records name a sensor by its place in const.toml: it must be the program's when we start
            folder = pins.default_folder("hardworker", config)
            pins.verify(folder, stamp=pins.stamp("hardworker", config, topology))
        ring = Ring.map(held, config.hardworker.connections, patience(config, topology))
        return RingOrStack(ring, held.control, topology)
    except BaseException:
        held.close()
        raise


def patience(config: Config, topology: Topology) -> int:
    """How many bytes of the ring a large unfinished message may hold before it is copied out of it: at most
    half, and so few that no sensor is refused for want of room meanwhile. A copy costs some 4 ms a MiB."""
    size = config.hardworker.ring_size
    room = size if len(topology.sensors) == 1 else int(size * config.hardworker.quota) // 2  # ebpf/quota.h
    return max(0, min(size // 2, room - LARGEST_RECORD))
