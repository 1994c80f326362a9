"""What a virtual machine counts goes beside the lab's figures, and is not counted twice."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench.tests.unit.runs import ABSENT, BUSY, FULL, HANDLER, LOSSY, OURS, QUEUE

from midstream.errors import ConfigError
from midstream_bench import instructions
from midstream_bench.campaign import Settings
from midstream_bench.machine import counted
from midstream_bench.machine.counted import Counted
from midstream_bench.receiver import Receiver
from midstream_bench.scenario import Scenario

WINDOW = Counted("ours", 4321.0, 2400, 2400, 1.5, 1.5, 0.02, 4, 0.3, 0.3, 0.1)


class Machine:
    """Takes the place of `measure`: every window is as WINDOW, but HANDLER's fall behind."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self.slow: list[dict[str, int]] = []

    def measure(
        self, receivers: Sequence[Receiver], scenario: Scenario, *, slow: Mapping[str, int], **_: Any
    ) -> Iterator[Counted]:
        self.asked.append((scenario.name, [receiver.name for receiver in receivers]))
        self.slow.append(dict(slow))
        for receiver in receivers:
            problems = ("fell behind",) if receiver is HANDLER else ()
            yield replace(WINDOW, receiver=receiver.name, problems=problems)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(instructions, "measure", made.measure)
    return made


def settings(folder: Path, *scenarios: Scenario) -> Settings:
    return Settings((OURS, HANDLER, QUEUE, ABSENT), scenarios, 1, 3.0, folder)


def test_counts_are_kept_and_not_made_twice(tmp_path: Path, machine: Machine) -> None:
    told: list[str] = []
    for _ in range(2):
        instructions.count(settings(tmp_path / "results", BUSY), 1.5, told.append, lambda: False)
    assert machine.asked == [(BUSY.name, ["ours", "handler", "queue"]), (BUSY.name, ["handler"])]
    found = counted.read(tmp_path / "results" / "machine.json")
    assert found[BUSY.name]["ours"] == WINDOW
    assert found[BUSY.name]["handler"].problems == ("fell behind",)
    assert told[1].startswith("1 of 3, 0 min left: 16x100x1024 ours:     4.32 k instructions, 2400 of 2400")
    assert told[2].endswith("; fell behind")


def test_what_is_not_counted_has_a_reason(tmp_path: Path, machine: Machine) -> None:
    instructions.count(settings(tmp_path, LOSSY, FULL), 1.5, lambda _: None, lambda: False)
    assert machine.asked == [(LOSSY.name, ["ours", "handler"])]
    found = counted.read(tmp_path / "machine.json")
    assert "uses UDP" in found[LOSSY.name]["queue"].problems[0]
    assert found[LOSSY.name]["absent"].problems == ("not installed: absent",)
    assert all("this machine's speed" in one.problems[0] for one in found[FULL.name].values())
    assert found[FULL.name].keys() == {"ours", "handler", "queue", "absent"}


def test_an_interrupted_count_is_continued(tmp_path: Path, machine: Machine) -> None:
    answers = iter([False, False, True])  # before the scenario, after one receiver, after two
    instructions.count(settings(tmp_path, BUSY, LOSSY), 1.5, lambda _: None, lambda: next(answers))
    instructions.count(settings(tmp_path, BUSY, LOSSY), 1.5, lambda _: None, lambda: False)
    assert machine.asked[1:] == [(BUSY.name, ["handler", "queue"]), (LOSSY.name, ["ours", "handler"])]
    assert machine.slow[0] == {"ours": 0, "handler": 0, "queue": 0}
    assert machine.slow[2] == {"ours": 4, "handler": 0}, "as slow as it was without loss"


def test_a_window_says_whether_it_kept_up() -> None:
    assert WINDOW.kept_up
    assert not replace(WINDOW, seconds=1.4).kept_up
    assert not replace(WINDOW, busy=0.98).kept_up


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    assert counted.read(path) == {}
    for text in ("[]", "{", '{"16x100x1024": {"ours": 4}}', json.dumps({"a": {"b": {"receiver": "b"}}})):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"machine\.json: expected what `midstream bench --machine`"):
            counted.read(path)
