"""Several streams through the real program: each read by itself, and all by one application."""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from tests.lab.triangle import LOGGER, PATIENCE, wait_until

from midstream import Hardworker, config, network
from midstream.ebpf import loader
from midstream.errors import LabError
from midstream.lab import Lab
from midstream.network import Host, Topology

ROBOT = Path(__file__).parents[2] / "examples" / "robot.py"
PORTS = {"imu": 12345, "lidar": 12348, "gps": 12349}
LAB = {
    "sensors": 1,
    "stream": [
        {
            "name": "imu",
            "port": PORTS["imu"],
            "size": 64,
            "freq": 1000.0,
            "period": 0.002,
            "field": [
                {"name": "seq", "type": "u64"},
                {"name": "time", "type": "u64"},
                {"name": "angular_rate", "type": "u32", "count": 3},
            ],
        },
        {"name": "lidar", "port": PORTS["lidar"], "framing": "length", "max_size": 1 << 18, "freq": 20.0},
        {"name": "gps", "port": PORTS["gps"], "framing": "line", "max_size": 200, "freq": 5.0},
    ],
}
READER = """
import sys
from midstream import Hardworker
with Hardworker(sys.argv[1]) as hardworker:
    for message in hardworker:
        print(message.stream, message.sequence, flush=True)
"""
DRAIN = """
import socket, sys, threading
def serve(listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=drain, args=(connection,), daemon=True).start()
def drain(connection):
    while connection.recv(1 << 20):
        pass
    connection.close()
for port in map(int, sys.argv[2:]):
    threading.Thread(target=serve, args=(socket.create_server((sys.argv[1], port)),)).start()
print("listening", flush=True)
"""


@contextmanager
def logger(lab: Lab) -> Iterator[None]:
    """An ordinary TCP server at each port: who reads the rings does not ask what becomes of the bytes."""
    ports = map(str, PORTS.values())
    process = lab.popen(
        "logger", [sys.executable, "-c", DRAIN, LOGGER, *ports], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout and process.stdout.readline() == "listening\n"
        yield
    finally:
        process.kill()
        process.communicate()


def sent(lab: Lab, *arguments: str) -> Any:
    """What `midstream sensor` says of all streams."""
    command: list[str | Path] = [sys.executable, "-m", "midstream", "sensor", "--config", lab.config]
    command += ["--json", *arguments]
    ended = lab.run("sensor", command, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_all_streams_are_read_as_one(attached: Lab) -> None:
    numbers: dict[str, list[int]] = defaultdict(list)
    with Hardworker(attached.config) as hardworker, logger(attached):
        assert hardworker.latest() is None
        said = sent(attached, "--stream", "all", "--messages", "40", "--rate", "200")
        assert {name: each["messages"] for name, each in said["streams"].items()} == dict.fromkeys(PORTS, 40)
        for message in hardworker:
            text = message.stream == "gps"
            number = message.payload.split()[0] if text else message.payload[:8]
            numbers[message.stream].append(int(number) if text else int.from_bytes(number, "little"))
            assert message.sequence == numbers[message.stream][-1]
            if sum(map(len, numbers.values())) == 3 * 40:
                break
        assert hardworker.totals.messages == 3 * 40
    assert numbers == {name: list(range(40)) for name in PORTS}


def test_killed_again_and_again(attached: Lab, tmp_path: Path) -> None:
    """Every message of every stream: each reader goes on where the last one had committed."""
    command: list[str | Path] = [sys.executable, "-m", "midstream", "sensor", "--config", attached.config]
    command += ["--stream", "all", "--messages", "250", "--rate", "50"]
    known, life = dict.fromkeys(PORTS, 0), 0
    with logger(attached):
        sensor = attached.popen("sensor", command)
        while min(known.values()) < 250:
            said, life = tmp_path / str(life), life + 1
            with said.open("w") as out:
                arguments: list[str | Path] = [sys.executable, "-c", READER, attached.config]
                reader = attached.popen("hardworker", arguments, stdout=out)
                end = time.monotonic() + 2.0
                while said.read_text().count("\n") < 40 and time.monotonic() < end:
                    time.sleep(0.01)
                reader.kill()
                reader.wait()
            follow(said.read_text(), known)
        assert sensor.wait(PATIENCE) == 0
    assert known == dict.fromkeys(PORTS, 250)
    assert life > 2


def follow(said: str, known: dict[str, int]) -> None:
    """What one reader has got of each stream: in order, from a message on that was due, or came before."""
    following: dict[str, int] = {}
    for line in said.splitlines(keepends=True):
        if line.endswith("\n"):
            stream, number = line.split()
            expected = following.get(stream)
            assert int(number) == expected if expected is not None else int(number) <= known[stream]
            following[stream] = int(number) + 1
            known[stream] = max(known[stream], following[stream])


def test_each_process_reads_a_stream_of_its_own(attached: Lab, tmp_path: Path) -> None:
    with application(attached, tmp_path / "control", "control") as control, logger(attached):
        with application(attached, tmp_path / "mapping", "mapping") as mapping:
            sent(attached, "--stream", "imu", "--stream", "lidar", "--messages", "60")
            wait_until(lambda: mapping.read_text().count("\n") >= 60)
        with Hardworker(attached.config, stream="gps") as gps:
            sent(attached, "--stream", "gps", "--messages", "5")
            wait_until(lambda: (newest := gps.latest()) is not None and newest.sequence == 4)
        wait_until(lambda: sum(line["messages"] for line in objects(control)) == 60)
    scans = objects(mapping)
    assert [scan["scan"] for scan in scans] == list(range(60))
    assert {scan["bytes"] for scan in scans} == {1 << 18}


def test_who_replaces_the_programs_is_killed(attached: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the interface has the new ones, and no pins name them yet. They serve, until another comes."""
    topology = network.load(attached.const)
    more = replace(topology, standbys=(Host(IPv4Address("10.83.0.99"), "02:00:00:00:00:99"),))
    with Hardworker(attached.config, stream="gps") as gps, logger(attached):
        for number, one in enumerate((more, topology)):
            if one is more:
                monkeypatch.setattr(loader, "_pin", lambda *_: os._exit(9))
                with pytest.raises(LabError):
                    attached.call("hardworker", attach, attached, more)
                monkeypatch.undo()
            else:
                attached.call("hardworker", attach, attached, topology)
            sent(attached, "--stream", "gps", "--messages", "5")
            wait_until(lambda: (newest := gps.latest()) is not None and newest.sequence == 4)
            assert gps.totals.messages == 5 * (number + 1)


def attach(lab: Lab, topology: Topology) -> None:
    loader.attach("hardworker", config.load(lab.config), topology, replace=True)


@contextmanager
def application(lab: Lab, file: Path, what: str) -> Iterator[Path]:
    """A process of the example on the hardworker, and the file with what it prints."""
    with file.open("w") as out:
        process = lab.popen("hardworker", [sys.executable, "-u", ROBOT, what, lab.config], stdout=out)
    try:
        yield file
        assert process.poll() is None, "it ended by itself"
    finally:
        process.kill()
        process.wait()


def objects(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]
