"""midstream logger."""

import os
import signal
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer

from midstream import config as configuration
from midstream.cli.options import DEFAULT_CONFIG, Config, Json, Stop, say, show, until_signalled
from midstream.cli.waiting import patiently
from midstream.logger import Logger
from midstream.logger.spool import Backfill

app = typer.Typer()


@app.command()
def logger(
    path: Config = DEFAULT_CONFIG,
    as_json: Json = False,
    spool: Annotated[
        bool,
        typer.Option("--spool", help="On the hardworker, while there is no logger: store in its spool."),
    ] = False,
    drain: Annotated[
        bool,
        typer.Option("--drain", help="With --spool: only send what is in it to the logger, then end."),
    ] = False,
    doors: Annotated[list[int] | None, typer.Option("--door", hidden=True)] = None,
    state: Annotated[int | None, typer.Option("--state", hidden=True)] = None,
) -> None:
    """Store in the database what the hardworker passes on.

    A spool that gets SIGUSR1 hands back: it lets no sensor in any more, has each of them end, sends what it
    has to the logger, and ends.
    """
    if drain and not spool:
        raise typer.BadParameter("it is for a spool: add --spool", param_hint="--drain")
    stop, hand_back = Stop(0), Stop(0)
    with until_signalled(stop.set), ExitStack() as opened:
        if spool:
            signal.signal(signal.SIGUSR1, lambda *_: hand_back.set())
        config = patiently(lambda: configuration.load(path), stop, then="starting")
        stop.limit(config.timeout)
        if drain:
            opened.enter_context(Backfill(config)).run(stop)
            return
        tell = partial(_write, state) if state is not None else lambda _: None
        server = patiently(
            lambda: Logger(config, spool=spool, doors=doors or (), tell=tell).__enter__(),
            stop,
            then="listening",
        )
        opened.push(server)
        summary = server.serve(stop, listening=lambda: say("logger: listening"), hand_back=hand_back)
    show(asdict(summary), as_json)


def _write(descriptor: int, text: str) -> None:
    """For the daemon, which shows it."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
