"""midstream load: simulated sensors."""

import time
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Annotated

import typer

from midstream import config as configuration
from midstream import network
from midstream.bench.load import Connection, Load, Phase, Plan, Timing, read_timing, write_timing
from midstream.bench.load.load import Launch
from midstream.cli.options import DEFAULT_CONFIG, Config, Json, Stop, say, show, until_signalled
from midstream.lab import find
from midstream.lab.enter import NAMESPACES

app = typer.Typer()

_FED_EVERY = 0.1  # seconds


@app.command()
def load(
    path: Config = DEFAULT_CONFIG,
    sensors: Annotated[int, typer.Option(min=1, help="Connections, each a sensor.")] = 1,
    rate: Annotated[
        float, typer.Option(min=0, help="Messages a second, a sensor; 0: as many as TCP takes.")
    ] = 1000.0,
    size: Annotated[
        int | None, typer.Option(help="Bytes a message.", show_default="that of const.toml")
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long.")] = 10.0,
    phase: Annotated[Phase, typer.Option(help="The sensors' periods: apart, or all at once.")] = Phase.SPREAD,
    jitter: Annotated[
        float, typer.Option(metavar="SECONDS", help="Each message comes up to so much later.")
    ] = 0.0,
    burst: Annotated[int, typer.Option(help="So many messages at once, in as many periods.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the jitter.")] = 0,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The times of a capture (pcap, pcapng) or a .csv, instead of a rate."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Of a capture, only what went to this TCP port.", show_default="any")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write down the times; --replay reads them.")
    ] = None,
    from_lab: Annotated[
        bool, typer.Option("--lab", help="From the sensors of the lab that is up, one connection each.")
    ] = False,
    reconnect: Annotated[
        bool, typer.Option("--reconnect", help="Make a lost connection again, instead of ending.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send numbered, time-stamped messages from many sensors at exact times; report rate and lateness.

    To whom: as `midstream sensor`. One C program with absolute deadlines sends for all sensors.
    """
    timing = read_timing(replay, port) if replay else None
    lab = find() if from_lab else None
    if size is not None:  # a mistake is told before files are asked for
        Plan(size=size)
    config = configuration.load(lab.config if lab else path)
    topology = network.load(config.const_path)
    plan = Plan(
        sensors=sensors,
        rate=rate,
        size=config.message_size(topology.size) if size is None else size,
        seconds=seconds,
        phase=phase,
        jitter=jitter,
        burst=burst,
        timing=timing,
        seed=seed,
    )
    if record:
        write_timing(record, Timing.of(plan.events()))
    target = topology.logger if config.sensor.target == "logger" else topology.hardworker
    hosts = [host.namespace for host in lab.sensors] if lab else [""]
    connections = [
        Connection(
            str(target.ip),
            topology.port,
            topology.tos,
            namespace=f"{NAMESPACES}/{hosts[number % len(hosts)]}" if lab else "",
        )
        for number in range(sensors)
    ]
    stop = Stop(config.timeout)
    launch: Launch = partial(lab.popen, "sensor") if lab else Popen
    with until_signalled(stop.set), Load(plan, connections, reconnect=reconnect, launch=launch) as running:
        say(f"load: {sensors} connected to {target.ip}")
        running.start()
        while running.running:
            running.feed()
            if stop():
                running.stop()
            time.sleep(_FED_EVERY)
        summary = running.result().as_json()
    if not as_json:
        summary["counts"] = " ".join(map(str, summary["counts"]))
    show(summary, as_json)
