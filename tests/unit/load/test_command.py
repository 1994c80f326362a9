"""`midstream load`: a recording is replayed once and whole, and what did not arrive is an error."""

import json
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Self

import pytest
from tests.support.captures import ETHERNET, START, Frame, framed, pcap, tcp
from typer.testing import CliRunner, Result

from midstream import config as configuration
from midstream import network
from midstream.cli.load import app
from midstream.errors import ConfigError, NetworkError
from midstream.lab import state
from midstream.load import Connection, JointPlan, LoadSummary
from midstream.load.mix import ROBOT
from midstream.network import Host, Topology
from midstream.streams import decide

TOPOLOGY = Topology(
    sensors=(Host(IPv4Address("10.83.0.11"), "02:00:00:00:00:11"),),
    hardworker=Host(IPv4Address("10.83.0.2"), "02:00:00:00:00:02"),
    logger=Host(IPv4Address("10.83.0.3"), "02:00:00:00:00:03"),
    tos=104,
    port=12345,
    mtu=1500,
    size=1024,
)
ALL = LoadSummary(7, 7, 0, 0, 0, True, 1.0, 7.0, 1.0, 1.0, 1.0, 1.0, (7,))


class FakeLoad:
    """Takes a plan, and ends at once with a summary."""

    running = False
    plan: JointPlan
    summary: LoadSummary

    def __init__(self, plan: JointPlan, connections: Sequence[Connection], **_: Any) -> None:
        FakeLoad.plan = plan
        assert len(connections) == plan.sensors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def start(self) -> None: ...

    def result(self) -> LoadSummary:
        return self.summary


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("midstream.cli.load.Load", FakeLoad)
    network.write(tmp_path / "const.toml", TOPOLOGY, written_by="the tests")
    config = tmp_path / "config.toml"
    config.write_text("")
    FakeLoad.summary = ALL

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["--config", str(config), *map(str, arguments)])

    return run


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """Two flows, three and four messages in 12 s; one segment comes again."""
    path = tmp_path / "x.pcap"
    segments = [tcp(1 + 3 * (n // 2), b"abc", ports=(4000 + n % 2, 12345)) for n in range(7)]
    segments.append(segments[0])
    path.write_bytes(
        pcap([Frame(framed(each, ETHERNET), START + n * 2_000_000_000) for n, each in enumerate(segments)])
    )
    return path


def test_once_and_whole(run: Any, capture: Path) -> None:
    result = run("--replay", capture, "--json")
    assert result.exit_code == 0, result.output
    assert FakeLoad.plan.plans[0].messages == 7
    assert FakeLoad.plan.sensors == 2
    assert json.loads(result.stdout)["remarks"] == {"segments that were there before": 1}
    assert "7 messages of 2 flows, which last 16 s" in result.stderr
    assert "segments that were there before: 1" in result.stderr
    assert "left out" not in result.stderr and "anew" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sensors", 1), "1 of its flows are left out: --sensors 2 replays all"),
        (("--sensors", 5), "3 sensors more than flows: they repeat them"),
        (("--seconds", 10), "its end is left out: --seconds 16 replays all"),
        (("--seconds", 100), "it begins anew when it ends"),
    ],
)
def test_what_is_not_as_it_was_is_said(
    run: Any, capture: Path, arguments: tuple[object, ...], said: str
) -> None:
    assert said in run("--replay", capture, *arguments).stderr


@pytest.mark.parametrize("summary", [replace(ALL, clean=False), replace(ALL, unsent=3)])
def test_what_did_not_arrive_is_an_error(run: Any, summary: LoadSummary) -> None:
    FakeLoad.summary = summary
    result = run("--json")
    assert json.loads(result.stdout)["unsent"] == summary.unsent
    assert isinstance(result.exception, NetworkError)
    assert f"{summary.unsent} messages not sent" in str(result.exception)


def test_without_a_recording(run: Any) -> None:
    assert run().exit_code == 0
    (plan,) = FakeLoad.plan.plans
    assert (plan.sensors, plan.rate, plan.size, plan.seconds) == (1, 1000.0, 1024, 10.0)


def test_a_mix_and_its_streams(run: Any, tmp_path: Path) -> None:
    decided = decide(configuration.parse(state.toml({"stream": ROBOT.tables}), tmp_path / "config.toml"), ())
    network.write(
        tmp_path / "const.toml", replace(TOPOLOGY, size=64, streams=decided), written_by="the tests"
    )
    FakeLoad.summary = replace(ALL, counts=(1, 2, 3, 4, 5))
    result = run("--mix", "robot", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["streams"]
    assert told == {"imu": 1, "joints": 2, "lidar": 3, "camera": 4, "gps": 5}
    FakeLoad.summary = replace(ALL, counts=(1, 2))
    assert run("--mix", "robot", "--stream", "gps", "--stream", "imu").exit_code == 0
    assert [plan.rate for plan in FakeLoad.plan.plans] == [10, 1000]
    assert isinstance(run("--size", 100).exception, ConfigError)
    assert "there is no such mix" in str(run("--mix", "car").exception)
