"""What the URL of a database may be, before anything is opened."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

from midstream.nats_url import QUOTING, NatsUrl, is_nats


def check_form(text: str) -> None:
    """ValueError for what cannot be the URL of any database; quick, for programs that open none."""
    if not text.isprintable():
        raise ValueError("a character that cannot be printed")
    if not re.match(r"[a-z][a-z0-9_]*(\+[a-z0-9_]+)?://", text):
        raise ValueError("not a URL of the form dialect://…")
    if re.match(r"sqlite[^:]*://([^/?]|/file:)", text):
        raise ValueError("the path of a SQLite file follows three slashes, without file:")
    if is_nats(text):
        NatsUrl.parse(text)


def check(text: str) -> None:
    """ValueError also for what SQLAlchemy or the driver would refuse. Nothing in it repeats a password."""
    check_form(text)
    if is_nats(text):
        return
    # Imported here: only programs with a database need it, and it loads slowly.
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SAWarning

    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"not a URL: a bracket or a port is wrong, or {QUOTING}") from error
    sqlite = url.get_backend_name() == "sqlite"
    if (not sqlite and text.partition("?")[0].count("@") > 1) or re.search(r"[@\s]", url.host or ""):
        raise ValueError(f"an @ too many, or a blank in the host's name; {QUOTING}")
    if url.port is not None and not 1 <= url.port <= 65535:
        raise ValueError(f"port {url.port} is not one from 1 to 65535")
    if sqlite and url.database and len(url.database.rsplit("/")[-1].encode()) > 255:
        raise ValueError("a file's name has at most 255 bytes")
    try:
        dialect = url.get_dialect()()
    except NoSuchModuleError:
        return  # told by whoever opens it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SAWarning)  # an option that SQLite does not have
            _, options = dialect.create_connect_args(url)
        if dialect.driver == "psycopg":
            _check_libpq(options)
    except (SAWarning, ArgumentError, ValueError, TypeError) as error:
        raise ValueError("behind ? is an option that the database does not have, or a wrong value") from error


def _check_libpq(options: Mapping[str, Any]) -> None:
    """ValueError for a connection option that PostgreSQL's library does not know."""
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import make_conninfo
    except ModuleNotFoundError:
        return  # told by whoever opens it
    try:
        make_conninfo(**options)
    except ProgrammingError as error:
        raise ValueError("an unknown option") from error
