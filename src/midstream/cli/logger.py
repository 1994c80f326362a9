"""midstream logger."""

from contextlib import ExitStack
from dataclasses import asdict

import typer

from midstream import config as configuration
from midstream.cli.options import DEFAULT_CONFIG, Config, Json, Stop, say, show, until_signalled
from midstream.cli.waiting import patiently
from midstream.logger import Logger

app = typer.Typer()


@app.command()
def logger(path: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Receive what the hardworker passes on and store it in the database."""
    stop = Stop(0)
    with until_signalled(stop.set), ExitStack() as opened:
        config = patiently(lambda: configuration.load(path), stop, then="starting")
        stop.limit(config.timeout)
        server = patiently(lambda: Logger(config).__enter__(), stop, then="listening")
        opened.push(server)
        say("logger: listening")
        summary = server.serve(stop)
    show(asdict(summary), as_json)
