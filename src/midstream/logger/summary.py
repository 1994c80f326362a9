"""What a logger has done."""

from dataclasses import dataclass


@dataclass(slots=True)
class LoggerSummary:
    """What a logger has done since it listens.

    connections: accepted. messages, bytes: committed, frames included. commits: transactions. unfinished:
    connections that ended inside a message. resets: connections that ended by a reset or a time-out instead
    of a FIN. framing_errors: connections closed because their bytes do not follow the framing. restarts: of
    the worker, because it was killed or failed. forgotten: messages that a full spool has given up. waits:
    times that the database could not be written and the sensors had to wait. seconds: of serving.
    """

    connections: int = 0
    messages: int = 0
    bytes: int = 0
    commits: int = 0
    unfinished: int = 0
    resets: int = 0
    framing_errors: int = 0
    restarts: int = 0
    forgotten: int = 0
    waits: int = 0
    seconds: float = 0.0
