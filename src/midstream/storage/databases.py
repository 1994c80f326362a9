"""Which store, and which log, a URL names."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL

from midstream.config import Config
from midstream.errors import StoreError
from midstream.nats_url import is_nats
from midstream.storage.formats import NO_STREAMS, Formats
from midstream.storage.room import Room
from midstream.storage.sql import SqlStore
from midstream.storage.sql_log import SqlLog
from midstream.storage.store import Store
from midstream.storage.stored import Log


def open_store(config: Config, streams: Formats) -> Store:
    """The store of `[logger] database` for these streams.

    Raises ConfigError for a URL that cannot be, and what opening a store raises.
    """
    url = config.database_url
    if is_nats(url):
        with _nats_package():
            from midstream.storage.jetstream import JetStreamStore
        return JetStreamStore(url, streams=streams)
    return SqlStore(url, batch_size=config.logger.batch_size, streams=streams)


def open_spool(config: Config, path: Path, streams: Formats) -> Store:
    """The hardworker's spool for these streams."""
    return SqlStore(
        URL.create("sqlite", database=str(path)),
        batch_size=config.logger.batch_size,
        streams=streams,
        room=Room(config, path),
    )


def open_log(url: str, streams: Formats = NO_STREAMS) -> Log:
    """What a logger has stored at a URL. streams: what their messages are, where it was stored without.

    StoreError if there is nothing, or if it cannot be read.
    """
    if is_nats(url):
        with _nats_package():
            from midstream.storage.jetstream_log import JetStreamLog
        return JetStreamLog(url, streams)
    return SqlLog(url, streams)


@contextmanager
def _nats_package() -> Iterator[None]:
    """For the import of what needs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "nats":
            raise
        raise StoreError(
            "nats:// needs a Python package that is not installed: pip install 'midstream[nats]'"
        ) from error
