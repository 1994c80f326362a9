"""Opening the logger's database, and what a person is told when that, or reading it, does not work."""

import sqlite3
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from midstream.errors import StoreError
from midstream.logger import schema

LOCK_TIMEOUT = 5.0  # seconds that SQLite waits for another program's transaction

_EXPECTED = (
    "Expected a SQLAlchemy URL such as sqlite:///midstream.db or postgresql+psycopg://user@host/name "
    "([logger] database in config.toml)"
)


def open_engine(url: str | URL, *, read_only: bool) -> tuple[Engine, str]:
    """The database at a URL, and its name without the password. StoreError if there is no such kind."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:  # the text is not repeated: it may hold a password
        raise StoreError(f"[logger] database is not a URL. {_EXPECTED}") from error
    name = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() == "nats":
        raise StoreError(
            f"{name}: midstream log reads SQLite and PostgreSQL. What to do: read a JetStream with the nats "
            "command (nats stream view), or name a database with --database"
        )
    try:
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(parsed, name, read_only), name
        engine = create_engine(parsed)
    except NoSuchModuleError as error:
        raise StoreError(f"{name}: no such kind of database. {_EXPECTED}") from error
    except ModuleNotFoundError as error:
        raise StoreError(
            f"{name} needs a Python package that is not installed: pip install {error.name}"
        ) from error
    if read_only and parsed.get_backend_name() == "postgresql":
        engine = engine.execution_options(postgresql_readonly=True)
    return engine, name


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


def failed(name: str, error: SQLAlchemyError) -> StoreError:
    """What a person is told of a fault of the database."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    text = (str(cause) or type(cause).__name__).splitlines()[0].rstrip(". ")
    if "not a database" in text or "malformed" in text:
        advice = (
            "the file is damaged or no SQLite database. `sqlite3 FILE .recover` saves what can be read, "
            "`midstream log verify` says what is right"
        )
    elif "locked" in text:
        advice = "another program holds a transaction open in it: end it"
    elif "full" in text:
        advice = "make room on its disk"
    else:
        advice = "see that the database runs, is reached and lets this user in ([logger] database)"
    return StoreError(f"{name}: {text}. What to do: {advice}")


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
