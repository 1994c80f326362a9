"""The verdict: what was sent, what the application got and what the database holds, message by message.

A message is known by the number that its sensor gave it and the digest that its sensor wrote down. Nothing
that the hardworker says about a message is believed, and nothing that it delivered is compared with the
database: both are compared with what the sensors sent.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from midstream.framing import Framing
from midstream.load.message import carried

Stream = tuple[str, int]
"""A sensor's connection: its IP address and port."""

NOWHERE = -1
"""The position of a message that is said to start inside another."""

_HEADER = 16  # bytes: number and time at the start of a message, u64 little-endian each
_DIGEST = 16


class Arrivals(NamedTuple):
    """Messages of one stream that arrived somewhere, in the order of their arrival.

    positions: the index in the stream that each is said to have, or NOWHERE. payloads: bytes, or rows of
    them. times: when each was there, nanoseconds since 1970; None if nobody asks.
    """

    stream: Stream
    positions: np.ndarray
    payloads: Sequence[bytes] | np.ndarray
    times: np.ndarray | None = None


@dataclass(frozen=True)
class DemoVerdict:
    """What became of the messages.

    missing: of which nothing arrived. duplicates: arrived again. corrupt: arrived, but are not what their
    sensor sent, at the application or in the database (the latter also in logged_corrupt). in_order: each
    stream arrived in the order of its numbers, and with the right positions. latency_us: from the time
    stamp in the message to its delivery at the application (p50, p99, max); None without any.
    """

    sent: int
    delivered: int
    missing: int
    duplicates: int
    in_order: bool
    corrupt: int
    logged: int
    logged_missing: int
    logged_duplicates: int
    logged_corrupt: int
    logged_in_order: bool
    latency_us: dict[str, float] | None

    @property
    def good(self) -> bool:
        """Was something sent, and did all of it arrive unchanged, once and in order at both places?"""
        faults = (
            self.missing,
            self.duplicates,
            self.corrupt,
            self.logged_missing,
            self.logged_duplicates,
            self.logged_corrupt,
        )
        return self.sent > 0 and not any(faults) and self.in_order and self.logged_in_order


def judge(
    sent: Mapping[Stream, np.ndarray],
    delivered: Iterable[Arrivals],
    logged: Iterable[Arrivals],
    framing: Framing = "fixed",
) -> DemoVerdict:
    """Compare. `sent` holds an array of sensor.SENT_DTYPE a stream, in the order of its numbers. framing:
    where in a message its number is (load/message.py).

    Arrivals are taken one at a time: memory holds a few bytes a message, and the largest of them.
    """
    application, database = _Arrival(sent, framing), _Arrival(sent, framing)
    for arrivals in delivered:
        application.add(arrivals)
    for arrivals in logged:
        database.add(arrivals)
    return DemoVerdict(
        sent=sum(map(len, sent.values())),
        delivered=application.arrived,
        missing=application.missing,
        duplicates=application.duplicates,
        in_order=application.in_order,
        corrupt=application.corrupt + database.corrupt,
        logged=database.arrived,
        logged_missing=database.missing,
        logged_duplicates=database.duplicates,
        logged_corrupt=database.corrupt,
        logged_in_order=database.in_order,
        latency_us=application.latency_us,
    )


def total(verdicts: Sequence[DemoVerdict]) -> DemoVerdict:
    """What became of the messages of all streams. Their latencies are not mixed: None unless there is one."""
    return DemoVerdict(
        sent=sum(each.sent for each in verdicts),
        delivered=sum(each.delivered for each in verdicts),
        missing=sum(each.missing for each in verdicts),
        duplicates=sum(each.duplicates for each in verdicts),
        in_order=all(each.in_order for each in verdicts),
        corrupt=sum(each.corrupt for each in verdicts),
        logged=sum(each.logged for each in verdicts),
        logged_missing=sum(each.logged_missing for each in verdicts),
        logged_duplicates=sum(each.logged_duplicates for each in verdicts),
        logged_corrupt=sum(each.logged_corrupt for each in verdicts),
        logged_in_order=all(each.logged_in_order for each in verdicts),
        latency_us=verdicts[0].latency_us if len(verdicts) == 1 else None,
    )


def owner(
    sent: Mapping[Stream, np.ndarray], payloads: Sequence[bytes], framing: Framing = "fixed"
) -> Stream | None:
    """The stream in which one of these messages was sent; None if none of them was."""
    numbers, _ = _headers(payloads, framing)
    for number, digest in zip(numbers, _digests(payloads), strict=True):
        for stream, rows in sent.items():
            if number < len(rows) and rows["digest"][number].tobytes() == digest.tobytes():
                return stream
    return None


@dataclass
class _Seen:
    """What arrived of one stream."""

    sent: np.ndarray
    last: int = -1  # number of the newest arrival
    times: np.ndarray = field(init=False)  # how often each message arrived
    damaged: np.ndarray = field(init=False)  # whether something else arrived in its place

    def __post_init__(self) -> None:
        self.times = np.zeros(len(self.sent), np.uint32)
        self.damaged = np.zeros(len(self.sent), np.bool_)


class _Arrival:
    """Where messages arrive: the application, or the database."""

    def __init__(self, sent: Mapping[Stream, np.ndarray], framing: Framing) -> None:
        self._framing = framing
        self._seen = {stream: _Seen(rows) for stream, rows in sent.items()}
        self._latencies: list[np.ndarray] = []
        self.arrived = 0
        self.corrupt = 0
        self.in_order = True

    def add(self, arrivals: Arrivals) -> None:
        count = len(arrivals.payloads)
        self.arrived += count
        seen = self._seen.get(arrivals.stream)
        if seen is None:  # of nobody who sent
            self.corrupt += count
            return
        numbers, times = _headers(arrivals.payloads, self._framing)
        known = numbers < len(seen.sent)
        digests = _digests(arrivals.payloads)
        intact = np.zeros(count, np.bool_)
        intact[known] = (
            seen.sent["digest"][numbers[known]].view("<u8").reshape(-1, 2) == digests[known]
        ).all(axis=1)
        self.corrupt += int(count - intact.sum())

        order = numbers[intact].astype(np.int64)
        np.add.at(seen.times, order, 1)
        if (np.diff(order, prepend=seen.last) < 0).any() or (order != arrivals.positions[intact]).any():
            self.in_order = False
        if len(order):
            seen.last = int(order[-1])
        places = arrivals.positions[~intact]
        seen.damaged[places[(places >= 0) & (places < len(seen.sent))]] = True
        if arrivals.times is not None:
            # Signed: a clock that was set back gives a negative latency, not an enormous one.
            self._latencies.append(arrivals.times[intact].astype(np.int64) - times[intact].astype(np.int64))

    @property
    def missing(self) -> int:
        return sum(int(((seen.times == 0) & ~seen.damaged).sum()) for seen in self._seen.values())

    @property
    def duplicates(self) -> int:
        return sum(int((seen.times[seen.times > 0] - 1).sum()) for seen in self._seen.values())

    @property
    def latency_us(self) -> dict[str, float] | None:
        latencies = np.concatenate(self._latencies) if self._latencies else np.empty(0)
        if not len(latencies):
            return None
        found = np.percentile(latencies, (50, 99, 100)) / 1000
        return {name: round(float(at), 1) for name, at in zip(("p50", "p99", "max"), found, strict=True)}


def _headers(payloads: Sequence[bytes] | np.ndarray, framing: Framing) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and times; a message too short to have them has the highest number there is."""
    if framing == "line":
        payloads = [carried(framing, bytes(payload)) for payload in payloads]
    heads = b"".join(bytes(memoryview(payload)[:_HEADER]).ljust(_HEADER, b"\xff") for payload in payloads)
    table = np.frombuffer(heads, "<u8").reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _digests(payloads: Sequence[bytes] | np.ndarray) -> np.ndarray:
    """As the sensor computes them for its record, each as two numbers."""
    joined = b"".join(hashlib.blake2b(payload, digest_size=_DIGEST).digest() for payload in payloads)
    return np.frombuffer(joined, "<u8").reshape(-1, 2)
