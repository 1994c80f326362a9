"""Looking at what the logger has stored: list, show, export, plot, verify, and make room.

The logger's own modules read its databases; messages puts all connections in order of time; decoding makes
names and values of payloads; the others each do one thing with that.
"""
