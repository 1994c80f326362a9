"""What a real host does: its counters, many times a second, as CSV and as InfluxDB line protocol.

The user's own way to measure: start one receiver, sample for a minute, start the other, sample again,
compare. A sample costs the host some hundred microseconds, the same for all. Everything is read from /proc.
"""

import csv
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from midstream.errors import ConfigError
from midstream_bench.statistics import Value

MEASUREMENT = "midstream_host"  # of the line protocol
FIELDS = {
    "busy": "cores in use",
    "user": "of that user space",
    "system": "of that the kernel for processes",
    "softirq": "of that received packets and timers (softirq, irq)",
    "interrupts": "interrupts a second",
    "switches": "context switches a second",
    "forks": "processes started a second",
    "rx_packets": "packets received a second",
    "tx_packets": "packets sent a second",
    "rx_bytes": "bytes received a second",
    "memory": "bytes of memory in use",
}
"""Every column and what it means."""

_CPU = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_LABEL = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Counters:
    """What /proc says at one moment: ticks of all cores, and counts since the start of the machine."""

    time: float
    ticks: Mapping[str, float]
    counts: Mapping[str, float]
    memory: float


def read(interface: str, tick: float) -> Counters:
    """The counters now. `tick`: seconds of a tick (1 / sysconf(SC_CLK_TCK))."""
    return parse(
        Path("/proc/stat").read_text(),
        Path("/proc/meminfo").read_text(),
        Path("/proc/net/dev").read_text(),
        interface,
        tick,
        time.time(),
    )


def parse(stat: str, meminfo: str, net_dev: str, interface: str, tick: float, now: float) -> Counters:
    """The counters in the text of /proc/stat, /proc/meminfo and /proc/net/dev; interface "": all but lo."""
    lines = {words[0]: words[1:] for line in stat.splitlines() if (words := line.split())}
    ticks = {name: float(value) * tick for name, value in zip(_CPU, lines["cpu"], strict=False)}
    counts = {
        "interrupts": float(lines["intr"][0]),
        "switches": float(lines["ctxt"][0]),
        "forks": float(lines["processes"][0]),
        **dict.fromkeys(("rx_packets", "tx_packets", "rx_bytes"), 0.0),
    }
    for line in net_dev.splitlines()[2:]:
        name, _, rest = line.strip().partition(":")
        if name == interface or (not interface and name != "lo"):
            fields = [float(field) for field in rest.split()]
            for column, place in (("rx_bytes", 0), ("rx_packets", 1), ("tx_packets", 9)):
                counts[column] += fields[place]
    sizes = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", meminfo, re.MULTILINE))
    used = 1024 * (float(sizes["MemTotal"]) - float(sizes["MemAvailable"]))
    return Counters(now, ticks, counts, used)


def difference(before: Counters, after: Counters) -> dict[str, float]:
    """The fields of a sample: rates between two moments."""
    seconds = after.time - before.time
    used = {name: (after.ticks[name] - before.ticks[name]) / seconds for name in after.ticks}
    rates = {name: (after.counts[name] - before.counts[name]) / seconds for name in after.counts}
    kernel = used["irq"] + used["softirq"]
    user = used["user"] + used["nice"]
    return {
        "busy": user + used["system"] + kernel,
        "user": user,
        "system": used["system"],
        "softirq": kernel,
        **rates,
        "memory": after.memory,
    }


def sample(
    label: str,
    folder: Path,
    *,
    seconds: float,
    interval: float,
    interface: str,
    tick: float,
    stop: Callable[[], bool],
) -> list[dict[str, float]]:
    """Sample for so many seconds, each `interval` at an absolute time; write LABEL.csv and LABEL.lp.

    A label that is there already is continued: what belongs together may be measured in turns. Raises
    ConfigError.
    """
    if not _LABEL.fullmatch(label):
        raise ConfigError(f"--label {label!r}: expected letters, digits, dots, dashes and underscores")
    found = []
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            table = stack.enter_context((folder / f"{label}.csv").open("a", newline=""))
            lines = stack.enter_context((folder / f"{label}.lp").open("a"))
        except OSError as error:
            raise ConfigError(
                f"{folder}: cannot be written ({error.strerror}); name another with --output"
            ) from error
        writer = csv.writer(table)
        if not table.tell():
            writer.writerow(["time", *FIELDS])
        host = socket.gethostname()
        for moment, fields in _samples(seconds, interval, interface, tick, stop):
            writer.writerow([f"{moment:.6f}", *(f"{fields[name]:.6g}" for name in FIELDS)])
            lines.write(line_protocol(label, host, moment, fields) + "\n")
            found.append(fields)
    return found


def line_protocol(label: str, host: str, moment: float, fields: Mapping[str, float]) -> str:
    """A sample for InfluxDB; time in nanoseconds."""
    tags = ",".join(f"{name}={_escaped(value)}" for name, value in (("host", host), ("receiver", label)))
    values = ",".join(f"{name}={fields[name]:.9g}" for name in FIELDS)
    return f"{MEASUREMENT},{tags} {values} {round(moment * 1e9)}"


def compare(folder: Path) -> dict[str, dict[str, Value]]:
    """For each label of a folder the mean of every field, and where 90 % of the samples lie.

    The mean, because the kernel counts CPU time in ticks of 10 ms: the median of short samples is often 0.
    Raises ConfigError.
    """
    found: dict[str, dict[str, Value]] = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        try:
            columns = {name: [float(row[name]) for row in rows] for name in FIELDS}
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"{path}: expected the columns {', '.join(FIELDS)}; remove it") from None
        if rows:
            found[path.stem] = {name: _value(values) for name, values in columns.items()}
    if not found:
        raise ConfigError(f"{folder}: no samples there; take some with `midstream bench --host --label NAME`")
    return found


def mean(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each field."""
    return {name: sum(each[name] for each in samples) / len(samples) for name in FIELDS} if samples else {}


def _samples(
    seconds: float, interval: float, interface: str, tick: float, stop: Callable[[], bool]
) -> Iterator[tuple[float, dict[str, float]]]:
    begin = time.monotonic()
    before = read(interface, tick)
    for number in range(1, round(seconds / interval) + 1):
        while (left := begin + number * interval - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))
        if stop():
            return
        after = read(interface, tick)
        yield after.time, difference(before, after)
        before = after


def _value(values: list[float]) -> Value:
    ordered = sorted(values)
    edge = round(0.05 * (len(ordered) - 1))
    return Value(sum(ordered) / len(ordered), ordered[edge], ordered[-1 - edge], len(ordered))


def _escaped(value: str) -> str:
    return re.sub(r"([ ,=])", r"\\\1", value)
