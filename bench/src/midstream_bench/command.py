"""midstream bench: what a message costs the hardworker, measured."""

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from midstream import config as configuration
from midstream.cli.options import DEFAULT_CONFIG, Config, Json, Stop, say, show, until_signalled
from midstream.errors import ConfigError
from midstream_bench import campaign, host, instructions
from midstream_bench.campaign import Audience, Settings
from midstream_bench.machine.measure import SECONDS as MACHINE_SECONDS
from midstream_bench.middlewares import MIDDLEWARES
from midstream_bench.receiver import Receiver
from midstream_bench.receivers import RECEIVERS
from midstream_bench.report import folder as reports
from midstream_bench.report.results import full_title
from midstream_bench.scenario import QUICK, SCENARIOS, find
from midstream_bench.turns import take_turns
from midstream_bench.view import Lines, Silent, Table, print_comparison

app = typer.Typer()

QUICK_SECONDS, QUICK_REPETITIONS, QUICK_MINUTES = 2.0, 3, 9.0
FULL_SECONDS, FULL_REPETITIONS = 5.0, 5
HOST_SECONDS = 60.0


@app.command()
def bench(
    full: Annotated[bool, typer.Option("--full", help="Every scenario, longer and more often.")] = False,
    scenario: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be repeated.", show_default="by --full")
    ] = None,
    receiver: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be repeated.", show_default="all")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.5, help="How long a window is.", show_default="2; with --full 5, with --machine 1"
        ),
    ] = None,
    repetitions: Annotated[
        int | None, typer.Option(min=1, help="How often each is measured.", show_default="3; with --full 5")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="End after so long, 0: never.", show_default="9; with --full 0"),
    ] = None,
    attempts: Annotated[
        int, typer.Option(min=1, help="How often a run is tried that something disturbs.")
    ] = campaign.ATTEMPTS,
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="For raw data and reports; one that has some is continued.")
    ] = Path("bench-results"),
    report: Annotated[
        bool, typer.Option("--report", help="Measure nothing: only write the reports from the folder's data.")
    ] = False,
    machine: Annotated[
        bool,
        typer.Option(
            "--machine", help="No lab: count instructions in a virtual machine, for the same report."
        ),
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="Name all receivers and scenarios.")] = False,
    on_host: Annotated[
        bool, typer.Option("--host", help="No lab: sample what this real host does, see docs/benchmarks.md.")
    ] = False,
    label: Annotated[str, typer.Option(help="With --host: what runs here now.")] = "",
    turns: Annotated[
        int, typer.Option(min=0, help="With --host, on the hardworker: run midstream and sockets in turns.")
    ] = 0,
    path: Config = DEFAULT_CONFIG,
    interval: Annotated[
        float, typer.Option(min=0.01, max=10, help="With --host: seconds between two samples.")
    ] = 0.1,
    interface: Annotated[
        str, typer.Option(help="With --host: whose packets are counted.", show_default="all but lo")
    ] = "",
    as_json: Json = False,
) -> None:
    """Measure receivers against each other in the lab; write raw data, bench.md and bench.html.

    As root. Replaces a lab that is up. What is interrupted is continued by the same command.
    """
    everyone = (*RECEIVERS, *MIDDLEWARES)
    if listed:
        for each in everyone:
            print(f"{each.name:25} {full_title(each)}{'' if not each.missing() else f' ({each.missing()})'}")
        print(*(each.name for each in SCENARIOS), sep="\n")
        return
    if on_host:
        if report:
            _compare(output, as_json)
        else:
            _sample(path, label, turns, output, seconds or HOST_SECONDS, interval, interface, as_json)
        return
    settings = Settings(
        receivers=_chosen(receiver, everyone),
        scenarios=find(scenario) if scenario else (SCENARIOS if full else QUICK),
        repetitions=repetitions or (FULL_REPETITIONS if full else QUICK_REPETITIONS),
        seconds=seconds or (FULL_SECONDS if full else QUICK_SECONDS),
        folder=output,
        attempts=attempts,
        budget=60 * ((0 if full else QUICK_MINUTES) if minutes is None else minutes),
    )
    if machine:
        _count(settings, seconds or MACHINE_SECONDS)
    elif not report:
        stop = Stop(0)
        with until_signalled(stop.set), ExitStack() as stack:
            audience: Audience
            if sys.stderr.isatty():
                audience = stack.enter_context(Table(settings))
            else:
                audience = Silent() if as_json else Lines()
            campaign.carry_out(settings, audience, stop)
    results = reports.read(output)
    if report and not results.measured():
        raise ConfigError(f"{output}: has no runs; measure some first, or name another folder with --output")
    reports.write(results, output)
    if as_json:
        print(json.dumps([run.as_json() for run in results.runs]))
    else:
        say(f"bench: {output / reports.REPORT}, {output / reports.PAGE}")


def _sample(
    path: Path,
    label: str,
    turns: int,
    folder: Path,
    seconds: float,
    interval: float,
    interface: str,
    as_json: bool,
) -> None:
    """Sample this host, as it is or in turns."""
    if not label and not turns:
        raise ConfigError(
            "--label: is needed with --host; name what runs, such as midstream (or use --turns)"
        )
    stop = Stop(0)
    tick = 1 / os.sysconf("SC_CLK_TCK")
    with until_signalled(stop.set):
        if turns:
            take_turns(
                configuration.load(path),
                folder,
                turns,
                seconds=seconds,
                interval=interval,
                interface=interface,
                tick=tick,
                tell=lambda text: say(f"bench: {text}"),
                stop=stop,
            )
            _compare(folder, as_json)
            return
        samples = host.sample(
            label,
            folder,
            seconds=seconds,
            interval=interval,
            interface=interface,
            tick=tick,
            stop=stop,
        )
    show(
        {"samples": len(samples)} | {name: round(value, 4) for name, value in host.mean(samples).items()},
        as_json,
    )


def _count(settings: Settings, seconds: float) -> None:
    """Count instructions, which the report then shows beside the lab's figures."""
    stop = Stop(0)
    with until_signalled(stop.set):
        instructions.count(settings, seconds, lambda text: say(f"bench: {text}"), stop)


def _compare(folder: Path, as_json: bool) -> None:
    """What was sampled, side by side."""
    found = host.compare(folder)
    if as_json:
        print(
            json.dumps(
                {label: {name: asdict(value) for name, value in row.items()} for label, row in found.items()}
            )
        )
    else:
        print_comparison(found)


def _chosen(names: list[str] | None, everyone: tuple[Receiver, ...]) -> tuple[Receiver, ...]:
    if not names:
        return everyone
    known = {each.name: each for each in everyone}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"no receiver {unknown[0]!r}; there are: {', '.join(known)}")
    return tuple(known[name] for name in names)
