"""A benchmark from the command to the report, as short as can be."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from midstream.lab import Lab
from midstream.load import Incoming, Sink


def bench(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    ended = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "midstream",
            "bench",
            "--json",
            "--attempts",
            "2",
            "--output",
            folder,
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr
    found: list[dict[str, Any]] = json.loads(ended.stdout)
    return found


def good(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The figures of each receiver's last attempt, which counts: others at work may have spoilt the first."""
    last = {run["receiver"]: run for run in runs}
    assert not [run["problems"] for run in last.values() if run["problems"]]
    return {name: run["figures"] for name, run in last.items()}


@pytest.mark.slow
def test_two_receivers_are_measured_and_reported(tmp_path: Path) -> None:
    arguments = ["--scenario", "1x100x64", "--seconds", "0.5", "--repetitions", "1"]
    arguments += ["--receiver", "c-epoll-relay", "--receiver", "midstream-epoll-c"]
    figures = good(bench(tmp_path, *arguments))
    assert figures.keys() == {"c-epoll-relay", "midstream-epoll-c"}
    for each in figures.values():
        assert 1 < each["cpu_us"] < 5000
        assert 0 < each["p50_us"] <= each["p99_us"] <= each["max_us"]
        assert each["rate"] == pytest.approx(100, rel=0.2)
        assert 0 < each["busy"] <= 1 and each["interrupts"] > 0
    text = (tmp_path / "bench.md").read_text()
    assert "## 1 × 100 Hz × 64 B" in text
    assert "</html>" in (tmp_path / "bench.html").read_text()
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 1 + len(
        (tmp_path / "runs.jsonl").read_text().splitlines()
    )
    runs = len((tmp_path / "runs.jsonl").read_text().splitlines())
    assert len(bench(tmp_path, *arguments, "--report")) == runs


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["16x100x1024", "16x100x1024+loss", "4xmaxx1024", "64x50x256"])
def test_each_kind_of_scenario(tmp_path: Path, scenario: str) -> None:
    arguments = ["--scenario", scenario, "--seconds", "1", "--repetitions", "1"]
    figures = good(
        bench(tmp_path, *arguments, "--receiver", "c-epoll-relay", "--receiver", "midstream-epoll-numpy")
    )
    assert len(figures) == 2


def test_a_robot(tmp_path: Path) -> None:
    """Five streams at once."""
    names = ["midstream-deferred-c"]
    chosen = [part for name in names for part in ("--receiver", name)]
    arguments = ["--scenario", "robot", "--seconds", "1", "--repetitions", "1", *chosen]
    figures = good(bench(tmp_path, *arguments))
    assert figures.keys() == set(names)
    assert all(each["rate"] == pytest.approx(1550, rel=0.05) for each in figures.values())


@pytest.mark.slow
def test_a_robot_and_every_other_receiver(tmp_path: Path) -> None:
    """The joined handler, and a middleware with a topic for each stream, among them."""
    names = [
        "midstream-deferred-python",
        "midstream-spool-c",
        "c-joined-relay",
        "c-epoll-relay",
        "c-busy-relay",
    ]
    names += [
        "zeromq-sub",
        "python-relay",
        "asyncio-relay",
        "uvloop-relay",
        "zeromq-push",
        "zenoh",
        "nats",
        "mqtt-1",
    ]
    chosen = [part for name in names for part in ("--receiver", name)]
    arguments = ["--scenario", "robot", "--seconds", "1", "--repetitions", "1", *chosen]
    assert good(bench(tmp_path, *arguments)).keys() == set(names)


@pytest.mark.slow
def test_every_middleware(tmp_path: Path) -> None:
    names = ["zeromq-sub", "zeromq-push", "zenoh", "nats", "mqtt-0", "mqtt-1", "dds"]
    chosen = [part for name in names for part in ("--receiver", name)]
    arguments = ["--scenario", "1x100x64", "--seconds", "1", "--repetitions", "1", *chosen]
    assert good(bench(tmp_path, *arguments)).keys() == set(names)


@pytest.mark.slow
def test_turns_on_a_host(attached: Lab, tmp_path: Path) -> None:
    """midstream and sockets in turns, while a sensor sends and comes back each time."""
    address, size = str(attached.host("logger").ip), 1024
    midstream = [sys.executable, "-P", "-m", "midstream"]
    load = [*midstream, "load", "--lab", "--config", str(attached.config), "--rate", "200", "--seconds", "60"]
    with Sink(address, [Incoming(12345, size)], launch=partial(attached.popen, "logger")) as sink:
        sensor = subprocess.Popen([*load, "--reconnect", "--json"], stdout=subprocess.PIPE)
        try:
            turns = [*midstream, "bench", "--host", "--turns", "2", "--seconds", "1", "--json"]
            command = [*turns, "--config", str(attached.config), "--output", str(tmp_path)]
            ended = attached.run("hardworker", command, capture_output=True, text=True, timeout=60)
            assert ended.returncode == 0, ended.stderr
            sensor.terminate()
            summary = json.loads(sensor.communicate(timeout=20)[0])
        finally:
            sensor.kill()
            sensor.communicate()
        arrived = sink.result()
    found = json.loads(ended.stdout)
    assert {label: row["busy"]["count"] for label, row in found.items()} == {"midstream": 20, "sockets": 20}
    assert all(row["busy"]["typical"] > 0 for row in found.values())
    assert found["midstream"]["rx_packets"]["typical"] > 100
    assert summary["lost"] >= 3 and summary["messages"] > 500
    assert arrived.wrong == 0 and arrived.messages > 500
