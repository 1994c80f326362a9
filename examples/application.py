"""An application on the hardworker: every message of every sensor, each once and in order."""

import sys

from midstream import Hardworker

with Hardworker(sys.argv[1] if len(sys.argv) > 1 else "config.toml") as hardworker:
    for message in hardworker:
        print(message.sensor, message.sequence, len(message.payload), "bytes", flush=True)
