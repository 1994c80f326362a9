"""A power cut of a host of the lab: nothing of its memory is left, and nobody hears of its end.

The cable is out first, so that no FIN and no reset leaves. Then everything that runs there is killed, its TCP
sockets are destroyed, and on the hardworker the program and its maps go. What is on the disk stays.
"""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress

from tests.lab.processes import on_host
from tests.lab.test_daemon import set_port
from tests.lab.triangle import PINS

from midstream.lab import Lab
from midstream.lab.hosts import INTERFACE

_ENDS = 5.0  # seconds until the kernel has taken away what was killed


def cut(lab: Lab, host: str) -> None:
    """Switch it off."""
    set_port(lab, host, "disabled")
    deadline = time.monotonic() + _ENDS
    while pids := on_host(host):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < deadline, f"{host}: {pids} live"
        time.sleep(0.005)
    lab.call(host, _forget)
    if host == "hardworker":
        shutil.rmtree(PINS / host, ignore_errors=True)


def switch_on(lab: Lab, host: str) -> None:
    """Let its cable carry again; whoever wants its programs starts them."""
    set_port(lab, host, "forwarding")


def _forget() -> None:
    """The kernel's memory of a host: its TCP connections, its neighbours, its programs."""
    for command in (
        ("ss", "--kill", "--tcp", "state", "all"),
        ("ip", "neigh", "flush", "dev", INTERFACE, "nud", "all"),
        ("ip", "link", "set", "dev", INTERFACE, "xdp", "off"),
        ("tc", "qdisc", "del", "dev", INTERFACE, "clsact"),
    ):
        subprocess.run(command, check=False, capture_output=True)  # what is not there need not go
