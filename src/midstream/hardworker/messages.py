"""What the application gets: messages one by one, or batches of them."""

from functools import cache
from typing import NamedTuple

import numpy as np

from midstream.ebpf.records import RECORD


class Message(NamedTuple):
    """One message of a sensor.

    sensor: its IP address. connection: its number, which no other connection has had since the host was
    started. sequence: the message's index in its connection, from 0. time: when its last byte arrived,
    CLOCK_MONOTONIC nanoseconds.
    """

    sensor: str
    connection: int
    sequence: int
    time: int
    payload: bytes


@cache
def batch_dtype(size: int, payload: np.dtype | None = None) -> np.dtype[np.void]:
    """A message of fixed size as a row of a NumPy array: the record of the ring that holds it, and its bytes.

    sensor: position in const.toml's list, from 0. port: the sensor's. offset: of the message in its
    connection's stream, so offset // size is its sequence. time: as in Message. payload: `size` bytes; view
    it as what it holds, for example `batch["payload"].view("<f4")`; or say so at once, by another dtype of
    `size` bytes.
    """
    return np.dtype([*RECORD.descr, ("payload", "u1", (size,)) if payload is None else ("payload", payload)])
