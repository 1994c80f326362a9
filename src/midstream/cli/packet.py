"""midstream packet: see on the wire what the eBPF programs do."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from midstream import packet
from midstream.errors import ConfigError, NetworkError
from midstream.network import Topology, find_interface, load
from midstream.packet import Flags, Leg, Packet

app = typer.Typer(help="Craft, check, send and watch raw packets.", no_args_is_help=True)


class Layer(StrEnum):
    ip = "ip"
    tcp = "tcp"


Const = Annotated[Path, typer.Option("--const", metavar="FILE", help="The topology.")]
Sensor = Annotated[int, typer.Option(min=1, help="Which sensor of the topology, counted from 1.")]
Syn = Annotated[bool, typer.Option("--syn", help="Set SYN (the default without other flags or data).")]
Ack = Annotated[bool, typer.Option("--ack", help="Set ACK.")]
Fin = Annotated[bool, typer.Option("--fin", help="Set FIN.")]
Rst = Annotated[bool, typer.Option("--rst", help="Set RST.")]
Data = Annotated[str | None, typer.Option("--data", metavar="TEXT", help="Payload; sets PSH and ACK.")]
Hex = Annotated[str | None, typer.Option("--hex", metavar="DIGITS", help="Payload in hexadecimal digits.")]
Seq = Annotated[int, typer.Option(help="Sequence number.")]
AckSeq = Annotated[int, typer.Option(help="Acknowledgment number.")]
PeerPort = Annotated[int, typer.Option(help="The sensor's own port.")]
Tos = Annotated[int | None, typer.Option(help="Another TOS than the topology's.")]
Port = Annotated[int | None, typer.Option(help="Another port than the topology's.")]
Reply = Annotated[bool, typer.Option("--reply", help="The logger's reply on the return path instead.")]
Corrupt = Annotated[Layer | None, typer.Option(help="Spoil the checksum of this header.")]
Interface = Annotated[
    str | None, typer.Option(help="Network interface; by default that of the route to the hardworker.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


@app.command()
def show(
    const: Const = Path("const.toml"),
    sensor: Sensor = 1,
    syn: Syn = False,
    ack: Ack = False,
    fin: Fin = False,
    rst: Rst = False,
    data: Data = None,
    digits: Hex = None,
    seq: Seq = 1000,
    ack_seq: AckSeq = 0,
    peer_port: PeerPort = 40000,
    tos: Tos = None,
    port: Port = None,
    reply: Reply = False,
    corrupt: Corrupt = None,
    as_json: Json = False,
) -> None:
    """Show a packet before and after the rewriting, field by field."""
    topology = load(const)
    flags, payload = _content(syn, ack, fin, rst, data, digits)
    leg = Leg.REPLY if reply else Leg.REQUEST
    before = packet.craft(
        topology, sensor - 1, flags, seq, ack_seq, payload, leg=leg, peer_port=peer_port, tos=tos, port=port
    )
    if corrupt:
        before = packet.corrupt(before, corrupt.value)
    after = packet.restore(before, topology) if reply else packet.rewrite(before, topology)
    verdict = packet.judge(before, topology)
    if as_json:
        print(json.dumps(_comparison(before, after, verdict)))
    else:
        _print_comparison(before, after, verdict)


@app.command()
def check(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|-|HEX", help="A capture (pcap, pcapng) or hex file, - for stdin, or digits."
        ),
    ],
    const: Const = Path("const.toml"),
    as_json: Json = False,
) -> None:
    """Tell what midstream does with captured frames, and why.

    Leaves with 1 if one of them bears the mark but is dropped or has a wrong checksum.
    """
    topology = load(const)
    console = Console(highlight=False, soft_wrap=True)
    faulty = False
    for number, captured in enumerate(_read_frames(source), start=1):
        try:
            frame, length, supposed = packet.as_ethernet(captured, topology)
        except ConfigError as error:
            raise ConfigError(f"{source}: packet {number}: {error}") from None
        verdict = packet.judge(frame, topology, length)
        if supposed:
            verdict = replace(verdict, reasons=(*verdict.reasons, supposed))
        faulty |= verdict.action == "drop" or (
            verdict.leg is not None and bool(packet.check(frame, topology, length))
        )
        if as_json:
            sizes = {"frame": number, "length": captured.length, "captured": len(captured.data)}
            print(json.dumps(sizes | _verdict_object(verdict)))
        else:
            headline = packet.headline(frame, length)
            console.print(f"{number}  {captured.length} B  {escape(headline)}")
            console.print(f"   [bold]{verdict.action}[/]{f'  ({verdict.leg})' if verdict.leg else ''}")
            for reason in verdict.reasons:
                console.print(f"   - {escape(reason)}")
    if faulty:
        raise typer.Exit(1)


@app.command()
def send(
    interface: Interface = None,
    const: Const = Path("const.toml"),
    sensor: Sensor = 1,
    syn: Syn = False,
    ack: Ack = False,
    fin: Fin = False,
    rst: Rst = False,
    data: Data = None,
    digits: Hex = None,
    seq: Seq = 1000,
    ack_seq: AckSeq = 0,
    peer_port: PeerPort = 40000,
    tos: Tos = None,
    port: Port = None,
    corrupt: Corrupt = None,
    as_json: Json = False,
) -> None:
    """Send one packet from a sensor to the hardworker, as it is, past this host's TCP.

    This host's TCP knows nothing of the connection, so it answers the logger's reply with a reset.
    """
    topology = load(const)
    flags, payload = _content(syn, ack, fin, rst, data, digits)
    frame = packet.craft(
        topology, sensor - 1, flags, seq, ack_seq, payload, peer_port=peer_port, tos=tos, port=port
    )
    if corrupt:
        frame = packet.corrupt(frame, corrupt.value)
    interface = interface or find_interface(topology.hardworker.ip)
    packet.send(interface, frame)
    if as_json:
        print(json.dumps({"interface": interface, "length": len(frame), "frame": frame.hex()}))
    else:
        print(f"sent on {interface}: {len(frame)} B  {packet.headline(frame)}")


@app.command()
def listen(
    interface: Interface = None,
    const: Const = Path("const.toml"),
    count: Annotated[int, typer.Option(min=0, help="Stop after so many packets; 0 = no limit.")] = 0,
    timeout: Annotated[
        float, typer.Option(min=0, help="Stop after so many seconds; 0 = until stopped.")
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Show the marked packets that enter and leave an interface.

    Leaves with 5 if the time ran out before `--count` packets were seen.
    """
    topology = load(const)
    interface = interface or find_interface(topology.hardworker.ip)
    deadline = time.monotonic() + timeout if timeout else None
    seen = 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with packet.Listener(interface) as listener:
            print(f"listening on {interface} for {_mark(topology)}", file=sys.stderr, flush=True)
            while not count or seen < count:
                remaining = max(deadline - time.monotonic(), 0.0) if deadline else None
                sighting = listener.next(remaining)
                if sighting and packet.is_marked(sighting.frame, topology):
                    seen += 1
                    _print_sighting(sighting, topology, as_json)
                elif deadline and time.monotonic() >= deadline:
                    break
    except KeyboardInterrupt:
        count = 0
    print(f"{seen} marked packets seen on {interface}", file=sys.stderr)
    if seen < count:
        raise NetworkError(f"{interface}: {seen} of {count} marked packets seen within {timeout:g} s")


def _content(
    syn: bool, ack: bool, fin: bool, rst: bool, data: str | None, digits: str | None
) -> tuple[Flags, bytes]:
    """Flags and payload from the options."""
    if data is not None and digits is not None:
        raise ConfigError("--data and --hex: both give the payload, use one of them")
    payload = (data or "").encode()
    if digits is not None:
        try:
            payload = bytes.fromhex(digits)
        except ValueError:
            raise ConfigError(f"--hex {digits}: expected hexadecimal digits in pairs") from None
    flags = Flags(0)
    for wanted, flag in ((syn, Flags.SYN), (ack, Flags.ACK), (fin, Flags.FIN), (rst, Flags.RST)):
        flags |= flag if wanted else Flags(0)
    if payload and not syn:
        flags |= Flags.PSH | Flags.ACK
    return flags or Flags.SYN, payload


def _read_frames(source: str) -> Iterator[packet.Captured]:
    if source == "-":
        yield from packet.read_frames(sys.stdin.buffer, "standard input")
        return
    path = Path(source)
    try:
        # Digits too long for a file name raise an OSError instead of being no file.
        is_file = path.exists() and not path.is_dir()  # a pipe, too
    except (OSError, ValueError):  # ValueError: a zero byte
        is_file = False
    if not is_file:
        yield from packet.read_frames(BytesIO(source.encode(errors="replace")), source)
        return
    try:
        with path.open("rb") as stream:
            yield from packet.read_frames(stream, source)
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from error


def _mark(topology: Topology) -> str:
    ports = ", ".join(map(str, topology.ports))
    return f"port {ports}, " + (f"TOS {topology.tos}" if topology.tos else "any TOS")


def _verdict_object(verdict: packet.Verdict) -> dict[str, Any]:
    return {"action": verdict.action, "leg": verdict.leg, "reasons": verdict.reasons}


def _checksums(frame: bytes) -> dict[str, tuple[int, int]]:
    """Both checksums as they stand in the frame and as computed from scratch."""
    p = Packet.parse(frame)
    right = p.with_checksums()
    return {
        "IP checksum": (p.ip.checksum, right.ip.checksum),
        "TCP checksum": (p.tcp.checksum, right.tcp.checksum),
    }


def _comparison(before: bytes, after: bytes, verdict: packet.Verdict) -> dict[str, Any]:
    def describe(frame: bytes) -> dict[str, Any]:
        sums = {
            name: {"stored": stored, "computed": computed, "right": stored == computed}
            for name, (stored, computed) in _checksums(frame).items()
        }
        return {"frame": frame.hex(), "fields": packet.fields(Packet.parse(frame)), "checksums": sums}

    fields = packet.fields(Packet.parse(before)), packet.fields(Packet.parse(after))
    changed = [name for name in fields[0] if fields[0][name] != fields[1][name]]
    return {"before": describe(before), "after": describe(after), "changed": changed} | _verdict_object(
        verdict
    )


def _print_comparison(before: bytes, after: bytes, verdict: packet.Verdict) -> None:
    console = Console(highlight=False)
    table = Table("field", "before", "after")
    old, new = packet.fields(Packet.parse(before)), packet.fields(Packet.parse(after))
    for name in old:
        changed = old[name] != new[name]
        table.add_row(
            f"{name} *" if changed else name,
            escape(old[name]),
            escape(new[name]),
            style="bold yellow" if changed else None,
        )
    console.print(table)
    console.print("* changed. Checksums computed from scratch:")
    for moment, frame in (("before", before), ("after", after)):
        for name, (stored, computed) in _checksums(frame).items():
            result = "right" if stored == computed else f"[bold red]WRONG[/], the frame has 0x{stored:04x}"
            console.print(f"  {moment:6}  {name:12}  0x{computed:04x}  {result}")
    console.print(f"midstream: [bold]{verdict.action}[/]")
    for reason in verdict.reasons:
        console.print(f"  - {escape(reason)}", soft_wrap=True)


def _print_sighting(sighting: packet.Sighting, topology: Topology, as_json: bool) -> None:
    findings = packet.check(sighting.frame, topology, len(sighting.frame))
    if sighting.checksum_pending:
        findings = [text for text in findings if not text.startswith("TCP checksum")]
    leg = packet.find_leg(sighting.frame, topology)
    if as_json:
        line = {
            "time": sighting.time,
            "direction": sighting.direction,
            "leg": leg,
            "findings": findings,
            "checksum_pending": sighting.checksum_pending,
            "frame": sighting.frame.hex(),
        }
        print(json.dumps(line), flush=True)
        return
    clock = time.strftime("%H:%M:%S", time.localtime(sighting.time // 10**9))
    clock += f".{sighting.time % 10**9 // 1000:06d}"
    place = leg or "no leg of the triangle"
    print(f"{clock} {sighting.direction:3}  {packet.headline(sighting.frame)}  [{place}]")
    for text in findings:
        print(f"    - {text}")
    sys.stdout.flush()
