"""How large the ring is, and what messages take of it."""

from midstream.config import Config
from midstream.ebpf.records import RECORD
from midstream.network import Topology

LEAST_RING, MOST_RING = 4 * 2**20, 64 * 2**20
"""Bytes of a ring whose size config.toml leaves out: at least, and at most."""

_RING_HEADER = 8  # BPF_RINGBUF_HDR_SZ of linux/bpf.h
_BLOCK = 64  # copy.h


def ring_size(config: Config, topology: Topology) -> int:
    """Bytes of the ring: as config.toml says, else two seconds of one sensor: an application may pause for
    one, and half is retained for the logger. It does not follow the number of sensors: each newcomer would
    need another ring."""
    if config.hardworker.ring_size is not None:
        return config.hardworker.ring_size
    size = LEAST_RING
    while size < min(2 * ring_rate(config, topology), MOST_RING):
        size *= 2
    return size


def ring_rate(config: Config, topology: Topology) -> float:
    """Bytes of the ring that a sensor takes per second; 0 where config.toml does not give its rate and, with
    other framing than fixed, the size of its messages."""
    data, given = config.data, config.data.model_fields_set
    if data.framing == "fixed":
        return ring_room(topology.size, topology.mtu) * data.freq if "freq" in given else 0.0
    return ring_room(data.max_size, topology.mtu) * data.freq if {"freq", "max_size"} <= given else 0.0


def ring_room(size: int, mtu: int) -> int:
    """Bytes of the ring that a message of this size takes, where its sensor sends full segments."""
    most, head = mtu - 40, _RING_HEADER + RECORD.itemsize
    if size <= most:
        return head + _blocks(size)
    segments, rest = divmod(size, most - 12)  # TCP's timestamps
    classes = (64, 512, _blocks(most))  # hardworker.bpf.c
    return segments * (head + _blocks(most)) + (head + next(c for c in classes if rest <= c) if rest else 0)


def _blocks(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK
