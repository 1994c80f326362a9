"""Looking at what the logger has stored: list, show, export, plot, verify, and make room.

`midstream.storage` reads the databases (`Log` in stored.py). messages puts all connections in order of time,
decoding makes names and values of payloads, and the others each do one thing with that. `table` is for
programs: the messages of a stream as an Arrow table.
"""

from midstream.log.tables import table

__all__ = ["table"]
