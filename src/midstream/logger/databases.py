"""Which store a URL names."""

from midstream.config import Config
from midstream.logger.sql import SqlStore
from midstream.logger.store import Store


def open_store(config: Config, size: int) -> Store:
    """The store of `[logger] database` for fixed messages of `size` bytes.

    Raises ConfigError for a URL or fields that cannot be, and what opening a store raises.
    """
    layout = None
    if config.data.field:
        from midstream import fields  # with NumPy, which takes longer to load than all the rest

        layout = fields.layout(config, size)
    return SqlStore(
        config.database_url,
        batch_size=config.logger.batch_size,
        framing=config.data.framing,
        layout=layout,
    )
