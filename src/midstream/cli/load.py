"""midstream load: simulated sensors."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Annotated

import typer

from midstream import config as configuration
from midstream import network
from midstream.cli.options import DEFAULT_CONFIG, Config, Json, Stop, say, show, until_signalled
from midstream.errors import ConfigError, NetworkError
from midstream.lab import find
from midstream.lab.enter import NAMESPACES
from midstream.load import Load, Phase, Plan, Timing, read_timing, write_timing
from midstream.load.load import Launch
from midstream.load.mix import MIXES, configured_sendings, connections, counted, find_mix, joint_plan

app = typer.Typer()

_FED_EVERY = 0.1  # seconds


@app.command()
def load(
    path: Config = DEFAULT_CONFIG,
    sensors: Annotated[
        int | None,
        typer.Option(
            min=1, help="Connections of a stream, each a sensor.", show_default="1; a recording's flows"
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Messages a second, a sensor; 0: as many as TCP takes.",
            show_default="the stream's freq",
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Bytes a message.", show_default="that of const.toml")
    ] = None,
    stream: Annotated[
        list[str] | None, typer.Option(help="Only this stream; may be repeated.", show_default="all")
    ] = None,
    mix: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"The streams of a mix: {', '.join(MIXES)}.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="How long.", show_default="10; a recording once")
    ] = None,
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
    """Send messages from many sensors at exact times. Rate and lateness are reported.

    Of all streams that const.toml names, each at its rate and with its framing. To whom: as `midstream
    sensor`. One C program with absolute deadlines sends for all sensors. Leaves with 5 if a peer did not take
    everything.
    """
    timing = read_timing(replay, port) if replay else None
    sensors = sensors or (len(timing.flows) if timing else 1)
    if seconds is None:
        seconds = timing.period / 1e9 if timing else 10.0
    for line in _remarks(timing, sensors, seconds) if timing else ():
        say(f"load: {replay}: {line}")
    lab = find() if from_lab else None
    if size is not None:  # a mistake is told before files are asked for
        Plan(size=size)
    chosen = find_mix(mix) if mix else None
    config = configuration.load(lab.config if lab else path)
    topology = network.load(config.const_path)
    given = {"rate": rate, "size": size, "timing": timing}
    sendings = configured_sendings(
        config,
        topology,
        mix=chosen,
        names=stream or (),
        sensors=sensors,
        seconds=seconds,
        phase=phase,
        jitter=jitter,
        burst=burst,
        seed=seed,
        **{name: value for name, value in given.items() if value is not None},
    )
    if len(sendings) > 1 and (timing or size is not None):
        raise ConfigError(
            f"{'--replay' if timing else '--size'}: {', '.join(s.name for s in sendings)} have times and "
            "sizes of their own; name one with --stream"
        )
    plan = joint_plan(sendings)
    if record:
        write_timing(record, Timing.of(plan.events()))
    target = topology.logger if config.sensor.target == "logger" else topology.hardworker
    namespaces = [f"{NAMESPACES}/{host.namespace}" for host in lab.sensors] if lab else [""]
    to_peer = connections(sendings, str(target.ip), topology.tos, namespaces)
    stop = Stop(config.timeout)
    launch: Launch = partial(lab.popen, "sensor") if lab else Popen
    with until_signalled(stop.set), Load(plan, to_peer, reconnect=reconnect, launch=launch) as running:
        say(f"load: {len(to_peer)} connected to {target.ip}")
        running.start()
        while running.running:
            running.feed()
            if stop():
                running.stop()
            time.sleep(_FED_EVERY)
        summary = running.result()
    shown = summary.as_json() | {"streams": counted(sendings, summary.counts)}
    if timing:
        shown["remarks"] = dict(timing.remarks)
    if not as_json:
        for name in ("counts", "ports"):
            shown[name] = " ".join(map(str, shown[name]))
        shown["streams"] = " ".join(f"{name}:{count}" for name, count in shown["streams"].items())
        shown.pop("remarks", None)
    show(shown, as_json)
    if not summary.clean or (summary.unsent and not reconnect):
        raise NetworkError(
            f"load: {target.ip} did not take everything: {summary.unsent} messages not sent, "
            f"{summary.unacknowledged} bytes sent and not acknowledged; is its application or logger there? "
            "See: midstream status"
        )


def _remarks(timing: Timing, sensors: int, seconds: float) -> Iterator[str]:
    """What a recording holds, and what of it is not replayed as it was."""
    flows, lasts = len(timing.flows), timing.period / 1e9
    yield f"{timing.messages} messages of {flows} flows, which last {lasts:.9g} s"
    for what, number in timing.remarks.items():
        yield f"{what}: {number}"
    if sensors < flows:
        yield f"{flows - sensors} of its flows are left out: --sensors {flows} replays all"
    elif sensors > flows:
        yield f"{sensors - flows} sensors more than flows: they repeat them"
    if round(seconds * 1e9) < timing.period:
        yield f"its end is left out: --seconds {lasts:.9g} replays all"
    elif round(seconds * 1e9) > timing.period:
        yield "it begins anew when it ends"
