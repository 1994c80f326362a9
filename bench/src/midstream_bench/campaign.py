"""Many runs: interleaved, kept as they come, repeated if disturbed, resumed, bounded in time."""

import csv
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from midstream import lab
from midstream.errors import ConfigError
from midstream_bench import environment
from midstream_bench.lab import build, measure
from midstream_bench.receiver import Receiver
from midstream_bench.run import Run
from midstream_bench.scenario import Scenario

RUNS, ENVIRONMENT = "runs.jsonl", "environment.json"
ATTEMPTS = 3  # of a run that something disturbed
OVERHEAD = 3.0  # seconds that a run takes beside its window, about


@dataclass(frozen=True)
class Settings:
    """folder: where all is kept. seconds: of a window. budget: seconds for all, 0: as long as it takes.
    attempts: at a run that something disturbs.
    """

    receivers: Sequence[Receiver]
    scenarios: Sequence[Scenario]
    repetitions: int
    seconds: float
    folder: Path
    budget: float = 0.0
    attempts: int = ATTEMPTS

    @property
    def planned(self) -> list[tuple[int, Scenario, Receiver]]:
        """Every run, interleaved: A B C A B C …, so that what changes with time meets all alike."""
        return [
            (repetition, scenario, receiver)
            for repetition in range(1, self.repetitions + 1)
            for scenario in self.scenarios
            for receiver in self.receivers
        ]


class Audience(Protocol):
    """Who is told what happens."""

    def begin(self, planned: int, done: Sequence[Run]) -> None:
        """So many runs are planned, and these are there already."""

    def starting(self, receiver: Receiver, scenario: Scenario, repetition: int, left: float) -> None:
        """A run begins; `left`: seconds to the end, as far as can be told."""

    def ended(self, run: Run) -> None:
        """A run has ended."""


def carry_out(settings: Settings, audience: Audience, stop: Callable[[], bool]) -> list[Run]:
    """Do what is planned and not there yet; return all runs of the folder. What is there already stays.

    Ends early when `stop()` or when the budget is spent. Raises ConfigError (the folder cannot be used, or
    holds runs of other settings), LabError.
    """
    path = settings.folder / RUNS
    claim(settings.folder, seconds=settings.seconds)
    runs = read_runs(settings.folder)
    done = {
        (run.repetition, run.scenario, run.receiver) for run in runs if _is_settled(run, settings.attempts)
    }
    open_runs = [each for each in settings.planned if (each[0], each[1].name, each[2].name) not in done]
    audience.begin(len(settings.planned), runs)
    begin, took = time.monotonic(), settings.seconds + OVERHEAD
    cpus = os.sched_getaffinity(0)
    try:
        with path.open("a") as file:
            for number, (repetition, scenario, receiver) in enumerate(open_runs):
                spent = time.monotonic() - begin
                if stop() or (settings.budget and spent + took > settings.budget):
                    break
                if number:
                    took = spent / number
                left = took * (len(open_runs) - number)
                audience.starting(
                    receiver,
                    scenario,
                    repetition,
                    min(left, settings.budget - spent) if settings.budget else left,
                )
                for run in _attempts(receiver, scenario, repetition, settings, cpus, stop):
                    file.write(json.dumps(run.as_json()) + "\n")
                    file.flush()
                    runs.append(run)
                    audience.ended(run)
    finally:
        os.sched_setaffinity(0, cpus)
        lab.down()
    return runs


def read_runs(folder: Path) -> list[Run]:
    """All runs of a folder, also of one whose last line was cut. Raises ConfigError."""
    path = folder / RUNS
    runs = []
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            runs.append(Run.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # it was being written when the machine or we were stopped
                path.write_text("".join(f"{kept}\n" for kept in lines[:-1]))
                break
            raise ConfigError(f"{path}: line {number} is no run ({error}); name another folder") from None
    return runs


def claim(folder: Path, **settings: object) -> None:
    """Make the folder ours, or see that it is: what was measured elsewhere or otherwise is not to be mixed.

    settings: what has to be the same beside kernel and CPU. Raises ConfigError.
    """
    path, now = folder / ENVIRONMENT, environment.describe()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = json.loads(path.read_text()) if path.exists() else now
        for key, value in {**settings, "kernel": now["kernel"], "cpu": now["cpu"]}.items():
            if key in known and known[key] != value:
                raise ConfigError(
                    f"{folder}: holds runs with {key} = {known[key]}, not {value}; "
                    "name another folder with --output"
                )
        if not path.exists() or settings.keys() - known.keys():
            path.write_text(json.dumps(settings | known, indent=1) + "\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: cannot be used ({error}); name another with --output") from error


def excluded(receiver: Receiver, scenario: Scenario) -> str:
    """Why a receiver is not measured in a scenario; empty: it is."""
    if missing := receiver.missing():
        return missing
    if scenario.mix and receiver.one_stream:
        return "not measured: it takes messages of one stream only"
    if scenario.loss and receiver.over_udp:
        return "not measured: the lab's bad wires hit TCP only, and this one uses UDP"
    if scenario.is_saturation and receiver.sender:
        return "not measured: its sender, in Python, would be the limit"
    return ""


def _attempts(
    receiver: Receiver,
    scenario: Scenario,
    repetition: int,
    settings: Settings,
    cpus: Collection[int],
    stop: Callable[[], bool],
) -> Iterable[Run]:
    if reason := excluded(receiver, scenario):
        last = settings.attempts - 1
        yield Run(receiver.name, scenario.name, repetition, problems=(reason,), attempt=last)
        return
    for attempt in range(settings.attempts):
        built = build(scenario, cpus)
        run = replace(measure(built, receiver, scenario, repetition, settings.seconds), attempt=attempt)
        yield run
        if stop() or _is_settled(run, settings.attempts):
            return


def _is_settled(run: Run, attempts: int) -> bool:
    """Whether another attempt would be of no use. A problem without a disturbance is tried once more."""
    last = attempts if run.disturbed else min(2, attempts)
    return (run.counts and not run.disturbed) or run.attempt + 1 >= last


def export(runs: Sequence[Run], path: Path) -> None:
    """The figures of all runs as CSV, a line each."""
    names = list(dict.fromkeys(name for run in runs for name in run.figures))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["scenario", "receiver", "repetition", "attempt", *names, "problems", "disturbed"])
        for run in runs:
            row = asdict(run)
            writer.writerow(
                [
                    *(row[key] for key in ("scenario", "receiver", "repetition", "attempt")),
                    *(run.figures.get(name, "") for name in names),
                    "; ".join(run.problems),
                    "; ".join(run.disturbed),
                ]
            )


def read_environment(folder: Path) -> dict[str, Any]:
    """On what a folder's runs were measured; empty if it does not say."""
    try:
        found: dict[str, Any] = json.loads((folder / ENVIRONMENT).read_text())
    except (OSError, ValueError):
        return {}
    return found
