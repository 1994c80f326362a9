"""midstream logger."""

from dataclasses import asdict

import typer

from midstream import config as configuration
from midstream.cli.options import DEFAULT_CONFIG, Config, Json, Stop, say, show, until_signalled
from midstream.logger import Logger

app = typer.Typer()


@app.command()
def logger(path: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Receive what the hardworker passes on and store it in the database."""
    config = configuration.load(path)
    stop = Stop(config.timeout)
    with until_signalled(stop.set), Logger(config) as server:
        summary = server.serve(stop, listening=lambda: say("logger: listening"))
    show(asdict(summary), as_json)
