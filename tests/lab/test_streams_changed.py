"""Streams that come, go and change places while the program is attached, and whoever does it is killed."""

import os
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.lab.test_streams_read import DRAIN
from tests.lab.triangle import HARDWORKER, LOGGER, PATIENCE, TOS, wait_until

from midstream import config, network, streams
from midstream.config import Config
from midstream.ebpf import control, irq_mitigation, libbpf, loader, pins
from midstream.errors import LabError
from midstream.lab import Lab, state
from midstream.network import Topology

FOLDER = Path("/sys/fs/bpf/midstream-lab/hardworker")
IMU = {"name": "imu", "port": 12345, "size": 64}
GPS = {"name": "gps", "port": 12349, "size": 64}
LIDAR = {"name": "lidar", "port": 12348, "size": 1024}
Tables = tuple[Mapping[str, object], ...]
LAB: dict[str, Any] = {"sensors": 1, "stream": [IMU, GPS]}


def files(lab: Lab, *tables: Mapping[str, object]) -> tuple[Config, Topology]:
    """What both files say where these are the streams."""
    written = tomllib.loads(lab.config.read_text()) | {"stream": tables}
    settings = config.parse(state.toml(written), lab.config)
    named = streams.decide(settings, ())
    known = network.load(lab.const)
    return settings, replace(known, port=named[0].port, size=named[0].size, streams=named)


def attach(settings: Config, topology: Topology) -> None:
    loader.attach("hardworker", settings, topology, interface="eth0", replace=True)


def rings() -> dict[str, int]:
    """The number of the ring of each stream."""
    found = {}
    for name, place in pins.stream_folders(FOLDER).items():
        fd = pins.open_map(place, "ring")
        found[name] = libbpf.map_info(fd).id
        os.close(fd)
    return found


def die_at(step: int, settings: Config, topology: Topology) -> None:
    """Attach, and be killed before the step of that number is taken."""
    steps = count()

    def take(*_: object) -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(name: str) -> None:
        function: Callable[..., Any] = getattr(libbpf, name)

        def step_taken(*given: Any, **named: Any) -> Any:
            take()
            return function(*given, **named)

        setattr(libbpf, name, step_taken)

    counted("pin")
    counted("link_update")
    changes = {"os.remove", "os.rename", "os.rmdir", "os.mkdir"}
    sys.addaudithook(lambda event, given: take() if event in changes and str(FOLDER) in str(given) else None)
    attach(settings, topology)


@pytest.fixture(scope="module")
def served(attached: Lab) -> Iterator[Lab]:
    """With an ordinary TCP server on the logger at each port."""
    ports = [str(table["port"]) for table in (IMU, GPS, LIDAR)]
    process = attached.popen(
        "logger", [sys.executable, "-c", DRAIN, LOGGER, *ports], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout and process.stdout.readline() == "listening\n"
        yield attached
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("former", "later"), [((IMU, GPS), (IMU, LIDAR)), ((IMU, LIDAR), (IMU,)), ((IMU,), (IMU, GPS))]
)
def test_killed_at_any_step_what_stays_goes_on(served: Lab, former: Tables, later: Tables) -> None:
    """A stream comes or goes, or both. The one that stays keeps its ring, and its sensors are served."""
    before, after = files(served, *former), files(served, *later)
    served.call("hardworker", attach, *before)
    ring, killed, step = rings()["imu"], True, 0
    while killed:
        served.call("hardworker", attach, *before)
        try:
            served.call("hardworker", die_at, step, *after)
            killed = False
        except LabError:
            served.call("sensor", connect)
        served.call("hardworker", attach, *after)
        assert rings()["imu"] == ring, f"killed before step {step}"
        assert set(rings()) == {stream.name for stream in after[1].streams}
        assert pins.is_whole("hardworker", FOLDER)
        step += 1
    assert step > 10


def test_two_that_change_their_names_change_their_rings(served: Lab) -> None:
    served.call("hardworker", attach, *files(served, IMU, GPS))
    swapped = files(served, IMU | {"port": GPS["port"]}, GPS | {"port": IMU["port"]})
    served.call("hardworker", attach, *swapped)
    control.ended(FOLDER)
    served.call("sensor", connect)
    ended: list[control.Ended] = []

    def found() -> bool:
        ended.extend(control.ended(FOLDER))
        return bool(ended)

    wait_until(found)
    assert [each.stream for each in ended] == ["gps"]


def test_the_interface_follows_the_streams_that_there_are(attached: Lab) -> None:
    attached.call("hardworker", loader.detach, "hardworker", FOLDER)
    before = attached.call("hardworker", irq_mitigation.read, "eth0")
    imu = IMU | {"period": 0.02}
    for others, expected in (
        ((), irq_mitigation.matched(0.02)),
        ((GPS | {"period": 0.01},), irq_mitigation.matched(0.01)),
        ((GPS | {"period": 0.01}, LIDAR), before),
        ((GPS | {"period": 0.01},), irq_mitigation.matched(0.01)),
    ):
        attached.call("hardworker", attach, *files(attached, imu, *others))
        assert attached.call("hardworker", irq_mitigation.read, "eth0") == expected
    attached.call("hardworker", loader.detach, "hardworker", FOLDER)
    assert attached.call("hardworker", irq_mitigation.read, "eth0") == before


def connect() -> None:
    """Through the program to the logger: nobody listens on the hardworker."""
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, TOS)
        client.connect((HARDWORKER, 12345))
