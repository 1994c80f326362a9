"""Several streams by ordinary sockets, each at a port of its own; and the command that receives them."""

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.support.hosts import SENSORS, free_port
from tests.support.several import GPS, IMU, LIDAR, SIZE, STREAMS, content, encoded, write_files
from tests.unit.hardworker.test_handler import accept, connect, listen, receive_all, send_all

from midstream import cli
from midstream.errors import NetworkError
from midstream.framing import decoder
from midstream.hardworker import Hardworker
from midstream.hardworker.recording import recorded_dtype

NAMES = (IMU, GPS, LIDAR)
COUNT = 50


class Peers:
    """The logger's listeners, and sensors that send COUNT messages of each stream."""

    def __init__(self, opened: ExitStack, folder: Path, head: str = "") -> None:
        self.ports = {name: free_port() for name in NAMES}
        streams = tuple(replace(stream, port=self.ports[stream.name]) for stream in STREAMS)
        settings = '[hardworker]\nreceiver = "socket"\n'
        self.config = write_files(folder, {IMU: "period = 0.01"}, settings, streams, head)
        self.listeners = {name: opened.enter_context(listen(port)) for name, port in self.ports.items()}
        self.relayed: dict[str, bytes] = {}

    def exchange(self) -> list[threading.Thread]:
        """Each stream is sent and relayed in a thread of its own."""
        threads = [threading.Thread(target=self._exchange, args=(name,)) for name in NAMES]
        for thread in threads:
            thread.start()
        return threads

    def _exchange(self, name: str) -> None:
        sensor = SENSORS[NAMES.index(name)]
        with connect_patiently(self.ports[name], sensor) as client, accept(self.listeners[name]) as relayed:
            send_all(client, b"".join(encoded(name, number) for number in range(COUNT)))
            self.relayed[name] = receive_all(relayed)


def connect_patiently(port: int, sensor: str) -> socket.socket:
    """A connection, as soon as somebody listens."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return connect(port, sensor)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_all_streams_are_read_and_relayed(tmp_path: Path, opened: ExitStack) -> None:
    peers = Peers(opened, tmp_path)
    found = []
    with Hardworker(peers.config) as hardworker:
        assert hardworker.latest() is None
        threads = peers.exchange()
        for message in hardworker:
            found.append(message)
            if len(found) == len(NAMES) * COUNT:
                break
        while any(thread.is_alive() for thread in threads):
            hardworker.wait(0.01)
            assert not list(hardworker.messages())
        assert hardworker.totals.opened == len(NAMES)
    for place, name in enumerate(NAMES):
        own = [message for message in found if message.stream == name]
        assert [message.payload for message in own] == [content(name, number) for number in range(COUNT)]
        assert [message.sequence for message in own] == list(range(COUNT))
        assert {message.sensor for message in own} == {SENSORS[place]}
        stream = next(each for each in STREAMS if each.name == name)
        frames = decoder(stream.framing, size=SIZE, max_size=stream.size)
        assert list(frames.feed(peers.relayed[name])) == [message.payload for message in own]
    assert {message.connection for message in found} == {1, 2, 3}


def test_one_stream_listens_alone(tmp_path: Path, opened: ExitStack) -> None:
    peers = Peers(opened, tmp_path)
    with Hardworker(peers.config) as hardworker:
        hardworker.stream(GPS)
        with pytest.raises(ConnectionRefusedError):
            connect(peers.ports[IMU])
        with (
            Hardworker(peers.config, stream=IMU),
            pytest.raises(NetworkError, match=f"{peers.ports[IMU]}: cannot listen"),
        ):
            hardworker.stream(IMU)
        assert hardworker.stream(IMU).message_size == SIZE


@pytest.mark.parametrize("names", [(), (GPS,)])
def test_the_command_counts_each_stream(
    tmp_path: Path,
    opened: ExitStack,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
) -> None:
    peers = Peers(opened, tmp_path, "timeout = 2.0")
    record = tmp_path / "received"
    given = [word for name in names for word in ("--stream", name)]
    monkeypatch.setattr(
        sys,
        "argv",
        ["midstream", "hardworker", "-c", str(peers.config), "--json", "--record", str(record), *given],
    )
    if names:
        threads = [threading.Thread(target=peers._exchange, args=names)]
        threads[0].start()
    else:
        threads = peers.exchange()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    for thread in threads:
        thread.join()
    said = json.loads(out)
    if names:
        assert said["messages"] == COUNT and "streams" not in said
        assert record.exists()
        return
    assert said["messages"] == len(NAMES) * COUNT
    assert {name: each["messages"] for name, each in said["streams"].items()} == dict.fromkeys(NAMES, COUNT)
    received = np.fromfile(tmp_path / "received.imu", recorded_dtype(SIZE))["message"]
    assert (received["offset"] // SIZE).tolist() == list(range(COUNT))
    assert (tmp_path / "received.gps").stat().st_size
