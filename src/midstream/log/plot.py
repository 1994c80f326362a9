"""Values over time as a picture: for each stream of a sensor the mean of each piece of time, and between what
it lay.

A picture has at most POINTS pieces of time, so that a million messages need no more memory than thousands.
"""

import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from midstream.errors import ConfigError
from midstream.log.decoding import numbers, printable
from midstream.log.export import optional
from midstream.log.messages import LogReader, nobody
from midstream.storage.stored import StoredConnection, named, source_of

POINTS = 2000
MAX_KEYS = 100  # pictures below one another
LARGEST = 1e300
KINDS = (".png", ".svg")


class Series:
    """One value of one stream of a sensor: how many, sum, least and greatest of each piece of time."""

    def __init__(self) -> None:
        self.count = np.zeros(POINTS, np.int64)
        self.sum = np.zeros(POINTS, np.longdouble)  # of which a double holds the mean, if not the sum
        self.least = np.full(POINTS, np.inf)
        self.greatest = np.full(POINTS, -np.inf)

    def add(self, pieces: np.ndarray, values: np.ndarray) -> None:
        finite = np.isfinite(values)
        pieces, values = pieces[finite], values[finite]
        np.add.at(self.count, pieces, 1)
        np.add.at(self.sum, pieces, values)
        np.minimum.at(self.least, pieces, values)
        np.maximum.at(self.greatest, pieces, values)


def plot(
    reader: LogReader,
    keys: Sequence[str],
    path: Path,
    span: tuple[int, int],
    looked_at: Callable[[int], object] = nobody,
) -> int:
    """Draw what the reader reads between two times (ns) to a .png or .svg file; how many values there were.

    ConfigError if there is nothing to draw, or matplotlib is missing.
    """
    if path.suffix not in KINDS:
        raise ConfigError(f"--output {path}: must end in {' or '.join(KINDS)}")
    if len(keys) > MAX_KEYS:
        raise ConfigError(f"FIELD: {len(keys)} of them, and a picture has room for {MAX_KEYS}; name fewer")
    figures = optional("matplotlib.figure", "plot")
    start, end = span
    width = max(1, -(-(end - start) // POINTS))
    series: dict[tuple[str, str], Series] = {}
    for piece in reader.read(looked_at):
        times = np.array([(message.received_ns - start) // width for message in piece])
        sources = np.array([named(source_of(message.connection)) for message in piece])
        for key in keys:
            which, values = numbers(piece, key)
            for source in dict.fromkeys(sources[which].tolist()):
                mine = sources[which] == source
                indices = np.clip(times[which][mine], 0, POINTS - 1)
                series.setdefault((key, source), Series()).add(indices, values[mine])
    count = sum(int(each.count.sum()) for each in series.values())
    if not count:
        raise ConfigError(
            f"{', '.join(keys)}: no message of the selection has such a value; widen the selection"
        )
    units = _units(reader.connections)
    figure = figures.Figure(figsize=(10, 1.2 + 2.6 * len(keys)), layout="constrained")
    axes = figure.subplots(len(keys), 1, sharex=True, squeeze=False)
    middle = (np.arange(POINTS) + 0.5) * width + start
    for axis, key in zip(axes[:, 0], keys, strict=True):
        for (drawn, source), each in sorted(series.items()):
            if drawn == key:
                there = each.count > 0
                when = (middle[there] / 1000).astype("datetime64[us]")
                mean = _drawable(each.sum[there] / each.count[there])
                (line,) = axis.plot(when, mean, linewidth=1, label=printable(source))
                axis.fill_between(
                    when,
                    _drawable(each.least[there]),
                    _drawable(each.greatest[there]),
                    alpha=0.25,
                    color=line.get_color(),
                    linewidth=0,
                )
        label = printable(f"{key} [{units[key]}]" if units.get(key) else key)
        axis.set_ylabel(label, parse_math=False)  # what is between two $ is no formula
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(loc="best", fontsize="small")
    axes[-1, 0].set_xlabel(f"received, UTC, {datetime.fromtimestamp(start // 10**9, UTC):%Y-%m-%d}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # of a unit: a box stands for it
            figure.savefig(path, dpi=120)
    except OSError as error:
        raise ConfigError(
            f"--output {path}: cannot be written ({error.strerror}); name another file"
        ) from error
    return count


def _units(connections: Sequence[StoredConnection]) -> dict[str, str]:
    """Of each value whose unit is the same in all streams that have it."""
    found: dict[str, set[str]] = {}
    for connection in connections:
        for column in connection.layout.columns if connection.layout else ():
            found.setdefault(column.name, set()).add(column.unit)
    return {name: units.pop() for name, units in found.items() if len(units) == 1}


def _drawable(values: np.ndarray) -> np.ndarray:
    """Values between which a picture can still count: matplotlib multiplies what it measures."""
    drawable: np.ndarray = np.clip(values, -LARGEST, LARGEST).astype(np.float64)
    return drawable
