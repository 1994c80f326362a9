"""The logger: the ordinary TCP end of every connection, and the database behind it."""

from midstream.logger.receiver import LoggerSummary
from midstream.logger.server import Logger

__all__ = ["Logger", "LoggerSummary"]
