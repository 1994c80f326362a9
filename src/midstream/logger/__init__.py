"""The logger: the ordinary TCP end of every connection, and the database behind it."""

from midstream.logger.server import Logger
from midstream.logger.summary import LoggerSummary

__all__ = ["Logger", "LoggerSummary"]
