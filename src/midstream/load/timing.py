"""The timing of real sensors: read from a capture (pcap, pcapng) or a CSV file, replayed by the load.

A CSV file has the columns flow and time (seconds), and a heading. recording.py says what a message of a
capture is. Times are whole nanoseconds from the file to the plan.
"""

import codecs
import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from midstream.errors import ConfigError
from midstream.load.recording import read_recording

_SECOND = 1_000_000_000


@dataclass(frozen=True)
class Timing:
    """For each flow the times of its messages: nanoseconds after the recording's first message, ascending.

    `remarks`: what was left out of a capture, or is missing in it, and how often.
    """

    flows: Mapping[str, np.ndarray]
    remarks: Mapping[str, int] = field(default_factory=dict)

    @property
    def messages(self) -> int:
        """How many there are, of all flows."""
        return sum(len(times) for times in self.flows.values())

    @cached_property
    def period(self) -> int:
        """Nanoseconds after which it begins anew: its length, and one mean interval of its busiest flow."""
        last = max(int(times[-1]) for times in self.flows.values())
        busiest = max(len(times) for times in self.flows.values())
        return last + max(1, last // max(1, busiest - 1)) if last else _SECOND

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
    remarks: Mapping[str, int] = {}
    try:
        if path.suffix.lower() == ".csv":
            flows: Mapping[str, list[int]] = _read_csv(path)
        else:
            recording = read_recording(path, port)
            flows, remarks = recording.flows, recording.remarks
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a capture or a .csv") from error
    if not any(flows.values()):
        where = f" to TCP port {port}" if port else ""
        counted = "".join(f"; {what}: {number}" for what, number in remarks.items())
        raise ConfigError(
            f"{path}: no TCP segment with data{where} in it; expected a sensor's messages{counted}"
        )
    first = min(times[0] for times in flows.values())
    if max(times[-1] for times in flows.values()) - first >= 1 << 62:
        raise ConfigError(f"{path}: its times are more than 146 years apart")
    return Timing(
        {name: np.array([t - first for t in times], np.int64) for name, times in flows.items()}, remarks
    )


def write_timing(path: Path, timing: Timing) -> None:
    """As a CSV file, which `read_timing` reads. Raises ConfigError."""
    rows = [(time, name) for name, times in timing.flows.items() for time in times.tolist()]
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["flow", "time"])
            writer.writerows([name, f"{time // _SECOND}.{time % _SECOND:09d}"] for time, name in sorted(rows))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error


def _read_csv(path: Path) -> dict[str, list[int]]:
    flows: dict[str, list[int]] = {}
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    expected = "expected the columns flow and time, time in seconds, ascending for each flow"
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        if columns.count("time") != 1 or columns.count("flow") != (len(columns) > 1):
            raise ConfigError(f"{path}: line 1: {expected}; a heading of time alone is one flow")
        for row in reader:
            if not row:
                continue
            try:
                values = dict(zip(columns, row, strict=True))
                times = flows.setdefault(values.get("flow", ""), [])
                times.append(_nanoseconds(values["time"]))
                if times[-2:] != sorted(times[-2:]):
                    raise ValueError
            except (ValueError, ArithmeticError):
                raise ConfigError(f"{path}: line {reader.line_num}: {expected}") from None
    except csv.Error as error:
        raise ConfigError(f"{path}: line {reader.line_num}: {error}; {expected}") from None
    return flows


def _text(path: Path) -> str:
    """What a spreadsheet writes: UTF-8, with a byte-order mark or without, or UTF-16 with one."""
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start} is not {encoding.removesuffix('-sig').upper()}; save it as UTF-8"
        ) from None


def _nanoseconds(text: str) -> int:
    """Seconds in decimal digits. Raises ValueError, ArithmeticError."""
    exact = Decimal(text) * _SECOND
    if not abs(exact) < 1 << 62:
        raise ValueError
    return round(exact)
