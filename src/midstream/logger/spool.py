"""The hardworker's spool: who is let in, and how it is sent to the logger once that is back."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from midstream.closing import Closing
from midstream.config import Config
from midstream.errors import ConfigError
from midstream.logger.companion import Companion
from midstream.network import load as load_topology

BACKFILL = "midstream.logger.backfill"  # the companion that sends
LOOK = 0.25  # seconds between two looks whether anything is left
READ_PAUSE = 1.0  # seconds from one look at const.toml to the next
PATIENCE = 1.0  # seconds for another program's transaction

_LEFT = "SELECT EXISTS (SELECT 1 FROM connections) OR EXISTS (SELECT 1 FROM forgotten)"


def path_of(config: Config) -> Path:
    """The spool's file. ConfigError if there is to be none."""
    path = config.spool_path
    if path is None:
        raise ConfigError(
            f'{config.path}: hardworker.spool = "": this host has no spool; name a file, such as "spool.db"'
        )
    return path


class Sensors:
    """Those of const.toml, which is read again for one that is not known: it may be new."""

    def __init__(self, const: Path) -> None:
        self._const = const
        self._known: frozenset[str] = frozenset()
        self._read_at = 0.0

    def has(self, address: str) -> bool:
        if address not in self._known and time.monotonic() >= self._read_at:
            self._read_at = time.monotonic() + READ_PAUSE
            with suppress(ConfigError):  # it is not right just now
                self._known = frozenset(str(host.ip) for host in load_topology(self._const).sensors)
        return address in self._known


class Backfill(Closing):
    """A process that sends the spool to the logger, and removes there what the logger has committed.

    `python -m midstream.logger.backfill`, with `config` (JSON) and `path` as its settings.
    """

    def __init__(self, config: Config) -> None:
        self._path = path_of(config)
        self._process = Companion(
            BACKFILL, {"config": config.model_dump_json(exclude_unset=True), "path": str(config.path)}
        )

    def run(self, stop: Callable[[], bool]) -> bool:
        """Until nothing is left, which is True, or until `stop()`."""
        while self._left():
            if stop():
                return False
            self.keep()
            time.sleep(LOOK)
        self._shrink()
        return True

    def keep(self) -> None:
        """Start another process if this one has ended."""
        self._process.keep()

    def close(self) -> None:
        self._process.close()

    def _left(self) -> bool:
        if not self._path.exists():
            return False
        try:
            with closing(sqlite3.connect(self._path, timeout=PATIENCE)) as database:
                return bool(database.execute(_LEFT).fetchone()[0])
        except sqlite3.Error as error:
            return "no such table" not in str(error)  # else it cannot be read just now

    def _shrink(self) -> None:
        """Give the room back to the disk."""
        with suppress(sqlite3.Error), closing(sqlite3.connect(self._path, timeout=PATIENCE)) as database:
            database.execute("VACUUM")
