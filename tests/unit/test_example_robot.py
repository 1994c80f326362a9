"""The example with two streams, by sockets: each process has the messages of its own."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.hosts import SENSORS, free_port, topology
from tests.unit.hardworker.test_handler import listen
from tests.unit.hardworker.test_merged_sockets import connect_patiently

from midstream import config as configuration
from midstream import fields, network, streams

EXAMPLES = Path(__file__).parents[2] / "examples"
IMU = np.dtype([("seq", "<u8"), ("time", "<u8"), ("angular_rate", "<f8", 3), ("rest", "V24")])
PATIENCE = 20.0


@pytest.fixture
def ports(tmp_path: Path) -> dict[str, int]:
    """Of the streams in robot.toml, which are free ones here."""
    found = {"12345": free_port(), "12348": free_port()}
    text = (EXAMPLES / "robot.toml").read_text()
    for before, port in found.items():
        text = text.replace(f"port = {before}", f"port = {port}")
    path = tmp_path / "config.toml"
    path.write_text(f'{text}\n[hardworker]\nreceiver = "socket"\n')
    decided = streams.decide(configuration.load(path), ())
    first = decided[0]
    network.write(
        tmp_path / "const.toml",
        replace(topology(), port=first.port, size=first.size, streams=decided),
        "a test",
    )
    return {stream.name: stream.port for stream in decided}


def said(folder: Path, what: str, port: int, data: bytes) -> Any:
    """What a process of the example says first of this data."""
    with listen(port):
        process = subprocess.Popen(
            [sys.executable, "-u", EXAMPLES / "robot.py", what], cwd=folder, stdout=subprocess.PIPE, text=True
        )
        try:
            with connect_patiently(port, SENSORS[0]) as sensor:
                sensor.sendall(data)
                assert process.stdout
                return json.loads(process.stdout.readline())
        finally:
            process.kill()
            process.communicate(timeout=PATIENCE)


def test_the_fields_are_where_the_sensor_writes_them(tmp_path: Path, ports: dict[str, int]) -> None:
    config = configuration.load(tmp_path / "config.toml")
    stream = streams.only(config, network.load(config.const_path), "imu")
    layout = fields.layout(stream.config, 64)
    assert layout and layout.dtype.fields and IMU.fields
    assert {name: found[1] for name, found in layout.dtype.fields.items()} == {
        name: found[1] for name, found in IMU.fields.items() if name != "rest"
    }


def test_the_control_loop(tmp_path: Path, ports: dict[str, int]) -> None:
    rows = np.zeros(200, IMU)
    rows["seq"] = range(200)
    rows["angular_rate"][77] = (0.5, -2.5, 1.0)
    found = said(tmp_path, "control", ports["imu"], rows.tobytes())
    assert (found["messages"], found["fastest_turn"]) == (200, 2.5)
    assert found["silent"] == [SENSORS[0]], "of the others no such data is expected"


def test_the_mapper(tmp_path: Path, ports: dict[str, int]) -> None:
    scan = bytes(1 << 20)
    found = said(tmp_path, "mapping", ports["lidar"], len(scan).to_bytes(4, "big") + scan)
    assert found == {"sensor": SENSORS[0], "scan": 0, "bytes": len(scan)}
