"""The examples, each on the hosts that it is for."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.lab.processes import on_host
from tests.lab.triangle import HARDWORKER, PATIENCE, PORT, TOS, Program, started, wait_until

from midstream import Hardworker
from midstream.ebpf.compiler import compile_executable
from midstream.lab import Lab

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SIZE = 64
LAB = {"sensors": 1, "data": {"size": SIZE}}


@pytest.fixture(scope="module")
def sensor() -> Path:
    return compile_executable(EXAMPLES / "sensor.c")


def config(lab: Lab, folder: Path, data: str) -> Path:
    """A config.toml for the lab's hosts with this table [data], and a database of its own."""
    path = folder / "config.toml"
    path.write_text(
        f'const = "{lab.const}"\n[network]\npins = "/sys/fs/bpf/midstream-lab"\n'
        f'[logger]\ndatabase = "sqlite:///log.db"\n{data}'
    )
    return path


@contextmanager
def logger(lab: Lab, path: Path) -> Iterator[Program]:
    with started(lab, "logger", path.parent, "logger", "--config", path, ready="listening") as program:
        yield program


@contextmanager
def application(lab: Lab, folder: Path, *arguments: str | Path) -> Iterator[Path]:
    """An example on the hardworker, and the file with what it prints."""
    said = folder / "said"
    with said.open("w") as out:
        process = lab.popen("hardworker", [sys.executable, "-u", *arguments], stdout=out, cwd=folder)
    try:
        yield said
        assert process.poll() is None, "it ended by itself"
    finally:
        process.kill()
        process.wait()


def lines(said: Path, count: int) -> list[str]:
    """The first lines of a file that grows."""
    wait_until(lambda: said.read_text().count("\n") >= count)
    return said.read_text().splitlines()[:count]


def run(lab: Lab, *arguments: str | Path) -> dict[str, Any]:
    """A program on the sensor, to its end."""
    ended = lab.run("sensor", arguments, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
def test_an_imu_in_c_and_its_application(attached: Lab, tmp_path: Path, sensor: Path) -> None:
    path = config(attached, tmp_path, (EXAMPLES / "imu.toml").read_text())
    with (
        logger(attached, path) as storing,
        application(attached, tmp_path, EXAMPLES / "imu.py", path) as said,
    ):
        began = time.monotonic()
        sent = run(attached, sensor, HARDWORKER, str(PORT), str(TOS), "1000", "2000")
        took = time.monotonic() - began
        summaries = [json.loads(line) for line in lines(said, 2)]
        storing.end(signal.SIGTERM)
    assert sent == {"messages": 2000, "repeated": 0}
    assert 1.9 < took < 5, "its rate is 1000 messages per second"
    assert [summary["last"] for summary in summaries] == [999, 1999]
    assert all(9.81 < summary["acceleration"] < 9.82 for summary in summaries)
    assert 0.4 < max(summary["fastest_turn"] for summary in summaries) <= 0.5
    with sqlite3.connect(tmp_path / "log.db") as log:
        query = "SELECT count(*), max(seq), min(acceleration_2), max(angular_rate_2) FROM readings_data"
        count, last, gravity, turn = log.execute(query).fetchone()
    log.close()
    assert (count, last, gravity) == (2000, 1999, 9.81)
    assert 0.4 < turn <= 0.5


@pytest.mark.slow
def test_a_sensor_in_c_sends_again_what_was_not_acknowledged(
    attached: Lab, tmp_path: Path, sensor: Path
) -> None:
    """The logger is killed: the application has every number, and twice only what TCP could not know of."""
    path = config(attached, tmp_path, "")
    with Hardworker(path) as hardworker:
        numbers: dict[int, list[int]] = {}

        def read() -> list[int]:
            for row in hardworker.read():
                numbers.setdefault(int(row["connection"]), []).append(int(row["payload"][:8].view("<u8")[0]))
            return max(numbers.values(), default=[])

        with logger(attached, path):
            process = attached.popen(
                "sensor",
                [sensor, HARDWORKER, str(PORT), str(TOS), "1000", "1500"],
                stdout=subprocess.PIPE,
                text=True,
            )
            wait_until(lambda: len(read()) > 500)
            for pid in on_host("logger"):
                os.kill(pid, signal.SIGKILL)
        with logger(attached, path) as storing:
            out, _ = process.communicate(timeout=PATIENCE)
            wait_until(lambda: 1499 in read())
            storing.end(signal.SIGTERM)
    first, second = (numbers[connection] for connection in sorted(numbers))
    assert first == list(range(len(first)))
    assert second == list(range(second[0], 1500))
    assert second[0] <= len(first), "a message is missing"
    assert json.loads(out)["messages"] == 1500
    assert json.loads(out)["repeated"] >= len(first) - second[0]


def test_a_lidar(attached: Lab, tmp_path: Path) -> None:
    path = config(attached, tmp_path, '[data]\nframing = "length"\n')
    example = EXAMPLES / "lidar.py"
    with (
        logger(attached, path) as storing,
        application(attached, tmp_path, example, "application", path) as said,
    ):
        sent = run(attached, sys.executable, example, "sensor", path, "10")
        scans = [json.loads(line) for line in lines(said, 10)]
        storing.end(signal.SIGTERM)
    assert (sent["scans"], sent["clean"]) == (10, True)
    assert [scan["scan"] for scan in scans] == list(range(10))
    assert sum(4 + 8 + 16 * scan["points"] for scan in scans) == sent["bytes"]
    assert len({scan["points"] for scan in scans}) > 1, "each has a length of its own"
    assert all(4.99 < scan["nearest"] < 5.01 for scan in scans)


@pytest.mark.parametrize("columns", [False, True])
def test_the_lines_of_the_readme(attached: Lab, tmp_path: Path, sensor: Path, columns: bool) -> None:
    six, two, *_ = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    text = "\n".join(six.splitlines()[:3]) + f"\n{two}" if columns else six
    (tmp_path / "application.py").write_text(text)
    data = '[[data.field]]\nname = "temperature"\ntype = "f64"\noffset = 32\n' if columns else ""
    path = config(attached, tmp_path, data)
    with logger(attached, path) as storing, application(attached, tmp_path, "application.py") as said:
        run(attached, sensor, HARDWORKER, str(PORT), str(TOS), "100", "10")
        if columns:
            wait_until(lambda: said.read_text().count("9.81") == 10)
        else:
            assert lines(said, 10) == [f"10.83.0.11 {number} 64 bytes" for number in range(10)]
        storing.end(signal.SIGTERM)
