"""The connections of a log as a table, a message as a line, a verdict as some."""

import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from midstream.config import DATA
from midstream.log.account import Account, Accounts, worst
from midstream.log.continuity import Hole
from midstream.log.decoding import Decoded, text_of
from midstream.log.export import iso
from midstream.log.selection import EVERYTHING, Selection
from midstream.log.verify import LogVerdict
from midstream.storage.stored import Extent, StoredConnection, StoredMessage, named, source_of


def row(
    connection: StoredConnection,
    extent: Extent | None,
    hole: Hole | None = None,
    account: Account | None = None,
) -> dict[str, Any]:
    """What there is of a connection. bytes: of the stream, frames included, that is stored; None in databases
    of version 1 while it is open. missing: messages that are neither there nor were removed to make room.
    missing_before: messages of the sensor between its connection before and this one, if they are numbered.
    first_number: TCP's, of the stream's first byte. verdict: what the account says; None: nobody has told.
    """
    stored = (
        None if extent is None or extent.start is None or extent.end is None else extent.end - extent.start
    )
    missing = 0 if extent is None else extent.last + 1 - connection.pruned - extent.messages
    return {
        "connection": connection.id,
        "stream": connection.stream,
        "sensor": connection.sensor,
        "port": connection.port,
        "first_number": connection.first,
        "opened": iso(connection.opened_ns),
        "closed": None if connection.closed_ns is None else iso(connection.closed_ns),
        "first": iso(extent.first_ns) if extent else None,
        "last": iso(extent.last_ns) if extent else None,
        "messages": extent.messages if extent else 0,
        "bytes": connection.size if stored is None and extent else stored or 0,
        "missing": missing,
        "missing_before": hole.messages if hole else 0,
        "removed": connection.pruned,
        "state": connection.state,
        "reason": connection.reason,
        "spooled": connection.spooled,
        "held": account.held.bytes if account else None,
        "held_state": account.held.state if account else None,
        "verdict": account.verdict if account else None,
        "lacks": lack_rows(account),
        "framing": connection.framing,
        "fields": [column.name for column in connection.layout.columns] if connection.layout else [],
    }


def lost_row(account: Account) -> dict[str, Any]:
    """What was held of a connection of which the log has nothing."""
    held = account.held
    return {
        "connection": None,
        "stream": held.stream,
        "sensor": held.sensor,
        "port": held.port,
        "first_number": held.first,
        "opened": iso(held.opened_ns),
        "messages": 0,
        "bytes": 0,
        "state": held.state,
        "held": held.bytes,
        "held_state": held.state,
        "verdict": account.verdict,
        "lacks": lack_rows(account),
    }


def lack_rows(account: Account | None) -> list[dict[str, Any]]:
    """What an account lacks: offsets in the stream, and how many messages, None where that is not known."""
    lacks = account.lacks if account else []
    return [
        {"kind": lack.kind, "start": lack.start, "end": lack.end, "messages": lack.messages} for lack in lacks
    ]


def account_lines(found: Accounts, selection: Selection = EVERYTHING) -> list[str]:
    """For a person: of each stream of each sensor what the log lacks of what was held, over all its
    connections."""
    if not found.known:
        return ["no hardworker has told this log what it held: whether all of it is here is not known"]
    lines = []
    for source, accounts in sorted(found.of_sources().items()):
        if not selection.wants(source):
            continue
        verdict = worst(accounts)
        lines.append(f"{named(source)}: {verdict}, of {len(accounts):,} connections that the hardworker held")
        for account in accounts:
            where = ", ".join(f"connection {row.id}" for row in account.connections)
            held = account.held
            opened = f"{iso(held.opened_ns)[:19].replace('T', ' ')}, by the hardworker's clock"
            name = where or f"port {held.port}, opened {opened}, no connection in the log"
            lines += [f"  {name}: {line}" for line in account.lines()]
    return lines


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Those rows for a person: times to the second. A verdict is empty where nobody has told what was
    held. The stream is named as soon as there is another than `data`."""
    result = Table(box=None, pad_edge=False, header_style="")
    numbers = ("connection", "messages", "bytes", "missing", "removed")
    for name in numbers:
        result.add_column(name, justify="right")
    streams = ("stream",) if any(each["stream"] != DATA for each in rows) else ()
    for name in (*streams, "sensor", "first", "last", "state", "verdict"):
        result.add_column(name, no_wrap=True)
    for each in rows:
        times = [str(each[name] or "")[:19].replace("T", " ") for name in ("first", "last")]
        counts = ["" if each[name] is None else f"{each[name]:,}" for name in numbers]
        names = [each[name] for name in (*streams, "sensor")]
        result.add_row(*counts, *names, *times, each["state"], each["verdict"] or "")
    return result


def line(message: StoredMessage, said: Decoded) -> str:
    """When it came, from whom, which message of which connection, how long before it had come to the
    hardworker, and what it says."""
    connection = message.connection
    head = f"{iso(message.received_ns)} {named(source_of(connection))} {connection.id}:{message.sequence}"
    if message.arrival:
        delay, error = message.arrival.delay_ns / 1e6, message.arrival.error_ns / 1e6
        head += f" {delay:+.3f}±{error:.3f}ms"
    if "fields" in said:
        layout = message.connection.layout
        units = {column.name: column.unit for column in layout.columns} if layout else {}
        return " ".join([head, *(_value(name, value, units[name]) for name, value in said["fields"].items())])
    if "json" in said:
        text = text_of(message.payload)
        said["text"] = json.dumps(said["json"]) if text is None or "\n" in text else text
    if "text" in said:
        return f"{head} {said['text']}".rstrip("\r")
    return f"{head} 0x{said['hex']}"


def verdict_row(verdict: LogVerdict) -> dict[str, Any]:
    """What was found of a connection; of the database as a whole where connection is None."""
    connection, account = verdict.connection, verdict.account
    of = connection or (account.held if account else None)
    return {
        "connection": connection.id if connection else None,
        "stream": of.stream if of else None,
        "sensor": of.sensor if of else None,
        "port": of.port if of else None,
        "state": of.state if of else None,
        "messages": verdict.messages,
        "bytes": verdict.bytes,
        "missing": verdict.gaps,
        "removed": connection.pruned if connection else 0,
        "digest": verdict.digest,
        "sha256": verdict.sha256,
        "right": verdict.right,
        "verdict": verdict.account.verdict if verdict.account else None,
        "held": verdict.account.held.bytes if verdict.account else None,
        "lacks": lack_rows(verdict.account),
        "faults": verdict.faults,
        "more_faults": verdict.more,
    }


def verdict_lines(verdict: LogVerdict) -> list[str]:
    """The same for a person: a line, and one for each fault."""
    account = verdict.account
    lines = ["the database"]
    if connection := verdict.connection:
        removed = f", {connection.pruned:,} removed before" if connection.pruned else ""
        digest = verdict.digest
        if digest == "none" and verdict.sha256:
            digest = f"{verdict.sha256} (to compare with what the sensor says)"
        found = f"{verdict.messages:,} messages, {verdict.bytes:,} bytes{removed}; SHA-256 {digest}"
        judged = "right" if verdict.right else "WRONG"
        judged += f"; {account.verdict}" if account else ""
        whose = f"connection {connection.id} of {named(source_of(connection))} ({connection.state})"
        lines = [f"{whose}: {found}; {judged}"]
    elif account:
        held = account.held
        whose = f"port {held.port} of {named(source_of(held))} ({held.state})"
        lines = [f"{whose}: no connection in the log; {account.verdict}"]
    lines += [f"  {line}" for line in account.lines()] if account else []
    lines += [f"  {fault}" for fault in verdict.faults]
    if verdict.more:
        lines.append(f"  … and {verdict.more:,} more")
    return lines


def _value(name: str, value: object, unit: str) -> str:
    text = f"{value:.7g}" if isinstance(value, float) else str(value)
    return f"{name}={text}{unit}"
