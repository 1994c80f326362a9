"""The timing of real sensors: read from a capture (pcap, pcapng) or a CSV file, replayed by the load.

A message of a capture is what TCP was given at once: the segments up to one with PSH, at the time of the
first. Retransmissions are no messages. A CSV file has the columns flow and time (seconds), and a heading.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from midstream.errors import ConfigError

_SECOND = 1_000_000_000
_ETHERNET, _RAW, _LINUX_SLL, _LINUX_SLL2 = 1, 101, 113, 276  # https://www.tcpdump.org/linktypes.html


@dataclass(frozen=True)
class Timing:
    """For each flow the times of its messages: nanoseconds after the recording's first message, ascending."""

    flows: Mapping[str, np.ndarray]

    @cached_property
    def period(self) -> int:
        """Nanoseconds after which it begins anew: its length, and one mean interval of its busiest flow."""
        last = max(int(times[-1]) for times in self.flows.values())
        busiest = max(len(times) for times in self.flows.values())
        return last + max(1, last // max(1, busiest - 1))

    @classmethod
    def of(cls, events: Iterable[np.ndarray]) -> Self:
        """The timing of a plan's events; a flow is a connection's number."""
        every = np.concatenate(list(events))
        numbers = np.unique(every["connection"])
        return cls({str(n): every["at"][every["connection"] == n].astype(np.int64) for n in numbers})

    def between(self, connection: int, begin: int, end: int) -> np.ndarray:
        """The times in [begin, end) of the flow that a connection has; flows are given in turn."""
        times = list(self.flows.values())[connection % len(self.flows)]
        first, last = begin // self.period, (end - 1) // self.period
        turns = np.arange(first, last + 1, dtype=np.uint64) * np.uint64(self.period)
        every = (turns[:, None] + times.astype(np.uint64)).ravel()
        found: np.ndarray = every[(every >= begin) & (every < end)]
        return found


def read_timing(path: Path, port: int | None = None) -> Timing:
    """The timing in a capture, or in a CSV file (by its suffix, .csv).

    `port`: only flows to this TCP port. Raises ConfigError if the file cannot be read, or has no messages.
    """
    try:
        flows = _read_csv(path) if path.suffix == ".csv" else _read_capture(path, port)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a capture or a .csv") from error
    if not flows:
        where = f" to TCP port {port}" if port else ""
        raise ConfigError(f"{path}: no TCP segment with data{where} in it; expected a sensor's messages")
    first = min(times[0] for times in flows.values())
    return Timing({name: np.array(sorted(times), np.int64) - first for name, times in flows.items()})


def write_timing(path: Path, timing: Timing) -> None:
    """As a CSV file, which `read_timing` reads. Raises ConfigError."""
    rows = [(time, name) for name, times in timing.flows.items() for time in times.tolist()]
    try:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["flow", "time"])
            writer.writerows([name, f"{time / _SECOND:.9f}"] for time, name in sorted(rows))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error


def _read_csv(path: Path) -> dict[str, list[int]]:
    flows: dict[str, list[int]] = {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                time = round(float(row["time"]) * _SECOND)
                flows.setdefault(row.get("flow") or "", []).append(time)
            except (KeyError, TypeError, ValueError, OverflowError):
                raise ConfigError(
                    f"{path}: line {reader.line_num}: expected the columns flow and time, time in seconds"
                ) from None
    return flows


def _read_capture(path: Path, port: int | None) -> dict[str, list[int]]:
    try:
        import dpkt  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError(
            f"{path}: captures are read with dpkt: pip install 'midstream[bench]', or convert it to .csv"
        ) from None
    flows: dict[str, list[int]] = {}
    begun: dict[str, int] = {}  # the message of which segments have come, and when it began
    next_sequence: dict[str, int] = {}
    with path.open("rb") as file:
        try:
            reader = dpkt.pcap.UniversalReader(file)
            for time, frame in reader:
                if (segment := _segment(dpkt, reader.datalink(), frame)) is None:
                    continue
                ip, tcp = segment
                length = ip.len - 4 * ip.hl - 4 * tcp.off
                if length <= 0 or (port is not None and tcp.dport != port):
                    continue
                flow = f"{_address(ip.src)}:{tcp.sport}>{_address(ip.dst)}:{tcp.dport}"
                end = (tcp.seq + length) & 0xFFFFFFFF
                if flow in next_sequence and _ahead(end, next_sequence[flow]) <= 0:
                    continue  # a retransmission
                next_sequence[flow] = end
                start = begun.setdefault(flow, round(time * _SECOND))
                if tcp.flags & dpkt.tcp.TH_PUSH:
                    flows.setdefault(flow, []).append(start)
                    del begun[flow]
        except (ValueError, dpkt.Error) as error:
            raise ConfigError(f"{path}: no pcap or pcapng file that can be read ({error})") from None
    return flows


def _segment(dpkt: Any, link: int, frame: bytes) -> tuple[Any, Any] | None:
    """IPv4 and TCP header of a frame, if it has them."""
    kinds = {_ETHERNET: "ethernet.Ethernet", _LINUX_SLL: "sll.SLL", _LINUX_SLL2: "sll2.SLL2", _RAW: "ip.IP"}
    module, _, name = kinds.get(link, "").partition(".")
    if not name:
        raise ConfigError(
            f"link type {link} of the capture is not known; expected Ethernet, cooked or raw IP"
        )
    try:
        outer = getattr(getattr(dpkt, module), name)(frame)
    except dpkt.Error:  # cut short
        return None
    ip = outer if link == _RAW else outer.data
    if isinstance(ip, dpkt.ip.IP) and isinstance(ip.data, dpkt.tcp.TCP):
        return ip, ip.data
    return None


def _address(packed: bytes) -> str:
    return ".".join(map(str, packed))


def _ahead(a: int, b: int) -> int:
    """How far sequence number a is ahead of b (RFC 9293, section 3.4)."""
    return ((a - b + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
