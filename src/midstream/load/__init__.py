"""A simulated load: many sensors, each message at its time.

`Plan` says when, a `JointPlan` of several streams too, and mix.py names some. `Load` sends: a C program
(load.c) with one thread for all connections, whose deadlines are absolute. sink.c is the other end: it takes
every connection and verifies every byte.
"""

from midstream.load.load import SENT, Connection, Load, LoadSummary
from midstream.load.schedule import JointPlan, Phase, Plan, Schedule
from midstream.load.sink import Incoming, Sink, SinkSummary
from midstream.load.timing import Timing, read_timing, write_timing

__all__ = [
    "SENT",
    "Connection",
    "Incoming",
    "JointPlan",
    "Load",
    "LoadSummary",
    "Phase",
    "Plan",
    "Schedule",
    "Sink",
    "SinkSummary",
    "Timing",
    "read_timing",
    "write_timing",
]
