"""The messages of a stream for a program that computes with them: pandas, Polars, DuckDB, NumPy."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from midstream.config import nearest
from midstream.log.export import optional
from midstream.log.location import opened
from midstream.log.messages import LogReader
from midstream.log.selection import Selection, moment, refuse_unknown

if TYPE_CHECKING:
    import pyarrow


def table(
    stream: str,
    *,
    since: str | datetime | None = None,
    until: str | datetime | None = None,
    sensors: Iterable[str] = (),
    connections: Iterable[int] = (),
    config: str | Path | None = None,
    database: str | None = None,
) -> "pyarrow.Table":
    """The messages of a stream as an Arrow table, in the order in which they came.

    The columns are `sensor` and `port` (where it came from), `connection`, `sequence` (the message's number
    in it), `received`, `arrived`, `delay_ns` and `delay_error_ns`, and a column for each field. Times are of
    nanoseconds, in UTC. The last three are null where no hardworker has told when a message arrived. A
    field's values are in its unit, which is the `unit` of the column's metadata; a field with several values
    is a list of fixed size. Messages that no fields describe are in `payload`, a column that is there only if
    there are such messages, or no fields. A name of ours gets a `_` if a field has the same.

    stream: its name, `data` where config.toml names none. since, until: received from then on, and before
    then, as the commands take it ("-10m", "2026-11-25T16:52:10"); a datetime without a zone is of this
    host's. sensors: addresses; connections: numbers, as `midstream log list` has them; empty: all. config:
    config.toml; where it is not named, that of this folder, or of this host's services. database: a URL
    instead of config.toml's.

    The table is in memory as a whole. It needs pyarrow: pip install 'midstream[parquet]'. Raises ConfigError
    if that is missing, for a stream, sensor or connection that is not in the log (it lists those that are),
    and for a time that cannot be read; StoreError if the database cannot be read.
    """
    arrow = optional("pyarrow", "parquet", "midstream.log.table")
    from midstream.log.arrow import ArrowMessages

    now = datetime.now(UTC)
    addresses, numbers = tuple(sensors), tuple(connections)
    selection = Selection(
        addresses,
        numbers,
        None if since is None else moment(_text(since), "since", now),
        None if until is None else moment(_text(until), "until", now),
        streams=(stream,),
    )
    with opened(nearest() if config is None else Path(config), database) as log:
        everything = log.connections()
        refuse_unknown("stream", (stream,), {each.stream for each in everything})
        refuse_unknown("sensors", addresses, {each.sensor for each in everything})
        refuse_unknown("connections", numbers, {each.id for each in everything})
        reader = LogReader(log, selection)
        # Where nothing was received at that time, the columns are those of the stream.
        described = reader.connections or [each for each in everything if each.stream == stream][-1:]
        messages = ArrowMessages(stream, described, lists=True)
        tables = [made for piece in reader.read() for made in messages.add(piece)]
        tables += messages.rest()
    found = arrow.concat_tables([messages.schema.empty_table(), *tables]).unify_dictionaries()
    payload = found.column(messages.payload_name)
    if messages.has_fields and payload.null_count == len(payload):
        found = found.drop_columns([messages.payload_name])
    return found


def _text(time: str | datetime) -> str:
    return time.isoformat() if isinstance(time, datetime) else time
