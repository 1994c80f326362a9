"""Opening the logger's database, and what a person is told when that, or using it, does not work.

`open_engine` is for readers, pruning and the spool; the engine that the logger writes with is made by sql.
"""

import re
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from midstream.errors import StoreError
from midstream.nats_url import is_nats
from midstream.storage import schema

LOCK_TIMEOUT = 5.0  # seconds that SQLite waits for another program's transaction
_RETRY = 0.001  # seconds between two looks whether it has ended

_EXPECTED = (
    "Expected a SQLAlchemy URL such as sqlite:///midstream.db or postgresql+psycopg://user@host/name "
    "([logger] database in config.toml)"
)


def open_with(url: str | URL, make: Callable[[URL], Engine]) -> tuple[Engine, str]:
    """The engine that `make` makes of a URL, and the URL without its password, by which it is named.

    StoreError if there is no such kind of database, or if a package for it is not installed.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # the text is not repeated: it may hold a password
        raise StoreError(f"[logger] database is not a URL. {_EXPECTED}") from error
    name = parsed.render_as_string(hide_password=True)
    try:
        return make(parsed), name
    except NoSuchModuleError as error:
        raise StoreError(f"{name}: no such kind of database. {_EXPECTED}") from error
    except ModuleNotFoundError as error:
        raise StoreError(
            f"{name} needs a Python package that is not installed: pip install {error.name}"
        ) from error


def open_engine(url: str | URL, *, read_only: bool) -> tuple[Engine, str]:
    """The database at a URL, which must be there, and its name without the password. Raises StoreError."""
    if is_nats(str(url)):
        raise StoreError(
            f"{re.sub('//.*@', '//', str(url))}: only SQL databases are pruned. What to do: set the limits "
            "of a JetStream with the nats command (nats stream edit), or name a database with --database"
        )

    def make(parsed: URL) -> Engine:
        name = parsed.render_as_string(hide_password=True)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(parsed, name, read_only)
        engine = create_engine(parsed)
        if read_only and parsed.get_backend_name() == "postgresql":
            return engine.execution_options(postgresql_readonly=True)
        return engine

    return open_with(url, make)


def stored_version(database: Connection, name: str) -> int:
    """The version of the tables. StoreError if they are not the logger's, or newer than this program."""
    tables = set(inspect(database).get_table_names())
    if not {schema.connections.name, schema.messages.name} <= tables:
        raise StoreError(
            f"{name}: no logger has stored anything here: it has no tables connections and messages. "
            "What to do: name the logger's database ([logger] database in config.toml, or --database)"
        )
    if schema.schema_version.name not in tables:
        return 1
    version: int = database.execute(select(schema.schema_version.c.version)).scalar_one()
    if version > schema.VERSION:
        raise StoreError(
            f"{name}: its tables have version {version}, and this midstream knows those up to "
            f"{schema.VERSION}. What to do: install the newer midstream"
        )
    return version


def begin_writing(database: Connection, patience: float) -> None:
    """Begin a transaction that writes, in SQLite, when no other does, for which it waits so many seconds.

    SQLite's own waiting looks at longer and longer intervals, and would miss the gaps between the
    transactions of a busy program.
    """
    deadline = time.monotonic() + patience
    database.exec_driver_sql("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                database.exec_driver_sql("BEGIN IMMEDIATE")
                return
            except OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY)
    finally:
        database.exec_driver_sql(f"PRAGMA busy_timeout = {int(patience * 1000)}")


@dataclass(frozen=True, slots=True)
class Fault:
    """What a database, or its driver, has failed with. passing: it may pass without a change of ours."""

    cause: str
    advice: str
    passing: bool

    def told_of(self, name: str) -> str:
        return f"{name}: {self.cause}. What to do: {self.advice}"


def fault(error: Exception) -> Fault:
    """What an error of SQLAlchemy's or of a driver's means for a person."""
    error = error.orig if isinstance(error, DBAPIError) and isinstance(error.orig, Exception) else error
    cause = (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
    passing = False
    if "locked" in cause:
        passing, advice = True, "another program holds a transaction open in it: end it"
    elif "not a database" in cause or "malformed" in cause:
        advice = (
            "the file is damaged or no SQLite database: move it away, or name another in config.toml. "
            "`sqlite3 FILE .recover` saves what can be read, `midstream log verify` says what is right"
        )
    elif "unable to open" in cause or "readonly" in cause:
        passing, advice = True, "its folder must exist, and file and folder be writable for this user"
    elif "disk I/O" in cause:
        passing, advice = True, "see that its disk is there, sound (`dmesg`) and has room"
    elif "full" in cause or "No space" in cause:
        passing, advice = True, "make room on its disk"
    else:
        passing = _may_pass(error)
        advice = "see that the database runs, is reached and lets this user in ([logger] database)"
    return Fault(cause, advice, passing)


def failed(name: str, error: SQLAlchemyError) -> StoreError:
    """What is raised where nobody waits for the database."""
    return StoreError(fault(error).told_of(name))


def _may_pass(error: Exception) -> bool:
    """What a PostgreSQL driver says of a server that is gone, full, locked, shutting down or a mere standby.

    By SQLSTATE: classes 08 connection, 25 read-only, 40 conflict, 53 resources, 55 lock, 57 intervention,
    58 system. None is given when the connection cannot be made; then a wrong name or password is told by the
    text only. A host that has no address may get one: at boot the network comes late.
    """
    state = getattr(error, "sqlstate", "")
    if state is None:
        return not re.search(
            "does not exist|authentication failed|pg_hba|no password supplied|invalid ", str(error)
        )
    return state[:2] in ("08", "25", "40", "53", "55", "57", "58")


def _sqlite(url: URL, name: str, read_only: bool) -> Engine:
    path = Path(url.database or "")
    if not path.is_file():
        raise StoreError(
            f"{name}: no such file. What to do: start the logger, which makes it, or name another database "
            "([logger] database in config.toml, or --database)"
        )
    mode = "ro" if read_only else "rw"

    def connect() -> sqlite3.Connection:
        address = f"file:{quote(str(path))}?mode={mode}"
        connection = sqlite3.connect(address, LOCK_TIMEOUT, check_same_thread=False, uri=True)
        try:
            connection.execute("PRAGMA schema_version")
        except sqlite3.OperationalError:
            # Whoever may not write in the folder cannot share a log that nobody has open; nor need he.
            connection.close()
            if not read_only or path.with_name(f"{path.name}-wal").exists():
                raise
            connection = sqlite3.connect(f"{address}&immutable=1", check_same_thread=False, uri=True)
        return connection

    return create_engine("sqlite://", creator=connect, poolclass=StaticPool)
