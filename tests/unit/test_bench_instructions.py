"""What a virtual machine counts goes beside the lab's figures, and is not counted twice."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.unit.bench_runs import BUSY, FULL, HANDLER, LOSSY, OURS, QUEUE

from midstream.bench import instructions
from midstream.bench.campaign import Settings
from midstream.bench.machine.measure import Counted
from midstream.bench.receiver import Receiver


def test_counts_are_kept_and_not_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def measure(receivers: Sequence[Receiver], **_: Any) -> Iterator[Counted]:
        asked.append([receiver.name for receiver in receivers])
        for receiver in receivers:
            problems = ("fell behind",) if receiver is HANDLER else ()
            yield Counted(receiver.name, 4321.0, 100, 100, 3.0, 0.1, 0.1, 0.1, problems)

    monkeypatch.setattr(instructions, "measure", measure)
    settings = Settings((OURS, HANDLER, QUEUE), (BUSY, LOSSY, FULL), 1, 3.0, tmp_path / "results")
    told: list[str] = []
    for _ in range(2):
        instructions.count(settings, told.append, lambda: False)
    assert asked == [["ours", "handler"], ["handler"]]
    assert json.loads((tmp_path / "results" / "machine.json").read_text()) == {BUSY.name: {"ours": 4.321}}
    assert told[1] == "16x100x1024 ours: 4.32 thousand instructions a message"
    assert told[2] == "16x100x1024 handler: fell behind"
