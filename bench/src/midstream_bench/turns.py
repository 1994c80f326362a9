"""A and B in turns on a real hardworker: midstream's receiver and ordinary sockets, while the sensors send.

The sensors' connections end with each turn and have to come back by themselves: `midstream load --reconnect`.
"""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from midstream import network
from midstream.config import Config
from midstream.ebpf import loader, pins
from midstream.errors import MidstreamError, NetworkError
from midstream.hardworker import Hardworker
from midstream_bench import host

SETTLE = 3.0  # seconds for the sensors to come back
PATIENCE = 10.0  # seconds for a receiver to start or to end

LABELS = {"midstream": "ebpf", "sockets": "socket"}
"""What is sampled, and the [hardworker] receiver of it."""


def take_turns(
    config: Config,
    folder: Path,
    turns: int,
    *,
    seconds: float,
    interval: float,
    interface: str,
    tick: float,
    tell: Callable[[str], None],
    stop: Callable[[], bool],
) -> None:
    """Sample each receiver for `seconds`, `turns` times; the rest as of `host.sample`.

    The program is attached for the one and detached for the other; at the end it is as it was. Raises what
    the loader raises, and NetworkError if a receiver does not start.
    """
    topology = network.load(config.const_path)
    pinned = pins.default_folder("hardworker", config)
    was_attached = pinned.exists()
    try:
        for turn in range(turns):
            for label, kind in LABELS.items():
                if stop():
                    return
                tell(f"{label}, turn {turn + 1} of {turns}")
                chosen = config.hardworker.model_copy(update={"receiver": kind})
                if kind == "ebpf":
                    loader.attach("hardworker", config, topology)
                else:
                    loader.detach("hardworker", pinned)
                with _receiving(config.model_copy(update={"hardworker": chosen})):
                    _pause(SETTLE, stop)
                    host.sample(
                        label,
                        folder,
                        seconds=seconds,
                        interval=interval,
                        interface=interface,
                        tick=tick,
                        stop=stop,
                    )
    finally:
        if was_attached:
            loader.attach("hardworker", config, topology)
        else:
            loader.detach("hardworker", pinned)


@contextmanager
def _receiving(config: Config) -> Iterator[None]:
    """A process that receives and does nothing else with it, until the context ends."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_receive, args=(config, theirs.send, theirs.recv), daemon=True)
    process.start()
    try:
        problem = ours.recv() if ours.poll(PATIENCE) else "it is not ready in time"
        if problem:
            raise NetworkError(f"the receiver ({config.hardworker.receiver}) does not start: {problem}")
        yield
    finally:
        ours.send("end")
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
        ours.close()
        theirs.close()


def _receive(config: Config, tell: Callable[[str], None], ended: Callable[[], str]) -> None:
    try:
        with Hardworker(config) as hardworker:
            tell("")
            threading.Thread(target=_stop_when, args=(ended, hardworker.stop), daemon=True).start()
            while not hardworker.stopped:
                hardworker.wait(None)
                hardworker.read()
    except MidstreamError as error:
        tell(str(error))


def _stop_when(ended: Callable[[], str], stop: Callable[[], None]) -> None:
    ended()
    stop()


def _pause(seconds: float, stop: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not stop() and time.monotonic() < deadline:
        time.sleep(0.1)
