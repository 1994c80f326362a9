"""Which store, and which log, a URL names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL

from midstream.config import Config
from midstream.errors import StoreError
from midstream.nats_url import is_nats
from midstream.storage.room import Room
from midstream.storage.sql import SqlStore
from midstream.storage.sql_log import SqlLog
from midstream.storage.store import Store
from midstream.storage.stored import Described, Log

if TYPE_CHECKING:
    from midstream.fields import Layout


def open_store(config: Config, size: int) -> Store:
    """The store of `[logger] database` for fixed messages of `size` bytes.

    Raises ConfigError for a URL or fields that cannot be, and what opening a store raises.
    """
    layout = None
    if config.data.field:
        from midstream import fields  # with NumPy, which takes longer to load than all the rest

        layout = fields.layout(config, size)
    if is_nats(config.database_url):
        longest = size if config.data.framing == "fixed" else config.data.max_size
        return _jetstream(config, layout, longest)
    return SqlStore(
        config.database_url,
        batch_size=config.logger.batch_size,
        framing=config.data.framing,
        layout=layout,
    )


def open_spool(config: Config, path: Path, framing: str = "") -> Store:
    """The hardworker's spool: its messages as bytes, whatever fields they have. framing: store.STREAM, if it
    is to be given parts of streams."""
    return SqlStore(
        URL.create("sqlite", database=str(path)),
        batch_size=config.logger.batch_size,
        framing=framing or config.data.framing,
        room=Room(config, path),
    )


def open_log(url: str, described: Mapping[str, Described] | None = None) -> Log:
    """What a logger has stored at a URL. `described`, by stream, serves what was stored without.

    StoreError if there is nothing, or if it cannot be read.
    """
    if is_nats(url):
        with _nats_package():
            from midstream.storage.jetstream_log import JetStreamLog
        return JetStreamLog(url, described)
    return SqlLog(url, described)


def _jetstream(config: Config, layout: "Layout | None", longest: int) -> Store:
    with _nats_package():
        from midstream.storage.jetstream import JetStreamStore
    return JetStreamStore(config.database_url, framing=config.data.framing, layout=layout, longest=longest)


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
