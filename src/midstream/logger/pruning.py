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
from midstream.logger.retention import prune

INTERVAL = 5.0  # seconds between two looks
SHARE = 20  # times as long as a look took it rests at least


def keep_within(config: Config) -> None:
    """Prune for ever. What hinders it is said once on standard error."""
    logger, said = config.logger, ""
    while True:
        began = time.monotonic()
        try:
            prune(
                config.database_url,
                keep_ns=int(logger.keep_age * 1e9) or None,
                keep_bytes=logger.keep_size or None,
            )
            said = ""
        except StoreError as error:
            if str(error) != said:
                said = str(error)
                print(f"logger: nothing is removed just now: {said}", file=sys.stderr, flush=True)
        time.sleep(max(INTERVAL, SHARE * (time.monotonic() - began)))


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    config = Config.from_json(settings["config"], Path(settings["path"]))
    threading.Thread(target=keep_within, args=(config,), daemon=True).start()
    sys.stdin.read()  # its end is ours: the thread is a daemon


if __name__ == "__main__":
    main()
