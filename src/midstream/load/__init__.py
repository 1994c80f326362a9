"""A simulated load: many sensors, each message at its time.

`Plan` says when, `Load` sends: a C program (load.c) with one thread for all connections, whose deadlines are
absolute. sink.c is the other end: it takes every connection and verifies every byte.
"""

from midstream.load.load import Connection, Load, LoadSummary
from midstream.load.schedule import Phase, Plan
from midstream.load.sink import Sink, SinkSummary
from midstream.load.timing import Timing, read_timing, write_timing

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
