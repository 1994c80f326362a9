"""What the application gets: messages one by one, or batches of them."""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from midstream.config import DATA
from midstream.ebpf.records import RECORD
from midstream.framing import Framing
from midstream.network import Topology


class Message(NamedTuple):
    """One message of a sensor.

    sensor: its IP address. connection: its number, which no other connection has had since the host was
    started. sequence: the message's index in its connection, from 0. time: when its last byte arrived,
    CLOCK_MONOTONIC nanoseconds. stream: the name of its stream; "data" where config.toml names none.
    """

    sensor: str
    connection: int
    sequence: int
    time: int
    payload: bytes
    stream: str = DATA


@cache
def batch_dtype(size: int, payload: np.dtype | None = None) -> np.dtype[np.void]:
    """A message of fixed size as a row of a NumPy array: the record of the ring that holds it, and its bytes.

    sensor: position in const.toml's list, from 0. port: the sensor's. offset: of the message in its
    connection's stream, so offset // size is its sequence. time: as in Message. payload: `size` bytes; view
    it as what it holds, for example `batch["payload"].view("<f4")`; or say so at once, by another dtype of
    `size` bytes.
    """
    return np.dtype([*RECORD.descr, ("payload", "u1", (size,)) if payload is None else ("payload", payload)])


def joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two batches as one; nothing is copied if one of them is empty."""
    return np.concatenate([first, second]) if len(first) and len(second) else second if len(second) else first


@dataclass
class Totals:
    """What a Hardworker has received since it was opened.

    skipped: bytes of messages that never came whole, or that follow a fault or a reset. broken: connections
    given up because their bytes do not follow the framing.
    """

    messages: int = 0
    bytes: int = 0
    opened: int = 0
    finished: int = 0
    reset: int = 0
    broken: int = 0
    skipped: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(one + another for one, another in zip(astuple(self), astuple(other), strict=True)))


class SensorAddresses(dict[int, str]):
    """Of the sensors, by their places in const.toml; also of one that is found after this application was
    started. topology(): what const.toml says now."""

    def __init__(self, topology: Callable[[], Topology]) -> None:
        self._topology = topology
        self.renew()

    def __missing__(self, number: int) -> str:
        self.renew()
        return dict.__getitem__(self, number)

    def renew(self) -> None:
        """As const.toml says now."""
        self.clear()
        self.update(enumerate(str(host.ip) for host in self._topology().sensors))


class Format(NamedTuple):
    """Of a stream's messages. size: bytes; for another framing than fixed of the longest."""

    framing: Framing
    size: int
    addresses: SensorAddresses
    stream: str = DATA
