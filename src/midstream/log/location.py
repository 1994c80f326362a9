"""Where the log is, and what config.toml and const.toml say of messages that were stored without."""

from pathlib import Path

from midstream import config as configuration
from midstream import fields, network
from midstream.config import DATA, DEFAULT_CONFIG, Config
from midstream.database_url import check
from midstream.errors import ConfigError
from midstream.storage.databases import open_log
from midstream.storage.formats import StreamFormat, formats
from midstream.storage.stored import Log
from midstream.toml import show


def located(path: Path, url: str | None) -> tuple[Config, str]:
    """The configuration, which may be missing where the database is named. Raises ConfigError."""
    if url is not None:
        try:
            check(url)
        except ValueError as error:
            raise ConfigError(f"--database {show(url)}: {error}; correct it") from error
    if url is not None and path == DEFAULT_CONFIG and not path.exists():
        return Config(), url
    config = configuration.load(path)
    return config, url or config.database_url


def opened(path: Path, url: str | None) -> Log:
    """The database for reading. Raises ConfigError and StoreError."""
    config, address = located(path, url)
    return open_log(address, _streams(config))


def _streams(config: Config) -> dict[str, StreamFormat]:
    """What the messages of each stream are, as far as the files tell."""
    layout = None
    if config.data.field:
        size = config.data.size or network.load(config.const_path).size
        layout = fields.layout(config, size)
    found = {DATA: StreamFormat(config.data.framing, layout=layout)}
    topology = network.load(config.const_path) if config.const_path.exists() else None
    return found | (formats(config, topology) if topology and topology.streams else {})
