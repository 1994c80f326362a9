"""The lab for tests of real packets.

A test module asks for `lab`: a lab of its own, with two sensors or as its `LAB` says, a dictionary of
arguments of `up`; a test that is parametrized with `lab` indirectly gets another one. `attached` has the
programs attached as well, and `triangle` a logger that runs. After the last test of each module nothing may
be left on the machine.
"""

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import netns  # type: ignore[import-untyped]  # pyroute2 ships no types
from tests.lab.processes import processes
from tests.lab.triangle import started

from midstream import lab as midstream_lab
from midstream.hardworker import Hardworker
from midstream.lab import Lab, programs


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    machine = Machine()
    midstream_lab.down()
    before = machine.traces()
    yield
    midstream_lab.down()
    machine.settles_to(before)


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    arguments: dict[str, Any] = {"sensors": 2, "run_dir": tmp_path_factory.mktemp("lab")}
    arguments |= getattr(request.module, "LAB", {}) | getattr(request, "param", {})
    try:
        yield midstream_lab.up(**arguments)
    finally:
        midstream_lab.down()


@pytest.fixture(scope="module")
def attached(lab: Lab) -> Lab:
    """The lab with its programs attached, which go when the lab goes."""
    programs.attach(lab)
    return lab


@pytest.fixture(scope="module")
def triangle(attached: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The attached lab with a logger that stores in midstream.db of the run directory."""
    arguments = ("logger", "--config", attached.config, "--json")
    with started(
        attached, "logger", tmp_path_factory.mktemp("logger"), *arguments, ready="listening"
    ) as logger:
        yield attached
        ended = logger.end()
    assert (ended.code, ended.err) == (0, "logger: listening\n")
    assert ended.object["framing_errors"] == 0


@pytest.fixture
def application(triangle: Lab) -> Iterator[Hardworker]:
    """The hardworker's application, in this process: the pins are the machine's, not the host's."""
    with Hardworker(triangle.config) as hardworker:
        yield hardworker


@pytest.fixture
def machine() -> "Machine":
    return Machine()


@pytest.fixture
def ping() -> Callable[[str], bool]:
    """A function to call on a host: whether an address answers."""
    return _ping


class Machine:
    """What a lab could leave on the machine."""

    def traces(self) -> dict[str, object]:
        return {
            "namespaces": sorted(netns.listnetns()),
            "network namespaces in use": len(_namespaces_of_processes()),
            "links": sorted(os.listdir("/sys/class/net")),
            "pins": Path("/sys/fs/bpf/midstream-lab").exists(),
            # A kernel thread does not tell of which worker's lab it is.
            "NAPI threads": [] if "PYTEST_XDIST_WORKER" in os.environ else sorted(_napi_threads()),
            "files": sorted(str(path) for path in Path("/run").glob("midstream-lab*")),
            "mounts": [
                line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "/ms-" in line
            ],
        }

    def settles_to(self, expected: dict[str, object]) -> None:
        """Assert that the traces are these within a second: a killed process needs a moment to end."""
        deadline = time.monotonic() + 1
        while (found := self.traces()) != expected and time.monotonic() < deadline:
            time.sleep(0.02)
        assert found == expected


def _ping(address: str) -> bool:
    """One ICMP echo request (RFC 792); whether the answer came within a second."""
    body = struct.pack("!HH", os.getpid() & 0xFFFF, 1) + b"midstream"
    request = struct.pack("!BBH", 8, 0, _checksum(b"\x08\0\0\0" + body)) + body
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sender:
        sender.settimeout(1)
        sender.sendto(request, (address, 0))
        try:
            while True:
                packet, (source, _) = sender.recvfrom(2048)
                if source == address and packet[20] == 0 and packet[24:] == body:
                    return True
        except TimeoutError:
            return False


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _namespaces_of_processes() -> set[int]:
    found = set()
    for process in processes():
        with suppress(OSError):
            found.add(os.stat(process / "ns/net").st_ino)
    return found


def _napi_threads() -> Iterator[int]:
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if Path("/proc", entry, "comm").read_text().startswith("napi/"):
                yield int(entry)
