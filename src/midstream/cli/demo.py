"""midstream demo: the whole triangle with one command."""

import json
import sys
from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from midstream import demo as demonstration
from midstream import lab
from midstream.cli.options import Json, until_signalled
from midstream.demo.run import Audience
from midstream.demo.view import Lines, Picture, Silent
from midstream.demo.words import tell
from midstream.errors import ConfigError
from midstream.load.mix import MIXES, find_mix

app = typer.Typer()

MOST_DAEMONS = 8  # sensors: each daemon takes half a second of a core to start
SECONDS = 5  # how long the sensors send unless told
RATE, SIZE, SENSORS = 1000.0, 1024, 1  # unless told
SMALLEST, LARGEST = 16, 2**20  # bytes: number and time of a message; config.MAX_MESSAGE


class _Restore(StrEnum):
    LOGGER = "logger"
    SENSOR = "sensor"


class _Receiver(StrEnum):
    EBPF = "ebpf"
    SOCKET = "socket"


class _Request:
    """A wish of the user's, made by a signal."""

    def __init__(self) -> None:
        self._made = False

    def make(self) -> None:
        self._made = True

    def __call__(self) -> bool:
        return self._made


@app.command()
def demo(
    messages: Annotated[
        int | None,
        typer.Option(min=1, help="Messages a sensor.", show_default="those of --seconds"),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="How long the sensors send.", show_default=str(SECONDS))
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Messages a second, a sensor; 0: as fast as TCP takes them.",
            show_default=f"{RATE:g}",
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=SMALLEST, max=LARGEST, help="Bytes a message.", show_default=str(SIZE))
    ] = None,
    sensors: Annotated[
        int | None, typer.Option(min=1, help="How many sensors.", show_default=str(SENSORS))
    ] = None,
    mix: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Many streams at once, from several sensors: {', '.join(MIXES)}."),
    ] = None,
    database: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Log there (SQLite, or PostgreSQL by its Unix socket) instead of in a file that is removed "
            "at the end.",
        ),
    ] = "",
    restore: Annotated[_Restore, typer.Option(help="Where replies are readdressed.")] = _Restore.LOGGER,
    impair: Annotated[
        str, typer.Option(metavar="FAULTS", help="Bad wires: drop=0.01,duplicate=0.01,reorder=0.02,seed=7 …")
    ] = "",
    receiver: Annotated[
        _Receiver, typer.Option(help="The hardworker's: eBPF or ordinary sockets.")
    ] = _Receiver.EBPF,
    daemon: Annotated[
        bool | None,
        typer.Option(
            "--daemon/--no-daemon",
            help="Daemons find each other and attach, or the lab tells every host what it needs.",
            show_default=f"with up to {MOST_DAEMONS} sensors",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run it all on this machine, and say what became of each message.

    As root. Replaces a lab that is up and leaves nothing behind. Ctrl-C stops the sensors early. Leaves with
    1 unless every message arrived unchanged, once and in order, at the application and in the database.
    """
    chosen = find_mix(mix) if mix else None
    told = {"--messages": messages, "--rate": rate, "--size": size, "--sensors": sensors}
    if chosen and (given := [name for name, value in told.items() if value is not None]):
        raise ConfigError(
            f"{given[0]}: the mix {mix} has its own; leave it out, and say how long by --seconds"
        )
    if messages is not None and seconds is not None:
        raise ConfigError("--messages and --seconds: both say how long; leave one of them out")
    rate = RATE if rate is None else rate
    seconds = SECONDS if seconds is None else seconds
    hosts = chosen.sensors if chosen else sensors or SENSORS
    if impair:
        lab.parse_impairment(impair)  # a mistake is told before anything is built
    settings = demonstration.Settings(
        max(1, round(seconds * (rate or RATE))) if messages is None else messages,
        rate,
        size or SIZE,
        hosts,
        database,
        restore.value,
        receiver.value,
        impair,
        daemon=hosts <= MOST_DAEMONS if daemon is None else daemon,
        mix=chosen,
        seconds=seconds,
    )
    stop = _Request()
    with until_signalled(stop.make):
        with ExitStack() as stack:
            audience: Audience
            if sys.stderr.isatty():
                audience = stack.enter_context(Picture(Console(stderr=True), settings))
            else:
                audience = Silent() if as_json else Lines(settings)
            report = demonstration.run(settings, audience, stop)
        if as_json:
            print(json.dumps(report.as_json()))
        else:
            tell(report, settings, Console(highlight=False))
    raise typer.Exit(0 if report.verdict.good else 1)
