"""The demonstration: the whole triangle on one machine, watched while it runs and judged afterwards.

run starts and ends everything; programs are the child processes, senders those that send, application the
hardworker's where it has several streams; observer looks on while they work; records reads what each wrote
down; verdict compares it; view shows it.
"""

from midstream.demo.run import DemoReport, Settings, run
from midstream.demo.verdict import DemoVerdict

__all__ = ["DemoReport", "DemoVerdict", "Settings", "run"]
