"""Three hosts on one machine: sensors, hardworker and logger as network namespaces around a switch.

lab = up(sensors=2)
lab.run("sensor", ["ping", "-c1", "10.83.0.2"])
down()
"""

from midstream.lab.cpu import Meter, Usage
from midstream.lab.faults import ImpairedLeg, clear, impair, impairments
from midstream.lab.hosts import LabHost
from midstream.lab.impairment import Impairment, LabLeg, parse_impairment
from midstream.lab.lab import Lab
from midstream.lab.lifecycle import LabStatus, configure, down, find, status, up
from midstream.lab.namespaces import Process

__all__ = [
    "ImpairedLeg",
    "Impairment",
    "Lab",
    "LabHost",
    "LabLeg",
    "LabStatus",
    "Meter",
    "Process",
    "Usage",
    "clear",
    "configure",
    "down",
    "find",
    "impair",
    "impairments",
    "parse_impairment",
    "status",
    "up",
]
