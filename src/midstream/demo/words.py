"""Numbers in plain words, and the result of a demonstration in them."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from midstream.demo.run import DemoReport, Settings
from midstream.demo.verdict import DemoVerdict


def count(number: float) -> str:
    """A whole number with its thousands marked."""
    return f"{number:,.0f}"


def plural(number: int, noun: str) -> str:
    """So many of them."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def tell(report: DemoReport, settings: Settings, console: Console) -> None:
    """Print the result: the sentence that matters, then the figures."""
    verdict = report.verdict
    console.print()
    if verdict.good:
        console.print(
            f"[bold green]All {plural(verdict.sent, 'message')} arrived once, in order and unchanged[/], "
            "at the hardworker's application and in the logger's database."
        )
    else:
        console.print(f"[bold red]Not as it should be:[/] {', '.join(_faults(verdict))}.")
    if report.stopped:
        planned = count(settings.total)
        console.print(f"[yellow]Stopped early:[/] {count(verdict.sent)} of {planned} messages were sent.")
    if report.unclean:
        console.print(
            f"[yellow]{plural(report.unclean, 'sensor')} ended before the logger confirmed its last bytes.[/]"
        )
    console.print()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black")
    table.add_column(justify="right", style="bold cyan")
    table.add_column()
    for row in _rows(report, settings):
        table.add_row(*row)
    console.print(table)
    if settings.mix:
        console.print()
        console.print(_streams(report))
    console.print()


def _streams(report: DemoReport) -> Table:
    """What became of each stream by itself."""
    table = Table("stream", box=None, padding=(0, 2, 0, 0), header_style="bright_black")
    for heading in ("sent", "delivered", "logged", "median µs", "99 % µs", "slowest µs"):
        table.add_column(heading, justify="right", style="bold cyan")
    table.add_column("")
    for name, verdict in report.streams.items():
        latency = [f"{value:,.0f}" for value in (verdict.latency_us or {}).values()] or ["", "", ""]
        counts = map(count, (verdict.sent, verdict.delivered, verdict.logged))
        fate = "complete" if verdict.good else ", ".join(_faults(verdict))
        table.add_row(name, *counts, *latency, Text(fate, "green" if verdict.good else "bold red"))
    return table


def _faults(verdict: DemoVerdict) -> list[str]:
    faults = {
        "missing at the application": verdict.missing,
        "delivered again": verdict.duplicates,
        "delivered damaged": verdict.corrupt - verdict.logged_corrupt,
        "missing in the database": verdict.logged_missing,
        "stored again": verdict.logged_duplicates,
        "stored damaged": verdict.logged_corrupt,
    }
    found = [f"{count(number)} {what}" for what, number in faults.items() if number]
    if not verdict.sent:
        found.append("nothing was sent")
    if not verdict.in_order:
        found.append("not in order at the application")
    if not verdict.logged_in_order:
        found.append("not in order in the database")
    return found


def _rows(report: DemoReport, settings: Settings) -> list[tuple[str, str, Text]]:
    verdict = report.verdict
    latency, cpu = verdict.latency_us, report.cpu
    sensors = plural(settings.sensors, "sensor")
    each = " each" if settings.sensors > 1 and not settings.mix else ""
    rows = []
    if report.ready_seconds:
        what = "from hosts with nothing but addresses until their daemons had found each other and attached"
        rows.append(("ready", f"{report.ready_seconds:.1f} s", what))
    rows += [
        (
            "sent",
            count(verdict.sent),
            f"by {sensors}, {report.rate:,.1f} a second{each}, {report.seconds:.1f} s",
        ),
        (
            "delivered",
            count(verdict.delivered),
            f"{latency['p50']:,.0f} µs after they were sent (median), 99 % within {latency['p99']:,.0f} µs"
            if latency
            else "",
        ),
        ("logged", count(verdict.logged), "rows in the database"),
    ]
    if report.cpu_us_per_message is not None:
        napi, application = (part / verdict.delivered for part in (cpu.napi_us, cpu.application_us))
        rows.append(
            (
                "CPU a message",
                f"{report.cpu_us_per_message:.1f} µs",
                f"of the hardworker: {napi:.1f} to receive and send on, {application:.1f} in the application",
            )
        )
    stack = report.hardworker_stack
    rows.append(
        (
            "its own TCP",
            count(stack["tcp_segments_in"]),
            f"segments came to the hardworker's TCP; it had {plural(stack['sockets'], 'socket')} on the port",
        )
    )
    if report.counters:
        packets = ", ".join(f"{name} {count(number)}" for name, number in report.counters.items())
        rows.append(("packets", count(sum(report.counters.values())), f"{packets} ({report.mode} XDP)"))
    return [(name, number, Text(what)) for name, number, what in rows]
