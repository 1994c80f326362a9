"""What a receiver is: a program on the hardworker that takes what the sensors send, and what is known of it.

The program says "ready" on standard error and works until SIGTERM, when it prints one JSON object. With SIGUSR1
the measured window begins: it forgets the latencies so far. With SIGUSR2 the window ends, and from then on it
verifies every byte of each message, which weighs on no figure. For each message every receiver's callback
does the same: it reads the sequence number and the time at the head, checks that the number continues the
sequence of its connection, counts, and puts the latency into memory that it has already.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from midstream.lab import Lab


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


@dataclass(frozen=True)
class Setting:
    """What the program of a receiver has to know. address, port: where the hardworker listens; logger: its
    address (the same port)."""

    config: Path
    const: Path
    sensors: int
    rate: float
    size: int
    address: str
    port: int
    logger: str


@dataclass(frozen=True)
class Receiver:
    """One receiver. `name` is short and without spaces, `title` is for the report.

    command: the program's arguments; None: there is no program (a floor). tables: what config.toml says.
    attach: prepares the lab (programs, deferral), and returns what undoes it. missing: why it cannot run on
    this machine, and what to install; empty: it can.
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
