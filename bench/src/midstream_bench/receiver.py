"""What a receiver is: a program on the hardworker that takes what the sensors send, and what is known of it.

The program says "ready" on standard error and works until SIGTERM, when it prints one JSON object. SIGUSR1
begins the measured window, SIGUSR2 ends it; outside it every byte of each message is verified, which weighs
on no figure. For each message every receiver's callback does the same: it reads the sequence number and the
time at the head, checks that the number continues the sequence of its connection, counts, and puts the
latency into memory that it has already.

The object: messages, bytes, connections, errors (out of sequence, or not what was sent), verified (messages
whose bytes were), and of the window window_messages, latency_ns (p50, p99, p999, max), cpu_ns, voluntary and
involuntary (context switches), wakeups (returns of the call that waits).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from midstream.lab import Lab
from midstream.load import Incoming, JointPlan


class Family(StrEnum):
    """What kind of thing a receiver is."""

    FLOOR = "floor"  # sends packets on and stores nothing: no receiver can be cheaper
    MIDSTREAM = "midstream"
    HANDLER = "handler"  # ordinary sockets
    MIDDLEWARE = "middleware"  # what users would pick instead


class Job(StrEnum):
    """What the hardworker does."""

    FORWARD = "forward"  # sends on, delivers nothing
    RECEIVE = "receive"  # delivers each message to the application; others see to the logger's copy
    RELAY = "relay"  # the whole job: delivers, and sends on to the logger
    STORE = "store"  # delivers, and stores for a logger that is away


@dataclass(frozen=True)
class Setting:
    """What the program of a receiver has to know. incoming: what comes to the ports where the hardworker
    listens, at its address; logger: its address (the same ports); sensors: connections; sensor: the address
    of the first sensor; slow: how many times slower than theirs the hardworker's clock runs."""

    config: Path
    const: Path
    sensors: int
    incoming: Sequence[Incoming]
    address: str
    logger: str
    sensor: str = ""
    slow: int = 1

    @property
    def ports(self) -> list[str]:
        """Of a program's arguments those that say what comes: port, framing and size, for each port."""
        return [word for one in self.incoming for word in (str(one.port), one.framing, str(one.size))]


@dataclass(frozen=True)
class Receiver:
    """One receiver. `name` is short and without spaces, `title` is for the report.

    command: the program's arguments; None: there is no program (a floor). tables: what config.toml says.
    attach: prepares the lab (programs, interrupt mitigation), and returns what undoes it. missing: why it
    cannot run on this machine, and what to install; empty: it can. joined: it has one connection to the
    logger for all that it relays. sender, partner: what runs on the first sensor and on the logger in place
    of load and sink; they say ready and end as a receiver does. over_udp: the lab's bad wires do not hit it.
    one_stream: it takes messages of one stream only. note: what a reader of the report has to know.
    """

    name: str
    title: str
    family: Family
    job: Job
    language: str
    command: Callable[[Setting], list[str]] | None
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    attach: Callable[[Lab], Callable[[], None]] | None = None
    missing: Callable[[], str] = lambda: ""
    joined: bool = False
    sender: Callable[[Setting, JointPlan], list[str]] | None = None
    partner: Callable[[Setting], list[str]] | None = None
    over_udp: bool = False
    one_stream: bool = False
    note: str = ""

    @property
    def is_logged(self) -> bool:
        """Whether the logger has to get all that the sensors send."""
        return self.partner is not None or self.job not in (Job.RECEIVE, Job.STORE)
