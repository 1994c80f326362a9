"""The one statement that is executed for every message: how each driver does it fastest.

Measured with rows of 64 bytes (docs/logger.md): SQLAlchemy's own executemany takes several times as long.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect, Table, insert
from sqlalchemy.types import BigInteger, Double, Integer

Insert = Callable[[Connection, Sequence[tuple[Any, ...]]], None]
"""Inserts rows, each in the order of the table's columns, in the connection's transaction."""


def inserter(table: Table, dialect: Dialect) -> Insert:
    if dialect.driver == "pysqlite":
        return _positional(table, dialect)
    if dialect.driver == "psycopg":
        return _copy(table, dialect)
    return _portable(table)


def _positional(table: Table, dialect: Dialect) -> Insert:
    """The driver's executemany on tuples."""
    statement = str(insert(table).compile(dialect=dialect))

    def execute(database: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        database.connection.cursor().executemany(statement, rows)

    return execute


def _copy(table: Table, dialect: Dialect) -> Insert:
    """PostgreSQL's COPY, in its binary format."""
    prepared = dialect.identifier_preparer
    names = ", ".join(prepared.format_column(column) for column in table.columns)
    statement = f"COPY {prepared.format_table(table)} ({names}) FROM STDIN (FORMAT BINARY)"
    types = [_postgres_type(column.type) for column in table.columns]

    def execute(database: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        with database.connection.cursor().copy(statement) as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)

    return execute


def _portable(table: Table) -> Insert:
    names = table.columns.keys()

    def execute(database: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        database.execute(insert(table), [dict(zip(names, row, strict=True)) for row in rows])

    return execute


def _postgres_type(kind: Any) -> str:
    if isinstance(kind, BigInteger):
        return "int8"
    if isinstance(kind, Integer):
        return "int4"
    return "float8" if isinstance(kind, Double) else "bytea"
