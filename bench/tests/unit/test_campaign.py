"""The order of runs, their repetition, their resumption and their end."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from bench.tests.unit.runs import ABSENT, BUSY, FULL, HANDLER, LOSSY, OURS, QUEUE, run

from midstream.errors import ConfigError
from midstream.load import Incoming
from midstream.load.mix import joint_plan
from midstream_bench import campaign
from midstream_bench.campaign import Settings, carry_out, excluded, read_runs
from midstream_bench.receiver import Receiver
from midstream_bench.run import Run
from midstream_bench.scenario import QUICK, SCENARIOS, Scenario, find

Measure = Callable[[Receiver, Scenario, int], Run]


class Notes:
    """An audience that writes down what it is told."""

    def __init__(self) -> None:
        self.planned = 0
        self.started: list[tuple[str, int]] = []

    def begin(self, planned: int, done: Sequence[Run]) -> None:
        self.planned = planned

    def starting(self, receiver: Receiver, scenario: Scenario, repetition: int, left: float) -> None:
        self.started.append((receiver.name, repetition))

    def ended(self, run: Run) -> None: ...


class Bench:
    """What stands in for the lab."""

    def __init__(self) -> None:
        self.measured: list[tuple[str, str, int]] = []
        self.downs = 0
        self.result: Measure = run

    def measure(
        self, _lab: object, receiver: Receiver, scenario: Scenario, repetition: int, _s: float
    ) -> Run:
        self.measured.append((scenario.name, receiver.name, repetition))
        return self.result(receiver, scenario, repetition)

    def down(self) -> None:
        self.downs += 1


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    stand_in = Bench()
    monkeypatch.setattr(campaign, "build", lambda scenario, cpus: None)
    monkeypatch.setattr(campaign, "measure", stand_in.measure)
    monkeypatch.setattr("midstream.lab.down", stand_in.down)
    return stand_in


def settings(folder: Path, **changed: object) -> Settings:
    fields: dict[str, object] = {
        "receivers": (OURS, HANDLER),
        "scenarios": (BUSY, LOSSY),
        "repetitions": 2,
        "seconds": 1.0,
        "folder": folder / "results",
    }
    return Settings(**fields | changed)  # type: ignore[arg-type]  # as the test says


def never() -> bool:
    return False


def test_repetitions_are_interleaved(tmp_path: Path, bench: Bench) -> None:
    notes = Notes()
    runs = carry_out(settings(tmp_path), notes, never)
    busy, lossy = BUSY.name, LOSSY.name
    assert bench.measured == [
        (scenario, receiver, repetition)
        for repetition in (1, 2)
        for scenario in (busy, lossy)
        for receiver in ("ours", "handler")
    ]
    assert notes.planned == len(runs) == 8 and bench.downs == 1
    assert read_runs(tmp_path / "results") == runs


def test_what_is_there_is_not_measured_again(tmp_path: Path, bench: Bench) -> None:
    asked = iter([False, False, False, True, False, True])
    first = carry_out(settings(tmp_path), Notes(), lambda: next(asked, True))
    assert 0 < len(first) < 8
    with (tmp_path / "results" / campaign.RUNS).open("a") as file:
        file.write('{"receiver": "cut in the mid')
    runs = carry_out(settings(tmp_path), Notes(), never)
    assert len(runs) == 8 and len(set(bench.measured)) == len(bench.measured) == 8


def test_disturbed_runs_are_repeated_but_not_for_ever(tmp_path: Path, bench: Bench) -> None:
    disturbances = iter([("qemu",), ()])
    bench.result = lambda r, s, n: run(r, s, n, disturbed=next(disturbances, ("qemu",)))
    runs = carry_out(settings(tmp_path, scenarios=(BUSY,), repetitions=1), Notes(), never)
    assert [(each.receiver, each.attempt) for each in runs] == [
        ("ours", 0),
        ("ours", 1),
        ("handler", 0),
        ("handler", 1),
        ("handler", 2),
    ]
    bench.measured.clear()
    carry_out(settings(tmp_path, scenarios=(BUSY,), repetitions=1), Notes(), never)
    assert not bench.measured


def test_what_fails_twice_is_not_tried_again(tmp_path: Path, bench: Bench) -> None:
    bench.result = lambda r, s, n: run(r, s, n, problems=("lost 3",), figures={})
    runs = carry_out(settings(tmp_path, scenarios=(BUSY,), repetitions=1), Notes(), never)
    assert [(each.receiver, each.attempt) for each in runs] == [
        ("ours", 0),
        ("ours", 1),
        ("handler", 0),
        ("handler", 1),
    ]


def test_the_budget_ends_it(tmp_path: Path, bench: Bench) -> None:
    assert carry_out(settings(tmp_path, budget=1.0), Notes(), never) == []
    assert bench.downs == 1


def test_what_is_not_measured_is_told(tmp_path: Path, bench: Bench) -> None:
    assert excluded(ABSENT, BUSY) == "not installed: absent"
    assert "UDP" in excluded(QUEUE, LOSSY) and "sender" in excluded(QUEUE, FULL)
    assert excluded(QUEUE, BUSY) == excluded(OURS, LOSSY) == excluded(OURS, FULL) == ""
    (only,) = carry_out(
        settings(tmp_path, receivers=(ABSENT,), scenarios=(BUSY,), repetitions=1), Notes(), never
    )
    assert only.problems == ("not installed: absent",) and not bench.measured


def test_a_lab_is_taken_down_whatever_happens(tmp_path: Path, bench: Bench) -> None:
    def broken(*_: object) -> Run:
        raise ZeroDivisionError

    bench.result = broken
    with pytest.raises(ZeroDivisionError):
        carry_out(settings(tmp_path), Notes(), never)
    assert bench.downs == 1


def test_runs_of_other_settings_are_not_mixed(tmp_path: Path, bench: Bench) -> None:
    carry_out(settings(tmp_path), Notes(), never)
    with pytest.raises(ConfigError, match=r"holds runs with seconds = 1\.0, not 2\.0; name another folder"):
        carry_out(settings(tmp_path, seconds=2.0), Notes(), never)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        carry_out(settings(tmp_path / "file"), Notes(), never)


def test_counts_and_runs_share_a_folder_on_one_machine_only(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "results"
    campaign.claim(folder)  # as a count of instructions does, whose windows are of any length
    began = campaign.read_environment(folder)
    assert began["kernel"] and "seconds" not in began
    carry_out(settings(tmp_path), Notes(), never)
    assert campaign.read_environment(folder) == {**began, "seconds": 1.0}
    campaign.claim(folder)
    now = {**began, "date": "later", "kernel": "9.9"}
    monkeypatch.setattr("midstream_bench.environment.describe", lambda: now)
    with pytest.raises(ConfigError, match=r"holds runs with kernel = .*, not 9\.9; name another folder"):
        campaign.claim(folder)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / campaign.RUNS).write_text('{"receiver": 1}\n' + json.dumps(run(OURS).as_json()) + "\n")
    with pytest.raises(ConfigError, match=r"runs\.jsonl: line 1 is no run"):
        read_runs(tmp_path)


def test_runs_become_a_table(tmp_path: Path) -> None:
    campaign.export([run(OURS), run(QUEUE, problems=("lost", "late"), figures={})], tmp_path / "runs.csv")
    first, second = csv.DictReader((tmp_path / "runs.csv").read_text().splitlines())
    assert (first["receiver"], first["cpu_us"], first["problems"]) == ("ours", "10.0", "")
    assert (second["receiver"], second["cpu_us"], second["problems"]) == ("queue", "", "lost; late")


def test_the_scenarios_are_those_that_were_asked_for() -> None:
    assert [scenario.name for scenario in SCENARIOS[:7]] == [
        "16x100x1024",
        "1x1000x1024",
        "64x50x256",
        "1x100x64",
        "4x1000x1024",
        "4xmaxx1024",
        "robot",
    ]
    assert [scenario.name for scenario in SCENARIOS[7:]] == [f"{each.name}+loss" for each in SCENARIOS[:7]]
    assert set(QUICK) <= set(SCENARIOS)
    assert find(["1x100x64"])[0].title == "1 × 100 Hz × 64 B"
    assert SCENARIOS[12].title == "4 × as fast as possible × 1 KiB, 0.1% loss"
    assert joint_plan(SCENARIOS[5].sendings(2, 12345)).is_flood
    with pytest.raises(ConfigError, match="no scenario 'x'; there are: 16x100x1024"):
        find(["x"])
    camera, flood = find(["1x30x102400", "2xmaxx64+loss"])
    assert (camera.name, camera.title) == ("1x30x102400", "1 × 30 Hz × 100 KiB")
    assert (flood.name, flood.is_saturation, flood.loss) == ("2xmaxx64+loss", True, SCENARIOS[-1].loss)


def test_a_scenario_of_streams() -> None:
    """Its streams have ports, rates and sizes of their own; a receiver of one stream has no part in it."""
    (robot,) = find(["robot"])
    assert (robot.sensors, robot.hosts, robot.size) == (5, 3, 1 << 20)
    assert robot.sensors * robot.rate == 1550 and not robot.is_saturation
    assert [stream["name"] for stream in robot.tables["stream"]] == [
        "imu",
        "joints",
        "lidar",
        "camera",
        "gps",
    ]
    assert not any("period" in stream for stream in robot.tables["stream"])
    assert [each.port for each in robot.incoming(1)] == [12345, 12355, 12365, 12375, 12385]
    sendings = robot.sendings(4, 1, slow=2)
    assert [sending.plan.messages for sending in sendings] == [2000, 1000, 20, 60, 20]
    assert campaign.excluded(replace(OURS, one_stream=True), robot)
    assert not campaign.excluded(OURS, robot)
    (single,) = find(["16x100x1024"])
    assert single.incoming(7) == [Incoming(7, 1024)] and single.hosts == 16
    (sending,) = single.sendings(2, 7, slow=4)
    assert (sending.port, sending.plan.sensors, sending.plan.rate) == (7, 16, 25)
