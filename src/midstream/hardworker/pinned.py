"""The ring of the attached eBPF program as a source."""

import errno
from pathlib import Path

from midstream import config as configuration
from midstream import network, streams
from midstream.config import Config
from midstream.ebpf import pins, ring_server
from midstream.ebpf.records import LARGEST_RECORD
from midstream.ebpf.sizing import ring_size
from midstream.errors import ConfigError, KernelError
from midstream.hardworker.ring import Ring
from midstream.network import Topology
from midstream.streams import ResolvedStream


def open_ring(config: Config, topology: Topology) -> Ring:
    """Open the pins of the hardworker's program, or get the ring from the process that serves it.

    Raises KernelError if nothing is attached, what is attached was made from other files, another application
    reads already, or this one may not.
    """
    layout = pins.layout("hardworker", config, topology)
    folder = pins.stream_folder(pins.default_folder("hardworker", config), config)
    if path := config.hardworker.socket:
        held = ring_server.request(Path(path), layout, config.named_stream)
    else:
        held = ring_server.open_pinned(folder, layout)
    try:
        if not held.is_linked:
            raise KernelError(
                f"{held.place}: the program pinned there is on no interface; "
                "run `midstream attach hardworker`",
                errno=errno.ENOENT,
            )
        if (
            not path
        ):  # records name a sensor by its place in const.toml: it must be the program's when we start
            pins.verify(folder, stamp=pins.stamp("hardworker", config, topology))
        settings = config.hardworker
        # What is retained takes nothing from the sensors: at most half of the ring, and none of a quota.
        retain = ring_size(config, topology) // 2 if settings.retain else 0
        return Ring.map(held, settings.connections, patience(config, topology), retain)
    except BaseException:
        held.close()
        raise


def reopen(whole: Config, read: ResolvedStream, *, reload: bool) -> tuple[ResolvedStream, Ring] | None:
    """The ring of the program that is attached now, in the place of one that is gone; None: there is none.

    whole: config.toml. read: what it said of the stream that is read. reload: read the file anew, which may
    say another size of the ring, for example.
    Raises KernelError or ConfigError if the application cannot go on with what is attached.
    """
    whole = configuration.load(whole.path) if reload else whole
    stream = streams.only(whole, network.load(whole.const_path), read.name)
    config, found = read.config, stream.config
    for name, before, now in (
        (f'stream "{read.name}"' if config.named_stream else "data", config.data, found.data),
        (config.named("size"), read.topology.size, stream.topology.size),
        ("hardworker.receiver", config.hardworker.receiver, found.hardworker.receiver),
        (config.ring_named("period"), config.hardworker.period, found.hardworker.period),
        ("hardworker.irq_mitigation", config.hardworker.irq_mitigation, found.hardworker.irq_mitigation),
    ):
        if before != now:
            raise ConfigError(
                f"{found.path}: {name} has changed since this application was started, so that it cannot "
                "follow; start it again"
            )
    try:
        return stream, open_ring(*stream)
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def patience(config: Config, topology: Topology) -> int:
    """How many bytes of the ring a large unfinished message may hold before it is copied out of it: at most
    half, and so few that no sensor is refused for want of room meanwhile. A copy costs some 4 ms a MiB."""
    size = ring_size(config, topology)
    room = size if len(topology.sensors) == 1 else int(size * config.hardworker.quota) // 2  # ebpf/quota.h
    return max(0, min(size // 2, room - LARGEST_RECORD))
