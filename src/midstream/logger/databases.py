"""Which store a URL names."""

from typing import TYPE_CHECKING

from midstream.config import Config
from midstream.errors import StoreError
from midstream.logger.sql import SqlStore
from midstream.logger.store import Store

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
    if config.database_url.startswith("nats://"):
        return _jetstream(config, layout)
    return SqlStore(
        config.database_url,
        batch_size=config.logger.batch_size,
        framing=config.data.framing,
        layout=layout,
    )


def _jetstream(config: Config, layout: "Layout | None") -> Store:
    try:
        from midstream.logger.jetstream import JetStreamStore
    except ModuleNotFoundError as error:
        if error.name != "nats":
            raise
        raise StoreError(
            "nats:// needs a Python package that is not installed: pip install 'midstream[nats]'"
        ) from error
    return JetStreamStore(config.database_url, framing=config.data.framing, layout=layout)
