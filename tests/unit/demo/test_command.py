"""`midstream demo`: what it is asked for, and the object that it prints."""

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.demo.test_verdict import GOOD
from typer.testing import CliRunner, Result

from midstream.cli.demo import app
from midstream.demo import DemoReport, Settings
from midstream.demo.verdict import total
from midstream.errors import ConfigError
from midstream.lab import Usage
from midstream.load.mix import ROBOT

NAMES = ["imu", "joints", "lidar", "camera", "gps"]
WANTED = {"sent", "delivered", "logged", "missing", "duplicates", "in_order", "corrupt", "latency_us"}


class FakeRun:
    """Takes the settings, and reports that all went well."""

    settings: Settings
    faulty = ""

    def __call__(self, settings: Settings, *_: object) -> DemoReport:
        FakeRun.settings = settings
        names = NAMES if settings.mix else ["data"]
        streams = {name: replace(GOOD, missing=int(name == self.faulty)) for name in names}
        return DemoReport(
            verdict=total(list(streams.values())),
            streams=streams,
            ready_seconds=1.0,
            mode="native",
            stopped=False,
            unclean=0,
            rate=1000.0,
            seconds=5.0,
            connections=5,
            reset=0,
            cpu=Usage(5.0, 1.0, ()),
            counters={},
            hardworker_stack={"tcp_segments_in": 0, "sockets": 0},
        )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = FakeRun()
    monkeypatch.setattr("midstream.demo.run", fake)

    def run(*arguments: object, faulty: str = "") -> Result:
        fake.faulty = faulty
        return CliRunner().invoke(app, [*map(str, arguments)])

    return run


def test_the_only_stream_is_told_too(run: Any) -> None:
    told = json.loads(run("--json").stdout)
    assert list(told["streams"]) == ["data"]
    assert told["streams"]["data"].keys() >= WANTED and told["good"]
    settings = FakeRun.settings
    assert (settings.messages, settings.rate, settings.size, settings.sensors) == (5000, 1000.0, 1024, 1)
    assert settings.total == 5000 and settings.mix is None
    run("--seconds", 2, "--rate", 10)
    assert FakeRun.settings.messages == 20


def test_a_mix(run: Any) -> None:
    result = run("--mix", "robot", "--seconds", 3, "--json")
    told = json.loads(result.stdout)
    assert list(told["streams"]) == NAMES
    assert told["streams"]["imu"]["latency_us"] == {"p50": 1.5, "p99": 1.5, "max": 1.5}
    assert told["sent"] == 100 and told["latency_us"] is None
    settings = FakeRun.settings
    assert settings.mix is ROBOT and settings.sensors == 3 and settings.seconds == 3
    assert settings.total == 3 * 1550 and settings.total_rate == 1550
    assert result.exit_code == 0


def test_a_fault_of_one_stream_is_an_error(run: Any) -> None:
    result = run("--mix", "robot", "--json", faulty="camera")
    assert result.exit_code == 1 and not json.loads(result.stdout)["good"]
    said = run("--mix", "robot", faulty="camera").stdout
    assert "1 missing at the application" in said
    assert all(name in said for name in NAMES) and "complete" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--mix", "robot", "--rate", 5), "--rate: the mix robot has its own"),
        (("--mix", "robot", "--sensors", 2), "--sensors: the mix robot has its own"),
        (("--messages", 5, "--seconds", 2), "both say how long"),
        (("--mix", "car"), "no such mix; there are: robot"),
    ],
)
def test_what_contradicts_itself_is_told(run: Any, arguments: tuple[object, ...], said: str) -> None:
    error = run(*arguments).exception
    assert isinstance(error, ConfigError) and said in str(error)
