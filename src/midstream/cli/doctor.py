"""midstream doctor."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from midstream import config as configuration
from midstream import network
from midstream.cli.options import DEFAULT_CONFIG, Config, Json, find_role, say
from midstream.doctor import station as stations

if TYPE_CHECKING:
    from midstream.doctor.finding import Finding

app = typer.Typer()


@app.command()
def doctor(
    role: Annotated[
        str,
        typer.Argument(metavar="ROLE", help="Default: config.toml's role, or that of this host's address."),
    ] = "",
    path: Config = DEFAULT_CONFIG,
    interface: Annotated[str, typer.Option(help="Instead of config.toml's, or that of the address.")] = "",
    probe: Annotated[bool, typer.Option(help="Send probes to the peers, which tell the broken leg.")] = True,
    fix: Annotated[
        bool, typer.Option("--fix", help="Set link, MTU, offloads and neighbours right, then check again.")
    ] = False,
    station: Annotated[
        str,
        typer.Option(
            metavar="SYSTEM", help="Print what to type on a control station: windows, macos or linux."
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Check this host and the way to its peers. What is wrong is printed with the command that mends it.

    Exit code 0: no fault (warnings do not count), 1: a fault.
    """
    config = configuration.load(path)
    topology = network.load(config.const_path)
    if station:
        lines = stations.commands(station, topology, interface or config.network.interface)
        print(json.dumps(lines) if as_json else "\n".join(lines))
        return

    # Imported here: a station need not run Linux.
    from midstream.doctor import diagnosis, subject

    chosen = role or config.role
    host = subject.find(find_role(chosen) if chosen else None, config, topology, interface)
    findings = diagnosis.examine(host, probe=probe and not fix)
    fixed = []
    if fix:
        fixed = diagnosis.mend(findings)
        findings = diagnosis.examine(host, probe=probe)
    faults = sum(finding.status == "fault" for finding in findings)
    if as_json:
        result = {
            "config": str(config.path),
            "role": host.role,
            "interface": host.interface,
            "faults": faults,
            "fixed": fixed,
        }
        print(json.dumps(result | {"findings": [_as_object(finding) for finding in findings]}))
    else:
        for command in fixed:
            print(f"fixed    {command}")
        for finding in findings:
            _print(finding)
        say(f"{host.role} on {host.interface or 'no interface'}: {_summary(findings)}")
    if faults:
        raise typer.Exit(1)


def _as_object(finding: "Finding") -> dict[str, Any]:
    names = ("check", "status", "found", "expected", "fix")
    return {name: getattr(finding, name) for name in names} | {"fixable": finding.repair is not None}


def _print(finding: "Finding") -> None:
    """Unfolded lines, so that a command can be copied."""
    expected = f"; expected {finding.expected}" if finding.expected else ""
    print(f"{finding.status:8} {finding.check}: {finding.found}{expected}")
    if finding.fix:
        print(f"{'':8} → {finding.fix}")


def _summary(findings: "list[Finding]") -> str:
    counts = Counter(finding.status for finding in findings)
    return ", ".join(f"{counts[status]} {status}" for status in ("fault", "warning", "unknown", "ok"))
