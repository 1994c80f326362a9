"""Sends what a hardworker's spool holds to the logger, and removes there what the logger has committed.

`python -m midstream.logger.backfill` with its settings as JSON on standard input, whose end is its own end:
it works beside the spool's logger. What is said on the line tells logger/backfilling.py.

Nothing is remembered but the spool itself, and each connection begins with the logger's word how far it came:
so either side may die at any moment. No transaction is open in the spool while the network, or the rate, is
waited for.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from midstream import key, network
from midstream.config import Config
from midstream.errors import ConfigError, NetworkError, StoreError
from midstream.line import TIMEOUT, Head, Line, call
from midstream.logger.spooled import Outgoing, Spooled
from midstream.page import pack

PAGE_BYTES = 1 << 20  # of payload, at most; a message is sent whole
PARTS = 16  # of what may be sent in a second is a page, so that it comes evenly
POLL = 0.5  # seconds between two looks whether there is something to send
FIRST_RETRY, LAST_RETRY = 0.5, 10.0  # seconds until another try, where no logger takes it
LINGERING = 10.0  # seconds that a worker may go on storing whose logger was killed
MAX_REASONS = 8  # that are said while not all can be sent
NICE = 10  # below everything else that this host has to do


class Rate:
    """So many bytes a second, as evenly as pages are small: what was sent has to be waited for."""

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._clock = per_second, clock
        self._free_at = clock()

    @property
    def page(self) -> int:
        """Bytes of a page."""
        return max(1, min(PAGE_BYTES, self._per_second // PARTS))

    def sent(self, size: int) -> float:
        """Seconds to wait before more is sent."""
        now = self._clock()
        self._free_at = max(self._free_at, now) + size / self._per_second
        return self._free_at - now


class Sender:
    """`loggers`: the addresses of those that may take it, the best one first, asked anew for each line.

    told: called with what a person should know, once for each reason until all is sent.
    """

    def __init__(
        self, config: Config, loggers: Callable[[], Sequence[str]], told: Callable[[str], None]
    ) -> None:
        path, port = config.spool_path, config.logger.replay_port
        if path is None:
            raise ConfigError(f'{config.path}: hardworker.spool = "": there is no spool to send')
        if not port:
            raise ConfigError(
                f"{config.path}: logger.replay_port = 0: the spool cannot be sent; set it to a free port of "
                "the logger, here and there"
            )
        self._path, self._port, self._loggers = path, port, loggers
        self._key = key.read(config.key_path)
        self._rate = Rate(config.hardworker.backfill_rate)
        self._tell = told
        self._said: set[str] = set()
        self._line: Line | None = None
        self._retry = FIRST_RETRY
        self._committed: dict[str, int] = {}  # by token, the next message that the logger lacks
        self._lost: dict[str, float] = {}  # by token, since when it is known that a connection's logger ended

    def run(self, stop: Callable[[float], bool], *, drain: bool = False) -> None:
        """Until `stop(seconds)`, which waits so long at most, is true; with `drain` until nothing is left."""
        rest = 0.0
        while not stop(rest):
            rest = POLL
            if not self._path.exists():
                if drain:
                    return
                continue
            try:
                with Spooled(self._path) as spool:
                    self._send_all(spool, stop)
                    if not spool.state():
                        self._said.clear()
                        if drain:
                            break
                self._retry = FIRST_RETRY
            except (NetworkError, StoreError) as error:
                self._say(f"logger: the spool cannot be sent just now: {error}")
                rest, self._retry = self._retry, min(2 * self._retry, LAST_RETRY)
            self._hang_up()
        self._hang_up()

    def _send_all(self, spool: Spooled, stop: Callable[[float], bool]) -> None:
        """Connection by connection, in the order in which they opened; one that has to wait is left out."""
        outgoing = spool.outgoing()
        present = {each.token for each in outgoing}
        self._committed = {token: count for token, count in self._committed.items() if token in present}
        self._lost = {token: since for token, since in self._lost.items() if token in present}
        for each in outgoing:
            over = self._is_over(each)
            committed = self._committed.get(each.token, 0)
            if over or (each.last is not None and each.last >= committed):
                self._send(spool, each, over, stop)
            if stop(0):
                return
        if holes := spool.holes():
            self._ask({"forgotten": holes})
            spool.remove_holes(holes)

    def _is_over(self, outgoing: Outgoing) -> bool:
        """Will nothing of it come any more?"""
        if not outgoing.lost:
            return outgoing.connection.closed_ns is not None
        return time.monotonic() > self._lost.setdefault(outgoing.token, time.monotonic()) + LINGERING

    def _send(self, spool: Spooled, outgoing: Outgoing, over: bool, stop: Callable[[float], bool]) -> None:
        answer = self._ask({"open": outgoing.described()})
        following = answer.get("next", 0)
        while not self._stays(outgoing, answer):
            spool.remove_messages(outgoing, following)
            self._committed[outgoing.token] = following
            page = spool.page(outgoing, following, self._rate.page)
            if not page:
                break
            answer = self._ask({"messages": len(page)}, pack(page))
            self._retry = FIRST_RETRY  # it gets on, however often it is interrupted
            following = page[-1].sequence + 1
            if not self._pause(sum(len(row.payload) for row in page), stop):
                return
        else:
            return
        if over:
            facts, unfinished = spool.end(outgoing)
            if not self._stays(outgoing, self._ask({"end": facts}, [unfinished])):
                spool.remove(outgoing)

    def _stays(self, outgoing: Outgoing, answer: Head) -> bool:
        """Is it not taken, at least not now?"""
        why = answer.get("busy") or answer.get("refused")
        if why is not None:
            self._say(f"logger: {outgoing.name} stays in the spool: {why}")
        return why is not None

    def _pause(self, size: int, stop: Callable[[float], bool]) -> bool:
        """Keep the rate. False if it was stopped."""
        rest = self._rate.sent(size)
        while rest > 0:
            some = min(rest, TIMEOUT / 3)
            if stop(some):
                return False
            rest -= some
            if rest > 0 and self._line is not None:
                self._line.send({"here": True})
        return True

    def _ask(self, head: Head, parts: Sequence[bytes] = ()) -> Head:
        """The logger's answer; a line is opened if there is none. NetworkError if no logger answers."""
        if self._line is None:
            self._line = self._call()
        self._line.send(head, parts)
        return _answer(self._line)

    def _call(self) -> Line:
        error = NetworkError("const.toml names no logger")
        for address in self._loggers():
            try:
                line = call(address, self._key, self._port)
            except NetworkError as failed:
                error = failed
                continue
            try:
                line.send({"kind": "backfill"})
                _answer(line)
                return line
            except NetworkError as failed:
                line.close()
                error = failed
        raise error

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def _say(self, text: str) -> None:
        if text not in self._said and len(self._said) < MAX_REASONS:
            self._said.add(text)
            self._tell(text)


def _answer(line: Line) -> Head:
    head, _ = line.receive()
    if "failed" in head:
        raise NetworkError(head["failed"])
    return head


def loggers(config: Config) -> list[str]:
    """The addresses of const.toml's loggers, as it is now."""
    return [str(host.ip) for host in network.load(config.const_path).loggers]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    config = Config.from_json(settings["config"], Path(settings["path"]))
    os.nice(NICE)
    ended = threading.Event()

    def end_with_the_logger() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=end_with_the_logger, daemon=True).start()
    Sender(config, lambda: loggers(config), say).run(ended.wait)


if __name__ == "__main__":
    main()
