"""A program that serves several streams, each on a connection and at a rate of its own."""

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.hosts import LOGGER
from tests.support.several import GPS, IMU, LIDAR, SIZE, STREAMS, write_files
from tests.unit.sensor.test_sensor import Receiver

from midstream import cli
from midstream.errors import ConfigError
from midstream.framing import decoder
from midstream.sensor import SENT_DTYPE, Sensor, numbered_lines

NAMES = (IMU, GPS, LIDAR)


@pytest.fixture
def listeners() -> Iterator[dict[str, socket.socket]]:
    """Where the logger listens, by stream."""
    with ExitStack() as opened:
        made = {name: opened.enter_context(socket.create_server((LOGGER, 0))) for name in NAMES}
        for listener in made.values():
            listener.settimeout(10)
        yield made


@pytest.fixture
def config(tmp_path: Path, listeners: dict[str, socket.socket]) -> Path:
    streams = tuple(
        replace(stream, port=listeners[stream.name].getsockname()[1], freq=1000.0) for stream in STREAMS
    )
    return write_files(tmp_path, settings='[sensor]\ntarget = "logger"\n', streams=streams)


def run(
    *arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, code: int = 0
) -> Any:
    """What `midstream sensor` says: an object, or its fault."""
    monkeypatch.setattr(sys, "argv", ["midstream", "sensor", "--json", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code or 0) == code, err
    return json.loads(out) if not code else err


def messages(name: str, data: bytes) -> list[bytes]:
    """The messages in a stream's bytes."""
    stream = next(stream for stream in STREAMS if stream.name == name)
    return list(decoder(stream.framing, size=SIZE, max_size=stream.size).feed(data))


def test_a_sensor_of_one_stream(config: Path, listeners: dict[str, socket.socket]) -> None:
    receiver = Receiver(listeners[GPS])
    with Sensor(config, stream=GPS) as sensor:
        sensor.send(b"$GPGGA,1")
        sensor.send(b"$GPGGA,2")
    assert receiver.finish() == b"$GPGGA,1\n$GPGGA,2\n"


def test_the_stream_has_to_be_named(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"several streams: say which one; there are imu, gps, lidar"):
        Sensor(config)
    with pytest.raises(ConfigError, match=r'no stream "camera"; there are imu, gps, lidar'):
        Sensor(config, stream="camera")


def test_the_command_needs_a_name(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run("-c", str(config), capsys=capsys, monkeypatch=monkeypatch, code=2)
    assert "say which one; there are imu, gps, lidar" in said
    given = ("-c", str(config), "--stream", "all", "--input", str(config))
    said = run(*given, capsys=capsys, monkeypatch=monkeypatch, code=2)
    assert "--input: its messages are of one stream; name one of imu, gps, lidar" in said


@pytest.mark.parametrize("names", [NAMES, (GPS, IMU), (LIDAR,)])
def test_one_program_serves_several(
    config: Path,
    listeners: dict[str, socket.socket],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
) -> None:
    receivers = {name: Receiver(listeners[name]) for name in names}
    asked = ["all"] if names == NAMES else names
    record = tmp_path / "sent"
    said = run(
        "-c",
        str(config),
        *(word for name in asked for word in ("--stream", name)),
        *("--messages", "100", "--record", str(record)),
        capsys=capsys,
        monkeypatch=monkeypatch,
    )
    for name, receiver in receivers.items():
        found = messages(name, receiver.finish())
        numbers = [
            int(each.split()[0]) if name == GPS else int.from_bytes(each[:8], "little") for each in found
        ]
        assert numbers == list(range(100))
        assert 0.09 < receiver.times[-1] - receiver.times[0] < 3.0
        file = record if len(names) == 1 else tmp_path / f"sent.{name}"
        assert np.fromfile(file, SENT_DTYPE)["sequence"].tolist() == numbers
        summary = said["streams"][name] if len(names) > 1 else said
        assert (summary["messages"], summary["clean"], summary["port"]) == (100, True, receiver.peer[1])
    assert (said["messages"], said["clean"]) == (100 * len(names), True)


def test_a_stream_that_fails_ends_the_others(
    config: Path,
    listeners: dict[str, socket.socket],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its peer is gone; the others would go on for ever."""

    class Closing(Receiver):
        def run(self) -> None:
            connection, _ = listeners[GPS].accept()
            connection.close()

    receivers = [Receiver(listeners[IMU]), Closing(listeners[GPS])]
    given = ("-c", str(config), "--stream", IMU, "--stream", GPS)
    said = run(*given, capsys=capsys, monkeypatch=monkeypatch, code=5)
    assert "was lost after" in said
    for receiver in receivers:
        receiver.finish()


def test_numbered_lines() -> None:
    assert [line.split()[0] for line in numbered_lines(3)] == [b"0", b"1", b"2"]
    assert next(numbered_lines(None)).startswith(b"0 ")
