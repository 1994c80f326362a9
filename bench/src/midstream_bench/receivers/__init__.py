"""The receivers that come with midstream: itself, ordinary sockets in C and Python, and the floor.

What a receiver is, and what each of them does with a message: bench/receiver.py.
"""

from midstream_bench.receivers.registry import PERIOD, RECEIVERS

__all__ = ["PERIOD", "RECEIVERS"]
