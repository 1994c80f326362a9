"""The thread that talks to the database, so that the worker's loop never waits for it."""

import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Writer:
    """One job at a time; `fileno` turns readable when it is done."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._result: Any = None
        self._error: BaseException | None = None
        self._done = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._work, name="midstream-writer", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        return self._done

    def submit(self, job: Callable[[], Any]) -> None:
        self._jobs.put(job)

    def result(self) -> Any:
        """What the job returned, or raised. Waits for it."""
        os.eventfd_read(self._done)
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._result

    def close(self, timeout: float | None = None) -> None:
        """End the thread. A job that hangs for longer than `timeout` seconds is left to the process's end."""
        self._jobs.put(None)
        self._thread.join(timeout)
        if not self._thread.is_alive():
            with suppress(OSError):
                os.close(self._done)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._result = job()
            except BaseException as error:
                self._error = error
            os.eventfd_write(self._done, 1)
