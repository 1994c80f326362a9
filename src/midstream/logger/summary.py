"""What a logger has done."""

from dataclasses import dataclass


@dataclass(slots=True)
class LoggerSummary:
    connections: int = 0  # accepted
    messages: int = 0  # committed
    bytes: int = 0  # committed, frames included
    commits: int = 0  # transactions
    unfinished: int = 0  # connections that ended inside a message
    resets: int = 0  # connections that ended by a reset or a time-out instead of a FIN
    framing_errors: int = 0  # connections closed because their bytes do not follow the framing
    restarts: int = 0  # of the worker, because it was killed or failed
    forgotten: int = 0  # messages that a full spool has given up
    waits: int = 0  # times that the database could not be written and the sensors had to wait
    seconds: float = 0.0  # of serving
