"""Streams that come and go while a sensor of another one sends: nothing of that one is lost."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from tests.lab.triangle import HARDWORKER, LOGGER, PINS, TOS, wait_until

from midstream import Hardworker, network
from midstream.config import Config
from midstream.ebpf import control, loader, pins
from midstream.lab import Lab
from midstream.network import SensorStream, Topology

IMU = SensorStream("imu", 12345, "fixed", 64)
GPS = SensorStream("gps", 12348, "line", 200)
LIDAR = SensorStream("lidar", 12349, "length", 1 << 20)
FOLDER = PINS / "hardworker"
DRAIN = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
connection, _ = listener.accept()
while connection.recv(1 << 16):
    pass
"""
SEND = """
import socket, sys
with socket.socket() as sensor:
    sensor.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, int(sys.argv[3]))
    sensor.connect((sys.argv[1], int(sys.argv[2])))
    for line in sys.stdin:
        sensor.sendall(int(line).to_bytes(64, "little"))
        print("sent", flush=True)
"""


def with_streams(lab: Lab, *streams: SensorStream) -> tuple[Config, Topology]:
    """What the files say with these."""
    topology = replace(network.load(lab.const), streams=streams, port=streams[0].port, size=streams[0].size)
    network.write(lab.const, topology, "a test")
    lab.config.write_text(f'[network]\npins = "{PINS}"\n')
    return Config.from_json(f'{{"network": {{"pins": "{PINS}"}}}}', lab.config), topology


def attach(lab: Lab, *streams: SensorStream) -> None:
    config, topology = with_streams(lab, *streams)
    lab.call("hardworker", loader.attach, "hardworker", config, topology, self_test=False, replace=True)


class ImuSensor:
    """A sensor's connection, which sends numbers, and the logger's end of it."""

    def __init__(self, lab: Lab) -> None:
        self.sent = 0
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._logger = lab.popen("logger", [sys.executable, "-c", DRAIN, LOGGER, str(IMU.port)], **pipes)
        assert self._logger.stdout and self._logger.stdout.readline() == "listening\n"
        self._sensor = lab.popen(
            "sensor", [sys.executable, "-c", SEND, HARDWORKER, str(IMU.port), str(TOS)], **pipes
        )

    def send(self) -> None:
        assert self._sensor.stdin and self._sensor.stdout
        self._sensor.stdin.write(f"{self.sent}\n")
        self._sensor.stdin.flush()
        assert self._sensor.stdout.readline() == "sent\n"
        self.sent += 1

    def close(self) -> None:
        for process in (self._sensor, self._logger):
            process.kill()
            process.communicate()


@contextmanager
def imu_sensor(lab: Lab) -> Iterator[ImuSensor]:
    sensor = ImuSensor(lab)
    try:
        yield sensor
    finally:
        sensor.close()


def held(sensor: ImuSensor) -> bool:
    opened = control.connections(FOLDER)
    return [one.next for one in opened if one.stream == "imu"] == [64 * sensor.sent]


@pytest.fixture
def logger_program(lab: Lab) -> None:
    config, topology = with_streams(lab, IMU, GPS, LIDAR)
    lab.call("logger", loader.attach, "logger", config, topology)


def test_streams_come_and_go_while_one_is_open(lab: Lab, logger_program: None) -> None:
    attach(lab, IMU, GPS)
    with imu_sensor(lab) as sensor:
        for streams in ((IMU, GPS, LIDAR), (GPS, IMU), (LIDAR, IMU), (IMU,), (IMU, GPS)):
            sensor.send()
            wait_until(lambda: held(sensor), 5)
            attach(lab, *streams)
            assert set(pins.stream_folders(FOLDER)) == {stream.name for stream in streams}
            assert pins.missing("hardworker", FOLDER) == []
            assert not (FOLDER / "aside").exists()
            assert (FOLDER / "ports").exists() == (len(streams) > 1)
        sensor.send()
        wait_until(lambda: held(sensor), 5)
        with Hardworker(lab.config) as hardworker:
            numbers = [int.from_bytes(each.payload, "little") for each in hardworker.stream("imu").messages()]
        assert numbers == list(range(sensor.sent))
