"""What a middleware has to offer to take part: a program on the hardworker, the sensors, the logger."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Take = Callable[[bytes], None]
"""What the application does with a message."""

PATIENCE = 10.0  # seconds to find each other
TICK = 0.2  # seconds between two looks at whether to stop


@dataclass(frozen=True)
class Ends:
    """The addresses of (first) sensor, hardworker and logger, a port that is free on all, and how many.

    slow: how many times slower the hardworker's clock runs than that of the program which gets this: the
    timers of its library have to be as much longer.
    """

    sensor: str
    address: str
    logger: str
    port: int
    sensors: int
    size: int
    slow: int = 1


class Middleware(Protocol):
    """A module of this package."""

    def receive(self, ends: Ends, take: Take, ready: Callable[[], None], stopped: Callable[[], bool]) -> None:
        """On the hardworker: `ready()` once messages can come, `take` each, return when `stopped()`."""

    def log(self, ends: Ends, take: Take, ready: Callable[[], None], stopped: Callable[[], bool]) -> None:
        """On the logger, likewise: the broker, and whoever takes the logger's copy."""

    def connect(self, ends: Ends) -> "Sender":
        """On the sensors: connect them all, and return when the receivers are known."""


class Sender(Protocol):
    """The sensors of a middleware."""

    def send(self, sensor: int, message: bytes) -> None:
        """Send one message, reliably: wait rather than drop it."""

    def close(self) -> None:
        """See that all has been sent, then disconnect."""
