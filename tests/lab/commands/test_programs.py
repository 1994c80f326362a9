"""The three programs on the command line: what they deliver, how they end, and what they say."""

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.lab import recording
from tests.lab.ends import running, sensor
from tests.lab.triangle import (
    SENSOR,
    command,
    logged,
    messages_logged,
    started,
    variant,
    wait_until,
)

from midstream.hardworker.recording import recorded_dtype
from midstream.lab import Lab
from midstream.sensor import SENT_DTYPE

SIZE = 4 * recording.AXES  # a sample of the recording
LAB = {"sensors": 1, "data": {"size": SIZE}}


def split_frames(data: bytes) -> list[bytes]:
    """The payloads of a hardworker's record of variable messages: each behind its length."""
    found = []
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        found.append(data[4:end])
        data = data[end:]
    return found


# what arrives


@pytest.mark.slow
@pytest.mark.parametrize("receiver", ["ebpf", "socket"])
def test_a_real_recording(attached: Lab, tmp_path: Path, receiver: str) -> None:
    """Sample by sample at 5000 Hz, bit for bit at both ends, through the eBPF program and the handler."""
    file, samples = tmp_path / "samples", recording.samples()
    assert samples.shape == (recording.SAMPLES, recording.AXES)
    file.write_bytes(samples.tobytes())
    with ExitStack() as stack:
        if receiver == "socket":
            stack.enter_context(detached(attached))
        ends = stack.enter_context(running(attached, tmp_path, hardworker={"receiver": receiver}))
        sent = sensor(attached, ends.config, "--input", file, "--rate", "5000")
        hardworker, logger = ends.end()
    assert sent.code == 0, sent.err
    received = np.fromfile(ends.record, recorded_dtype(SIZE))["message"]
    assert np.array_equal(received["payload"].view("<f4"), samples)
    assert received["offset"].tolist() == [*range(0, samples.nbytes, SIZE)]
    address = SENSOR if receiver == "ebpf" else "10.83.0.2"
    if receiver == "ebpf":
        assert logged(ends.database, (address, sent.object["port"])) == samples.tobytes()
    assert messages_logged(ends.database) == len(samples)
    assert (
        sent.object["messages"] == hardworker.object["messages"] == logger.object["messages"] == len(samples)
    )
    assert sent.object["digest"] == hashlib.sha256(samples.tobytes()).hexdigest()
    assert abs(sent.object["seconds"] - len(samples) / 5000) < 0.2, "it drifts"


@pytest.mark.slow
def test_lines_and_their_lengths(attached: Lab, tmp_path: Path) -> None:
    """The recording's own text, by its lines; empty lines and the longest of 6 kB among them."""
    file, lines = recording.arff(), recording.arff().read_bytes().split(b"\n")[:-1]
    with running(attached, tmp_path, data={"framing": "line"}) as ends:
        sent = sensor(attached, ends.config, "--input", file, "--rate", "0")
        ends.end()
    assert sent.object["bytes"] == file.stat().st_size
    assert split_frames(ends.record.read_bytes()) == lines
    assert logged(ends.database, (SENSOR, sent.object["port"])) == b"".join(lines)


@pytest.mark.slow
def test_length_framing(attached: Lab, tmp_path: Path) -> None:
    """Payloads from nothing to 100 kB: many in a segment, and many segments in one."""
    payloads = [os.urandom(size) for size in (0, 1, 3, 100_000, 0, 1443, 1444, 1445, 20, 65_536)]
    file = tmp_path / "frames"
    file.write_bytes(b"".join(len(payload).to_bytes(4, "big") + payload for payload in payloads))
    with running(attached, tmp_path, data={"framing": "length"}) as ends:
        sent = sensor(attached, ends.config, "--input", file, "--rate", "0")
        hardworker, logger = ends.end()
    assert split_frames(ends.record.read_bytes()) == payloads
    assert logged(ends.database, (SENSOR, sent.object["port"])) == b"".join(payloads)
    assert hardworker.object["messages"] == logger.object["messages"] == len(payloads)


@pytest.mark.slow
def test_a_file_that_is_no_multiple_of_the_size(attached: Lab, tmp_path: Path) -> None:
    """The logger keeps the last bytes as unfinished; the application gets whole messages."""
    file, data = tmp_path / "data", os.urandom(10 * SIZE + 7)
    file.write_bytes(data)
    with running(attached, tmp_path) as ends:
        sent = sensor(attached, ends.config, "--input", file, "--rate", "0")
        hardworker, logger = ends.end()
    assert (sent.object["messages"], sent.object["partial"]) == (10, 7)
    received = np.fromfile(ends.record, recorded_dtype(SIZE))["message"]["payload"]
    assert received.tobytes() == data[: 10 * SIZE]
    assert logged(ends.database, (SENSOR, sent.object["port"])) == data
    assert (hardworker.object["skipped"], logger.object["unfinished"]) == (7, 1)


def test_three_records_agree(attached: Lab, tmp_path: Path) -> None:
    """Numbered messages: what the sensor wrote down of each is what the other two have."""
    with running(attached, tmp_path) as ends:
        options = ("--messages", "200", "--rate", "1000", "--record", tmp_path / "sent")
        sensor(attached, ends.config, *options)
        ends.end()
    sent = np.fromfile(tmp_path / "sent", SENT_DTYPE)
    received = np.fromfile(ends.record, recorded_dtype(SIZE))
    digests = [
        hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in received["message"]["payload"]
    ]
    assert digests == [bytes(row) for row in sent["digest"]]
    assert received["message"]["payload"][:, :8].copy().view("<u8").ravel().tolist() == [*range(200)]
    assert (received["delivered"] > sent["time"]).all()


@contextmanager
def detached(lab: Lab) -> Iterator[None]:
    """Without the hardworker's program, which would take the packets before its stack sees them."""
    options = ("hardworker", "--config", lab.config)
    assert command(lab, "hardworker", "detach", *options).code == 0
    try:
        yield
    finally:
        assert command(lab, "hardworker", "attach", *options).code == 0


# how they end


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_all_three_cleanly(attached: Lab, tmp_path: Path, number: signal.Signals) -> None:
    with running(attached, tmp_path) as ends:
        arguments = ("sensor", "--config", ends.config, "--rate", "500", "--json")
        with started(attached, "sensor", tmp_path, *arguments, ready="connected") as client:
            wait_until(lambda: messages_logged(ends.database) > 20)
            sent = client.end(number)
        hardworker, logger = ends.hardworker.end(number), ends.logger.end(number)
    for result in (sent, hardworker, logger):
        assert result.code == 0, result.err
        assert result.err.count("\n") == 1, "a state line, and no traceback"
    assert sent.object["clean"]
    assert sent.object["messages"] == hardworker.object["messages"] == logger.object["messages"] > 20
    assert (hardworker.object["finished"], logger.object["resets"]) == (1, 0)


@pytest.mark.slow
def test_the_sensor_ends_after_its_timeout(attached: Lab, tmp_path: Path) -> None:
    """With its connection, and as cleanly as on a signal; the other two go on."""
    with running(attached, tmp_path) as ends:
        sent = sensor(attached, variant(attached, "short.toml", timeout=1.5), "--rate", "100")
        hardworker, logger = ends.end()
    assert sent.code == 0, sent.err
    assert sent.object["clean"]
    assert 0 < sent.object["messages"] == hardworker.object["messages"] == logger.object["messages"] <= 150


@pytest.mark.slow
def test_the_receivers_end_after_their_timeout(attached: Lab, tmp_path: Path) -> None:
    """Each by its own clock, which starts when the program does: the time until it is ready counts."""
    begin = time.monotonic()
    with running(attached, tmp_path, timeout=2) as ends:
        results = ends.hardworker.result(), ends.logger.result()
    assert time.monotonic() - begin < 10
    for result in results:
        assert result.code == 0, result.err
        assert 0.5 < result.object["seconds"] < 3


@pytest.mark.slow
def test_summaries_for_people(attached: Lab, tmp_path: Path) -> None:
    with running(attached, tmp_path) as ends:
        sent = command(attached, "sensor", "sensor", "--config", ends.config, "--messages", "3")
        ends.end()
    assert sent.code == 0
    assert sent.err == "sensor: connected to the hardworker\n"
    assert ["messages", "3"] in [line.split() for line in sent.out.splitlines()]
