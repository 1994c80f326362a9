"""The logger: the ordinary TCP end of every connection, and the database behind it.

server starts it all. holder keeps the sockets, with the door through which they come; worker peeks at what
they bring, peer makes messages of it, and writer has them stored. exchange answers hardworkers: replaying,
backfilling and holding are what they may ask for. On a hardworker spool is the same logger with a
file of its own, and backfill sends on what that holds.
"""

from midstream.logger.server import Logger
from midstream.logger.summary import LoggerSummary

__all__ = ["Logger", "LoggerSummary"]
