"""An application that is killed with SIGKILL and started anew, or paused: it misses nothing, it gets nothing
twice, and the sensor notices at most that it has to wait."""

import hashlib
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.lab.mortal import Before, Mortal, Pieces, equal, framed, ragged, sha256, streaming
from tests.lab.triangle import (
    PROGRAM,
    SENSOR,
    logged,
    messages_logged,
    started,
)

from midstream import config, network
from midstream.ebpf.sizing import ring_size
from midstream.hardworker.recording import recorded_dtype
from midstream.lab import Impairment, Lab, clear, impair
from midstream.sensor import SENT_DTYPE

SENSOR_2 = "10.83.0.12"
RATE = 2000  # messages a second

often = pytest.mark.parametrize(
    "kills", [pytest.param(4, id="4"), pytest.param(50, id="50", marks=[pytest.mark.slow])]
)
sometimes = pytest.mark.parametrize(
    "kills", [pytest.param(3, id="3"), pytest.param(25, id="25", marks=[pytest.mark.slow])]
)
bad_wires = Impairment(drop=0.01, duplicate=0.01, reorder=0.02, corrupt=0.005, seed=7)

# An application of one's own: it acts on a message by appending it to a file, and knows from that file on
# which messages an earlier life has acted.
APPLICATION = """
import os, struct, sys
from midstream import Hardworker

config, path, mode = sys.argv[1:]
head = struct.Struct("<III")
last, end = {}, 0
with open(path, "a+b", buffering=0) as file:
    file.seek(0)
    done = file.readall()
    while end + head.size <= len(done):
        connection, sequence, length = head.unpack_from(done, end)
        if end + head.size + length > len(done):
            break
        last[connection] = sequence
        end += head.size + length
    os.ftruncate(file.fileno(), end)
    with Hardworker(config, autocommit=mode == "automatic") as hardworker:
        print("receiving", file=sys.stderr, flush=True)
        while True:
            for message in hardworker.messages():
                if message.sequence > last.get(message.connection, -1):
                    number = message.connection, message.sequence, len(message.payload)
                    file.write(head.pack(*number) + message.payload)
                    last[message.connection] = message.sequence
            if mode == "explicit":
                hardworker.commit()
            hardworker.wait()
"""


# killed


@often
def test_killed(triangle: Lab, tmp_path: Path, kills: int) -> None:
    survives(triangle, tmp_path, kills)


@pytest.mark.slow
@sometimes
def test_killed_on_bad_wires(triangle: Lab, tmp_path: Path, kills: int) -> None:
    impair(triangle, "all", bad_wires)
    try:
        survives(triangle, tmp_path, kills)
    finally:
        clear(triangle)


@pytest.mark.slow
@sometimes
@pytest.mark.parametrize("lab", [{"data": {"size": 4096}}], indirect=True, ids=["larger than a segment"])
def test_killed_amid_messages_of_several_segments(triangle: Lab, tmp_path: Path, kills: int) -> None:
    survives(triangle, tmp_path, kills)


@pytest.mark.slow
@sometimes
@pytest.mark.parametrize("lab", [{"data": {"size": 1000}}], indirect=True, ids=["1000 bytes"])
@pytest.mark.parametrize(
    "wires",
    [
        pytest.param(None, id="good wires"),
        pytest.param(bad_wires, id="bad wires", marks=pytest.mark.slow),
    ],
)
def test_killed_amid_messages_across_segments(
    triangle: Lab, tmp_path: Path, kills: int, wires: Impairment | None
) -> None:
    """Writes of 1 to 4999 bytes by a plain client."""
    before, record = Before(triangle), tmp_path / "record"
    if wires:
        impair(triangle, "all", wires)
    try:
        with recording(triangle, tmp_path, record) as application:
            with streaming(triangle, tmp_path, lambda stop: ragged(stop, kills, 1000)) as (sent,):
                for _ in range(kills):
                    application.die()
            application.drain()
    finally:
        clear(triangle)
    port, size, digest = sent.result()
    rows = np.fromfile(record, recorded_dtype(1000))["message"]
    assert_once_and_in_order(rows, size // 1000, 1000)
    assert sha256(rows["payload"].tobytes()) == digest
    assert sha256(logged(triangle.run_dir / "midstream.db", (SENSOR, port))) == digest
    before.assert_no_connection_ended()


LENGTH = {"data": {"framing": "length"}}


@pytest.mark.slow
@sometimes
@pytest.mark.parametrize(
    ("lab", "mode"),
    [
        pytest.param(LENGTH, "automatic", id="large ring", marks=pytest.mark.slow),
        pytest.param(LENGTH | {"hardworker": {"ring_size": "64KiB"}}, "explicit", id="ring of 64 KiB"),
    ],
    indirect=["lab"],
)
def test_an_application_of_ones_own(triangle: Lab, tmp_path: Path, kills: int, mode: str) -> None:
    """Messages of 0 to 150,000 bytes of two sensors, larger than the small ring; connection and sequence tell
    what it did before."""
    before, file, program = Before(triangle), tmp_path / "file", tmp_path / "application.py"
    program.write_text(APPLICATION)
    argv: list[str | Path] = [sys.executable, "-P", program, triangle.config, file, mode]
    with Mortal(triangle, tmp_path, argv) as application:
        sensors = (lambda stop: framed(stop, 1), lambda stop: framed(stop, 2))
        with streaming(triangle, tmp_path, *sensors, rate=500_000) as sent:
            for _ in range(kills):
                application.die()
        application.drain()
    digests: dict[int, hashlib._Hash] = {}
    sequences: dict[int, int] = {}
    for connection, sequence, payload in written(file):
        assert sequence == sequences.get(connection, -1) + 1
        sequences[connection] = sequence
        digest = digests.setdefault(connection, hashlib.sha256())
        digest.update(len(payload).to_bytes(4, "big") + payload)
    assert {digest.hexdigest() for digest in digests.values()} == {future.result().digest for future in sent}
    for future, peer in zip(sent, (SENSOR, SENSOR_2), strict=True):
        port, size, digest_sent = future.result()
        payloads = logged(triangle.run_dir / "midstream.db", (peer, port))
        number = next(number for number, digest in digests.items() if digest.hexdigest() == digest_sent)
        assert len(payloads) == size - 4 * (sequences[number] + 1)
        assert payloads == b"".join(payload for key, _, payload in written(file) if key == number)
    before.assert_no_connection_ended()


# paused


pauses = pytest.mark.parametrize("pause", [pytest.param(3, id="3 s"), pytest.param(10, id="10 s")])
small_ring = pytest.mark.parametrize(
    "lab", [{"hardworker": {"ring_size": "64KiB"}}], indirect=True, ids=["64 KiB"]
)


@small_ring
@pauses
@pytest.mark.slow
def test_full_rate_a_second_after_a_pause(triangle: Lab, tmp_path: Path, pause: int) -> None:
    """Our sensor, whose TCP tries again at least every second."""
    arguments = ("sensor", "--config", triangle.config, "--rate", "1000", "--json")
    with recording(triangle, tmp_path, tmp_path / "record") as application:
        with started(triangle, "sensor", tmp_path, *arguments, ready="connected") as sensor:
            found = paused(triangle, tmp_path, application, pause)
            result = sensor.end()
        application.drain()
    assert result.code == 0, result.err
    assert result.object["clean"]
    assert_delivered(triangle, tmp_path, result.object["port"], result.object["digest"])
    found.measure(tmp_path / "record")
    assert found.first < 1.1, found
    assert found.rate >= 1000, found
    assert found.caught_up < pause, found


@small_ring
@pauses
@pytest.mark.slow
def test_a_plain_client_recovers_within_the_length_of_the_pause(
    triangle: Lab, tmp_path: Path, pause: int
) -> None:
    """RFC 6298 doubles the time to the next attempt: in the worst case it is as long as all before it."""
    with recording(triangle, tmp_path, tmp_path / "record") as application:
        pieces: Pieces = lambda stop: equal(stop, pause, 1024)  # noqa: E731  one line says it
        with streaming(triangle, tmp_path, pieces, rate=1_024_000) as (sent,):
            found = paused(triangle, tmp_path, application, pause)
        application.drain()
    assert_delivered(triangle, tmp_path, sent.result().port, sent.result().digest)
    found.measure(tmp_path / "record")
    assert found.first < pause + 1, found


# helpers


def survives(lab: Lab, folder: Path, kills: int) -> None:
    """Our sensor, and `midstream hardworker` that is killed so often."""
    before, record, sent = Before(lab), folder / "record", folder / "sent"
    arguments = ("sensor", "--config", lab.config, "--rate", str(RATE), "--record", sent, "--json")
    with recording(lab, folder, record) as application:
        with started(lab, "sensor", folder, *arguments, ready="connected") as sensor:
            for _ in range(kills):
                application.die()
            result = sensor.end()
        application.drain()
    assert result.code == 0, result.err
    size = network.load(lab.const).size
    rows, expected = np.fromfile(record, recorded_dtype(size))["message"], np.fromfile(sent, SENT_DTYPE)
    assert_once_and_in_order(rows, len(expected), size)
    assert rows["payload"][:, :8].copy().view("<u8").ravel().tolist() == expected["sequence"].tolist()
    assert_delivered(lab, folder, result.object["port"], result.object["digest"])
    assert result.object["clean"]
    before.assert_no_connection_ended()


@contextmanager
def recording(lab: Lab, folder: Path, record: Path) -> Iterator[Mortal]:
    argv: list[str | Path] = [PROGRAM, "hardworker", "--config", lab.config, "--record", record, "--resume"]
    with Mortal(lab, folder, argv) as application:
        application.wait_until_ready()
        yield application


def assert_once_and_in_order(rows: np.ndarray, count: int, size: int) -> None:
    assert len(set(rows["connection"].tolist())) == 1
    assert rows["offset"].tolist() == list(range(0, count * size, size))


def assert_delivered(lab: Lab, folder: Path, port: int, digest: str) -> None:
    """The stream with this digest is in the record and in the database."""
    rows = np.fromfile(folder / "record", recorded_dtype(network.load(lab.const).size))["message"]
    assert_once_and_in_order(rows, len(rows), rows["payload"].shape[1])
    assert sha256(rows["payload"].tobytes()) == digest
    assert sha256(logged(lab.run_dir / "midstream.db", (SENSOR, port))) == digest


def written(file: Path) -> Iterator[tuple[int, int, bytes]]:
    """Connection, sequence and payload of the application's messages."""
    data, end, head = file.read_bytes(), 0, struct.Struct("<III")
    while end < len(data):
        connection, sequence, length = head.unpack_from(data, end)
        end += head.size + length
        yield connection, sequence, data[end - length : end]


@dataclass
class Recovery:
    """From when the application went on (CLOCK_MONOTONIC, ns), in seconds: until the next byte was stored,
    and until the sensor was no longer late; and messages stored in the second that starts a second later."""

    resumed: int
    first: float = 0.0
    rate: int = 0
    caught_up: float = float("inf")

    def measure(self, record: Path) -> None:
        rows = np.fromfile(record, recorded_dtype(1024))["message"]
        since = (rows["time"].astype(np.int64) - self.resumed) / 1e9
        self.first = float(since[since > 0][0])
        self.rate = int(np.count_nonzero((since >= 1) & (since < 2)))
        late = (rows["time"] - rows["time"][0]) / 1e9 - np.arange(len(rows)) / 1000
        in_time = since[(since > 0) & (late < 0.05)]
        if len(in_time):
            self.caught_up = float(in_time[0])
        print(self)


def paused(lab: Lab, folder: Path, application: Mortal, seconds: int) -> Recovery:
    """Let it work for a second, pause it, and let it go on until the sensor should have caught up."""
    database = lab.run_dir / "midstream.db"
    ring = ring_size(config.load(lab.config), network.load(lab.const))
    earlier = messages_logged(database)
    time.sleep(1)
    application.pause()
    time.sleep(seconds / 2)
    held = len(np.fromfile(folder / "record", recorded_dtype(1024))) + ring // 1024
    halfway = messages_logged(database) - earlier
    time.sleep(seconds / 2)
    assert messages_logged(database) - earlier == halfway <= held
    resumed = time.monotonic_ns()
    application.resume()
    time.sleep(seconds + 3)
    return Recovery(resumed)
