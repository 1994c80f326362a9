"""What sends a spool to the logger, but for the logger: it removes what is complete.

`python -m tests.support.emptying`, with the settings of a companion on standard input.
"""

import json
import sqlite3
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

from midstream.config import Config


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    path = Config.from_json(settings["config"], Path(settings["path"])).spool_path
    assert path is not None
    while True:
        with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as database, database:
            database.execute(
                "DELETE FROM messages WHERE connection_id IN "
                "(SELECT id FROM connections WHERE closed_ns IS NOT NULL)"
            )
            database.execute("DELETE FROM connections WHERE closed_ns IS NOT NULL")
            database.execute("DELETE FROM forgotten")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
