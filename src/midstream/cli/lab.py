"""midstream lab: three hosts on one machine."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from midstream import lab
from midstream.cli.options import Json, say, show
from midstream.errors import ConfigError
from midstream.lab import ImpairedLeg, Impairment, daemons, programs
from midstream.lab.faults import COUNTERS
from midstream.lab.hosts import LabHost
from midstream.lab.state import RUN_DIR

app = typer.Typer(help="Three hosts on one machine: sensors, hardworker, logger.", no_args_is_help=True)


@app.command()
def up(
    sensors: Annotated[int, typer.Option(min=1, help="How many sensors.")] = 1,
    size: Annotated[int, typer.Option(min=1, help="Bytes a message.")] = 1024,
    rate: Annotated[float, typer.Option(min=0, help="Messages a second, a sensor.")] = 1000.0,
    framing: Annotated[str, typer.Option(help="fixed, length or line.")] = "fixed",
    tos: Annotated[int, typer.Option(help="The mark's TOS; 0 for any.")] = 104,
    port: Annotated[int, typer.Option(help="The mark's port.")] = 12345,
    mtu: Annotated[int, typer.Option(help="Bytes an IPv4 packet.")] = 1500,
    restore: Annotated[str, typer.Option(help="Where replies are restored: logger or sensor.")] = "logger",
    receiver: Annotated[str, typer.Option(help="The hardworker's: ebpf or socket.")] = "ebpf",
    run_dir: Annotated[Path, typer.Option(help="Where config.toml and const.toml go.")] = RUN_DIR,
    daemon: Annotated[
        bool, typer.Option(help="A daemon on each host, which finds the others, pins and attaches.")
    ] = True,
    attach: Annotated[
        bool, typer.Option("--attach", help="With --no-daemon: compile and attach the programs too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build the lab, or keep the one that is up; prints its run directory."""
    settings: dict[str, Any] = {
        "data": {"size": size, "freq": rate, "framing": framing},
        "network": {"restore": restore},
        "hardworker": {"receiver": receiver},
    }
    if daemon:
        settings["network"] |= {"tos": tos, "port": port}
    built = lab.up(sensors, run_dir, tos=tos, port=port, mtu=mtu, bare=daemon, **settings)
    say("the lab was up already" if built.kept else "the lab is up")
    seconds = None
    if daemon:
        seconds = daemons.start(built)
        say(f"{len(built.hosts)} daemons found each other in {seconds:.1f} s")
    elif attach:
        for attached in programs.attach(built):
            say(f"{attached.role}: {attached.mode} on {attached.interface}, pinned in {attached.pins}")
    if as_json:
        result = {"run_dir": str(built.run_dir), "kept": built.kept, "daemons_ready_after": seconds}
        show(result | {"hosts": [_host(host) for host in built.hosts]}, as_json)
    else:
        print(built.run_dir)


@app.command()
def down(as_json: Json = False) -> None:
    """Remove the lab: processes, namespaces, pins, programs, run directory."""
    lab.down()
    if as_json:
        show({"up": False}, as_json)


@app.command()
def status(as_json: Json = False) -> None:
    """What there is of the lab; exit code 1 if it is not complete."""
    found = lab.status()
    if as_json:
        hosts = [_host(host) for host in found.hosts]
        processes = [
            {"pid": process.pid, "namespace": process.namespace, "command": process.command}
            for process in found.processes
        ]
        result = {
            "up": found.up,
            "run_dir": str(found.run_dir),
            "hosts": hosts,
            "problems": found.problems,
            "processes": processes,
            "impaired": [_impaired(one) for one in found.impaired],
        }
        print(json.dumps(result))
    else:
        print("up" if found.up else "down", found.run_dir if found.hosts else "")
        for host in found.hosts:
            print(f"  {host.name:12} {host.ip}  {host.mac}  {host.namespace}")
        for problem in found.problems:
            print(f"  problem: {problem}")
        for process in found.processes:
            print(f"  {process.namespace}: {process.pid} {process.command}")
        for one in found.impaired:
            print(f"  impaired: {_described(one)}")
    raise typer.Exit(0 if found.up else 1)


@app.command("exec", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def exec_(
    host: Annotated[str, typer.Argument(help="sensor, sensor-2, …, hardworker, logger or switch.")],
    command: Annotated[list[str], typer.Argument(metavar="-- CMD…", help="What to run there.")],
) -> None:
    """Run a program on a host of the lab; its exit code is this one's."""
    lab.find().exec(host, command)


@app.command()
def impair(
    link: Annotated[
        str,
        typer.Argument(
            help="HOST (all that it sends), HOST-HOST (both ways), HOST:HOST (one way), or all. "
            "Without it: show what is impaired, and the counters."
        ),
    ] = "",
    drop: Annotated[float, typer.Option(metavar="P", help="Probability that a frame is lost.")] = 0.0,
    duplicate: Annotated[float, typer.Option(metavar="P", help="That it comes twice.")] = 0.0,
    reorder: Annotated[float, typer.Option(metavar="P", help="That it is held back.")] = 0.0,
    corrupt: Annotated[float, typer.Option(metavar="P", help="That one byte is changed.")] = 0.0,
    delay: Annotated[float, typer.Option(metavar="MS", help="Milliseconds that every frame takes.")] = 0.0,
    hold: Annotated[float, typer.Option(metavar="MS", help="How much longer one held back takes.")] = 2.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Which frames are hit.")] = 0,
    clear: Annotated[bool, typer.Option("--clear", help="Make the link, or everything, good again.")] = False,
    as_json: Json = False,
) -> None:
    """Lose, duplicate, reorder, corrupt and delay the TCP frames of a link."""
    wanted = Impairment(drop, duplicate, reorder, corrupt, delay, hold, seed)
    if wanted.is_harmless == bool(link and not clear):
        raise ConfigError(
            "midstream lab impair: expected LINK with --drop, --duplicate, --reorder, --corrupt or --delay; "
            "[LINK] --clear; or nothing, which shows what is impaired"
        )
    found = lab.find()
    if clear:
        lab.clear(found, link or "all")
    elif link:
        lab.impair(found, link, wanted)
    impaired = lab.impairments(found)
    if as_json:
        print(json.dumps({"impaired": [_impaired(one) for one in impaired]}))
        return
    for one in impaired:
        print(_described(one))
    if not impaired:
        say("nothing is impaired")


def _host(host: LabHost) -> dict[str, str]:
    return {"name": host.name, "ip": str(host.ip), "mac": host.mac}


def _impaired(one: ImpairedLeg) -> dict[str, Any]:
    return {**one.leg._asdict(), **asdict(one.impairment), **_counters(one)}


def _described(one: ImpairedLeg) -> str:
    counters = ", ".join(f"{value} {name}" for name, value in _counters(one).items() if value)
    return f"{one.leg.source}:{one.leg.destination}  {one.impairment}  ({counters or 'no frames yet'})"


def _counters(one: ImpairedLeg) -> dict[str, int]:
    return {name: getattr(one, name) for name in (COUNTERS[0], "passed", *COUNTERS[1:])}
