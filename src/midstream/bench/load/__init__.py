"""A simulated load: many sensors, each message at its time.

`Plan` says when, `Load` sends: a C program (load.c) with one thread for all connections, whose deadlines are
absolute. sink.c is the other end: it takes every connection and verifies every byte.
"""

from midstream.bench.load.load import Connection, Load, LoadSummary
from midstream.bench.load.schedule import Phase, Plan
from midstream.bench.load.sink import Sink, SinkSummary
from midstream.bench.load.timing import Timing, read_timing, write_timing

__all__ = [
    "Connection",
    "Load",
    "LoadSummary",
    "Phase",
    "Plan",
    "Sink",
    "SinkSummary",
    "Timing",
    "read_timing",
    "write_timing",
]
