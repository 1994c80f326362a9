"""The table of typed columns: made, or widened, and tried before anybody relies on it.

Every database has limits of its own: names that it keeps for itself, columns in a table, bytes in a row. They
are not listed here: a row as large as the fields can be is inserted, and taken back.
"""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Column, Connection, Double, LargeBinary, MetaData, Table, inspect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql import quoted_name
from sqlalchemy.types import TypeEngine

from midstream.errors import StoreError
from midstream.storage import schema
from midstream.storage.inserts import Insert
from midstream.storage.opening import fault

if TYPE_CHECKING:
    from midstream.fields import Column as Value

_KINDS: dict[str, type[TypeEngine[Any]]] = {
    "integer": BigInteger,
    "real": Double,
    "bytes": LargeBinary,
}


def prepare(database: Connection, name: str, stream: str, columns: Iterable[tuple[str, str]]) -> Table:
    """The table of a stream, with (name, kind) for each of `columns`; those that are missing are added.

    A column that is there stays, also when it is no longer configured. StoreError if it has another kind, or
    if the database cannot have it; `name` is what the message calls the database.
    """
    values = [Column(quoted_name(column_name, True), _KINDS[kind]()) for column_name, kind in columns]
    called = schema.readings_table(stream)
    wanted = Table(called, MetaData(), *_keys(), *values)
    if called not in inspect(database).get_table_names():
        try:
            with database.begin_nested():
                wanted.create(database)
        except SQLAlchemyError as error:
            if fault(error).passing:
                raise
            # One of the columns cannot be: the first that cannot be added is told.
            Table(called, MetaData(), *_keys()).create(database)
    # SQLite does not tell capitals apart, and keeps a name as it was written first.
    known = str.lower if database.dialect.name == "sqlite" else str
    present = {known(found["name"]): found["type"] for found in inspect(database).get_columns(called)}
    for want in wanted.columns:
        found = present.get(known(want.name))
        if found is None:
            _add(database, wanted, want, name, len(present))
        elif found._type_affinity is not want.type._type_affinity:
            raise StoreError(
                f"{name}: column {want.name} of its table {called} is {found}, and the field "
                f"of this name needs {want.type}. Rename the field (in config.toml), or name "
                "another database ([logger] database)"
            )
    return wanted


def refuse_too_long(
    database: Connection,
    name: str,
    table: Table,
    columns: Sequence["Value"],
    insert: Insert,
    errors: tuple[type[Exception], ...],
) -> None:
    """StoreError, which names the field, if a row has no room for the values of these columns.

    `errors` are those of the database and its driver: they are raised where they may pass.
    """
    values = [_largest(column) for column in columns]

    def refused(count: int) -> Exception | None:
        """Why a row with so many of the values is not taken; None if it is."""
        row = (-1, 0, *values[:count], *[None] * (len(values) - count))
        savepoint = database.begin_nested()
        try:
            insert(database, [row])
        except errors as error:
            if fault(error).passing:
                raise
            return error
        finally:
            savepoint.rollback()
        return None

    error = refused(len(values))
    if error is None:
        return
    fits, cause = 0, error
    count = len(values)
    while count - fits > 1:
        middle = (fits + count) // 2
        error = refused(middle)
        if error is None:
            fits = middle
        else:
            count, cause = middle, error
    field = columns[count - 1].field.name
    raise StoreError(
        f"{name}: a row of its table {table.name} has no room for the field {field} "
        f"(column {count} of {len(values)}): {fault(cause).cause}. What to do: name fewer or shorter fields "
        "(in config.toml), for the messages are stored whole all the same; or name a SQLite "
        "database ([logger] database), which takes them"
    )


def _keys() -> list[Column[Any]]:
    return [
        Column("connection_id", schema.key, primary_key=True, autoincrement=False),
        Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    ]


def _add(database: Connection, table: Table, new: Column[Any], name: str, present: int) -> None:
    try:
        with database.begin_nested():
            schema.add_column(database, table, new)
    except SQLAlchemyError as error:
        found = fault(error)
        if found.passing:
            raise
        raise StoreError(
            f"{name}: its table {table.name}, which has {present} columns, takes none for the field "
            f"{new.name}: {found.cause}. What to do: rename the field (in config.toml); or, if "
            "columns of earlier fields fill it, name another database ([logger] database)"
        ) from error


def _largest(column: "Value") -> int | float | bytes:
    """A value that needs as much room as any, and cannot be compressed."""
    if column.kind == "bytes":
        return os.urandom(int(column.field.type[1:]))
    return 2**63 - 1 if column.kind == "integer" else 0.1
