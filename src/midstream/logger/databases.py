"""Which store a URL names."""

from midstream.config import Config
from midstream.logger.sql import SqlStore
from midstream.logger.store import Store


def open_store(config: Config, size: int) -> Store:
    """The store of `[logger] database` for fixed messages of `size` bytes."""
    del size
    return SqlStore(config.database_url, batch_size=config.logger.batch_size, framing=config.data.framing)
