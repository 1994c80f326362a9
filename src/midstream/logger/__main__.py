"""The worker as a process: `python -m midstream.logger DESCRIPTOR`, which only the holder starts."""

import signal
import socket
import sys
import traceback
from pathlib import Path

from midstream import modes
from midstream.config import Config
from midstream.logger import channel
from midstream.logger.worker import Worker
from midstream.storage import formats
from midstream.storage.databases import open_spool, open_store
from midstream.storage.store import Store


def work(holder: socket.socket) -> None:
    """Serve the holder at the other end until it says stop."""
    received = channel.receive(holder)
    if received is None:
        return
    first, (descriptor,) = received
    settings = channel.read(descriptor)
    config = Config.from_json(settings["config"], Path(settings["path"]))
    streams = formats.parse(settings["streams"])
    spool = settings["spool"]
    forgets = spool and config.hardworker.spool_full == "forget"

    def new_store() -> Store:
        return open_spool(config, Path(spool), streams) if spool else open_store(config, streams)

    Worker(
        holder,
        new_store,
        streams,
        batch_interval=config.logger.batch_interval,
        batch_size=config.logger.batch_size,
        patient=bool(first["opened"] or spool),
        spools=bool(spool),
        forgets_after=config.daemon.stall if forgets else None,
    ).run()


if __name__ == "__main__":
    modes.restrain()
    # A terminal's Ctrl-C and a service manager's SIGTERM reach us too; the holder decides when we end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    holder = socket.socket(fileno=int(sys.argv[1]))
    try:
        work(holder)
    except Exception as error:  # a fault of ours: the holder starts another worker, and nothing is lost
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        channel.send(holder, {"crashed": f"{type(error).__name__}: {error} ({place})"})
        sys.exit(1)
