"""Waiting, until there is something to do or somebody says stop."""

import os
import select
import threading
import time
from collections.abc import Callable

from midstream.hardworker.watch import INTERVAL


class Waiting:
    """stopped: has `stop` been called? It may be, by a handler of a signal or another thread, at any time."""

    def __init__(self) -> None:
        self.stopped = False
        self._stop = self._polled = -1
        self._poll = select.poll()
        self._attention: select.epoll | None = None
        self._running = threading.Lock()  # held until `stop`
        self._running.acquire()

    def open(self) -> None:
        """Take descriptors."""
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._attention = select.epoll()
        self._attention.register(self._stop, select.EPOLLIN)
        self._poll.register(self._attention, select.POLLIN)

    def close(self) -> None:
        """Let go of them."""
        if self._attention:
            self._attention.close()
            self._attention = None
        if self._stop >= 0:
            descriptor, self._stop = self._stop, -1
            os.close(descriptor)

    def stop(self) -> None:
        """Let all waiting end, now and from now on."""
        if not self.stopped:
            self.stopped = True
            self._running.release()
        if self._stop >= 0:
            os.eventfd_write(self._stop, 1)

    def see_to(self, timer: int, *, instead_of: int = -1) -> None:
        """Let a source's timer end waiting, too; -1: it has none."""
        if self._attention and instead_of >= 0:
            self._attention.unregister(instead_of)
        if self._attention and timer >= 0:
            self._attention.register(timer, select.EPOLLIN)

    @property
    def is_open(self) -> bool:
        """Between `open` and `close`?"""
        return self._stop >= 0

    @property
    def attention(self) -> int:
        """A descriptor that polls readable when waiting is to end: for `stop`, or for the source's timer."""
        return self._attention.fileno() if self._attention else self._stop

    def sleep(self, seconds: float, look: Callable[[], object]) -> None:
        """Until the time is over or `stop` is called; `look` is called now and then."""
        end = time.monotonic() + seconds
        while not self._running.acquire(timeout=min(max(0.0, end - time.monotonic()), INTERVAL)):
            if time.monotonic() >= end:
                return
            look()
        self._running.release()

    def poll(self, descriptor: int, seconds: float | None) -> bool:
        """Wait until this descriptor is readable, or waiting is to end; is it readable?"""
        if descriptor != self._polled:
            if self._polled >= 0:
                self._poll.unregister(self._polled)
            self._poll.register(descriptor, select.POLLIN)
            self._polled = descriptor
        return descriptor in dict(self._poll.poll(None if seconds is None else max(0.0, seconds) * 1000))
