"""midstream daemon: what runs on each host and makes the triangle work."""

import asyncio
import signal
from typing import Annotated

import typer

from midstream import config as configuration
from midstream.cli.options import DEFAULT_CONFIG, Config, Json, Stop, show, until_signalled
from midstream.cli.waiting import patiently
from midstream.daemon.log import write_events
from midstream.daemon.service import Service

app = typer.Typer()


@app.command()
def daemon(
    path: Config = DEFAULT_CONFIG,
    once: Annotated[
        bool, typer.Option("--once", help="Explore, pin, compile, attach, then end and leave it so.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find the other hosts, attach, watch and heal.

    Logs to standard error, with --json as JSON Lines.
    """
    stop = Stop(0)
    write_events(as_json=as_json)
    with until_signalled(stop.set):
        service = patiently(lambda: Service(configuration.load(path)), stop, then="starting")
    asyncio.run(_run(service, once))
    if once and (state := service.state())["ready_after"]:
        chosen = ("role", "interface", "ip", "mac", "sensors", "loggers", "ready_after")
        show({name: state[name] for name in chosen}, as_json)


async def _run(service: Service, once: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await service.run(stop, once=once)
