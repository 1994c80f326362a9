"""The process that keeps the database within `[logger] keep_age` and `keep_size` while the logger runs.

`python -m midstream.logger.pruning` with its settings as JSON on standard input, whose end is its own end. It
is another process than the worker: finding out what must go takes long, and holds up nobody there.
"""

import json
import sys
import threading
import time
from pathlib import Path

from midstream.config import Config
from midstream.errors import StoreError
from midstream.storage.pruning import Pruner

INTERVAL = 0.25  # seconds between two looks


def keep_within(config: Config) -> None:
    """Prune for ever. What hinders it is said once on standard error."""
    logger, said = config.logger, ""
    pruner = Pruner(
        config.database_url,
        keep_ns=int(logger.keep_age * 1e9),
        keep_bytes=logger.keep_size,
        told=lambda what: _say(f"logger: {what}"),
    )
    while True:
        rest, began = INTERVAL, time.monotonic()
        try:
            if not pruner.look().messages:
                rest = max(INTERVAL, time.monotonic() - began)
            said = ""
        except StoreError as error:
            if str(error) != said:
                said = str(error)
                _say(f"logger: nothing is removed just now: {said}")
        time.sleep(rest)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    config = Config.from_json(settings["config"], Path(settings["path"]))
    threading.Thread(target=keep_within, args=(config,), daemon=True).start()
    sys.stdin.read()  # its end is ours: the thread is a daemon


if __name__ == "__main__":
    main()
