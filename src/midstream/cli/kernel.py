"""midstream attach, detach, status: the eBPF programs of this host."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from midstream import config as configuration
from midstream import network, streams
from midstream.cli.options import (
    DEFAULT_CONFIG,
    Config,
    Json,
    find_role,
    say,
    show,
    until_signalled,
)
from midstream.cli.waiting import patiently
from midstream.config import Role
from midstream.daemon import status as daemon_status
from midstream.ebpf import attachment, irq_mitigation, loader, ring_server
from midstream.ebpf.attachment import Attachment
from midstream.ebpf.pins import default_folder, layout, stream_folder
from midstream.ebpf.records import OUTCOMES
from midstream.errors import ConfigError, KernelError, NetworkError, StoreError

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer()

RoleArgument = Annotated[
    str, typer.Argument(metavar="ROLE", help="sensor, hardworker or logger; default: config.toml's role.")
]
Pins = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Pin there instead of below config.toml's network.pins.")
]


@app.command()
def attach(
    role: RoleArgument = "",
    path: Config = DEFAULT_CONFIG,
    interface: Annotated[str, typer.Option(help="Instead of config.toml's, or that of the route.")] = "",
    pins: Pins = None,
    self_test: Annotated[
        bool, typer.Option(help="Hardworker: prove first that what XDP transmits arrives.")
    ] = True,
    serve: Annotated[
        bool, typer.Option("--serve", help="Stay, and hand the ring to the application (hardworker.socket).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compile, load, pin and attach this host's program. What is attached already stays."""
    stop = Event()

    def opened() -> tuple[configuration.Config, network.Topology, Attachment]:
        config = configuration.load(path)
        topology = network.load(config.const_path)
        chosen = find_role(role or config.role or "")
        if serve and (chosen != "hardworker" or not config.hardworker.socket):
            raise ConfigError(
                f"{path}: --serve is for the hardworker, and needs the path of a socket in hardworker.socket"
            )
        if serve and (told := daemon_status.ask(Path(config.daemon.socket))):
            return config, topology, _attached_by_daemon(told, pins or default_folder(chosen, config))
        attached = loader.attach(
            chosen, config, topology, folder=pins, interface=interface, self_test=self_test
        )
        return config, topology, attached

    if not serve:
        _, _, attached = opened()
        show({**asdict(attached), "pins": str(attached.pins)}, as_json)
        return
    with until_signalled(stop.set):
        config, topology, attached = patiently(opened, stop.is_set, then="serving the ring")
        each = streams.resolved(config, topology).values()
        settings = config.hardworker
        show({**asdict(attached), "pins": str(attached.pins)}, as_json)
        say(f"serving the ring at {settings.socket}")
        ring_server.serve(
            {
                one.config.named_stream: (
                    stream_folder(attached.pins, one.config),
                    layout("hardworker", *one),
                )
                for one in each
            },
            Path(settings.socket),
            mode=int(settings.socket_mode, 8),
            group=settings.socket_group,
            stop=stop.is_set,
        )


def _attached_by_daemon(told: dict[str, Any], folder: Path) -> Attachment:
    """What the running daemon has attached, which leaves nothing for us to attach. Raises KernelError."""
    if found := attachment.find("hardworker", folder):
        return found
    reason = f": {told['reason']}" if told["reason"] else ""
    raise KernelError(f"{folder}: the daemon has not attached the program yet{reason}")


@app.command()
def detach(
    role: RoleArgument = "", path: Config = DEFAULT_CONFIG, pins: Pins = None, as_json: Json = False
) -> None:
    """Detach this host's program and remove its pins."""
    config = configuration.load(path)
    chosen = find_role(role or config.role or "")
    folder = pins or default_folder(chosen, config)
    detached = loader.detach(chosen, folder)
    if as_json:
        show({"role": chosen, "pins": str(folder), "detached": detached}, as_json)
    elif detached:
        say(f"{folder}: detached and removed")
    else:
        say(f"{folder}: nothing is pinned there")
    told: dict[str, Any] | None = None
    with suppress(NetworkError):  # one that hangs attaches nothing
        told = daemon_status.ask(Path(config.daemon.socket))
    if told and told["role"] == chosen and pins in (None, default_folder(chosen, config)):
        stop = _stop(told["pid"])
        say(f"this host's daemon runs, and attaches the program again at once; to stop it: {stop}")


def _stop(pid: int) -> str:
    """The command that ends a daemon."""
    try:
        unit = re.search(r"/([^/]+\.service)$", Path(f"/proc/{pid}/cgroup").read_text(), re.MULTILINE)
    except OSError:
        unit = None
    return f"systemctl stop {unit[1]}" if unit and "midstream" in unit[1] else f"kill {pid}"


@app.command()
def status(path: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Say what this host's daemon and program do, and have counted."""
    config = configuration.load(path)
    result: dict[str, dict[str, Any]] = {}
    if told := daemon_status.ask(Path(config.daemon.socket)):
        result["daemon"] = told
    if not told or told["ready_after"] or told["program"]:
        result |= _programs(config)
    if found := _log(config, told["role"] if told else config.role):
        result["log"] = found
    if not result:
        raise KernelError(f"{config.network.pins}: no program is attached; run `midstream attach`")
    if as_json:
        print(json.dumps({"config": str(config.path), **result}))
        return
    from rich.console import Console  # here: it loads slowly, and most of these commands print no table

    console = Console()
    if told:
        for line in _daemon_lines(told):
            console.print(line, highlight=False, soft_wrap=True)
        del result["daemon"]
    for line in _log_lines(result.pop("log", {})):
        console.print(line, highlight=False, soft_wrap=True)
    for role, facts in result.items():
        where = f"{facts['mode']} on {facts['interface']}" if facts["attached"] else "not attached here"
        console.print(f"{role}: {where}, pinned in {facts['pins']}")
        if timer := facts.get("look_every_ns"):
            console.print(f"interrupt mitigation: {facts['interface']} looks every {timer / 1e6:g} ms")
        for stream, counted in facts.get("streams", {}).items():
            if len(facts["streams"]) > 1:
                console.print(f"{stream}:")
            console.print(_counters_table(counted))


def _programs(config: configuration.Config) -> dict[str, dict[str, Any]]:
    """What is attached on this host."""
    topology = network.load(config.const_path)
    result: dict[str, dict[str, Any]] = {}
    for role in get_args(Role):
        folder = default_folder(role, config)
        if not folder.exists():
            continue
        found = attachment.find(role, folder)
        result[role] = {
            "attached": found is not None,
            "interface": found.interface if found else None,
            "mode": found.mode if found else None,
            "pins": str(folder),
        }
    sensors = [str(host.ip) for host in topology.sensors] + ["others"]
    if "hardworker" in result:
        each = loader.stream_counters(default_folder("hardworker", config))
        result["hardworker"]["counters"] = _counted(sensors, loader.total(each).tolist())
        result["hardworker"]["streams"] = {
            name: _counted(sensors, counted.tolist()) for name, counted in each.items()
        }
        if interface := result["hardworker"]["interface"]:
            result["hardworker"]["look_every_ns"] = irq_mitigation.read(interface).timeout
    return result


def _counted(sensors: list[str], counted: list[list[int]]) -> dict[str, dict[str, int]]:
    """By sensor and outcome."""
    rows = zip(sensors, counted, strict=True)
    return {name: dict(zip(OUTCOMES, row, strict=True)) for name, row in rows}


def _daemon_lines(told: dict[str, Any]) -> Iterator[str]:
    """The daemon's state in words."""
    reason = f": {told['reason']}" if told["reason"] else ""
    where = f"{told['name']} on {told['interface']} ({told['ip']})"
    yield f"daemon: {told['role']} {where}, {told['state']}{reason}"
    if told["role"] == "hardworker" and (told["ready_after"] or told["program"]):
        there = told["destination"]
        way = "to this host's spool" if there == "spool" else f"to the logger {there}"
        reason = f": {told['destination_reason']}" if told["destination_reason"] else ""
        yield f"data goes {way} for {told['destination_seconds']:.0f} s{reason}"
        if told["spool"] not in (None, "off"):
            fault = f", and stores nothing: {told['spool_fault']}" if told.get("spool_fault") else ""
            yield f"the spool's process is {told['spool']}{fault}"
    for stream, sensors in (told.get("silent") or {}).items():
        yield f"silent, no {stream} within its deadline: {', '.join(sensors)}"
    yield from retained_lines(told)
    yield from _held_lines(told["held"] or {})
    for peer in told["peers"]:
        when = f"heard {peer['age']:.1f} s ago" + (", standby" if peer["standby"] else "")
        yield f"  {peer['role']} {peer['name']} {peer['ip']} {peer['mac']}, {when}"
    if told["repaired"]:
        yield f"repaired {told['repaired']} times, last {told['repairs'][-1]}"
    if told["rejected"]:
        yield "rejected: " + ", ".join(f"{count} {kind}" for kind, count in told["rejected"].items())


def retained_lines(told: dict[str, Any]) -> Iterator[str]:
    """What a logger would lose with its power, as the daemon says."""
    if told.get("retains") is False and told["destination"] not in ("", "spool"):
        yield "what the logger has not committed is not retained: its daemon does not say what it has"
    if told.get("forfeited"):
        yield (
            f"{told['forfeited']:,} bytes of the ring were not retained for the logger: there was no room in "
            "half of the ring, or the logger was silent"
        )
    if told.get("unsaved"):
        yield (
            f"{told['unsaved']:,} bytes that a logger may have lost are not in the spool yet: keep this "
            "host's daemon running"
        )


def _held_lines(held: dict[str, Any]) -> Iterator[str]:
    """What the hardworker holds that a log does not have, or has not heard of."""
    for sensor, waiting in held.get("pending", {}).items():
        age = time.time() - waiting["oldest_ns"] / 1e9
        yield (
            f"spool: {waiting['messages']:,} messages of {sensor}, {waiting['bytes']:,} bytes, are not "
            f"confirmed by a logger yet, the oldest came {age:,.0f} s ago"
        )
    if untold := held.get("untold_ends"):
        yield f"no logger has heard yet how {untold:,} connections ended"
    yield from held.get("faults", [])


def _log(config: configuration.Config, role: str | None) -> dict[str, dict[str, Any]]:
    """On the logger: what its log lacks of what the hardworker held, by sensor."""
    if role != "logger":
        return {}
    from midstream.log import account  # with SQLAlchemy, which no other host needs
    from midstream.storage.databases import open_log

    with suppress(StoreError), open_log(config.database_url) as log:
        return account.summary(log)
    return {}


def _log_lines(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    for sensor, row in found.items():
        line = f"log: {sensor}: {row['verdict']}, {row['connections']:,} connections were held"
        if row["pending_bytes"]:
            line += f", {row['pending_bytes']:,} bytes are pending"
        if row["lost_bytes"]:
            line += f", {row['lost_bytes']:,} bytes are missing (`midstream log list` names them)"
        yield line


def _counters_table(counters: dict[str, dict[str, int]]) -> "Table":
    """Outcomes as rows, leaving out those that never occurred; a column for each sensor."""
    from rich.table import Table

    table = Table("packets")
    for name in counters:
        table.add_column(name, justify="right")
    for outcome in OUTCOMES:
        if any(row[outcome] for row in counters.values()):
            table.add_row(outcome, *(str(row[outcome]) for row in counters.values()))
    return table
