"""The fixtures of the lab; see tests/lab/fixtures.py."""

from tests.lab.fixtures import application, attached, lab, machine, nothing_left_behind, ping, triangle

__all__ = ["application", "attached", "lab", "machine", "nothing_left_behind", "ping", "triangle"]
