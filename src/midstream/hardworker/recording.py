"""Write down what a Hardworker delivers, to compare it later with what was sent and what was logged."""

import time
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from midstream.errors import ConfigError
from midstream.hardworker.messages import batch_dtype
from midstream.hardworker.receiver import Hardworker


def recorded_dtype(size: int) -> np.dtype[np.void]:
    """A recorded message of fixed size: when the application had it (nanoseconds since 1970), and itself.

    Read a file with `numpy.fromfile(path, recorded_dtype(size))`.
    """
    return np.dtype([("delivered", "<u8"), ("message", batch_dtype(size))])


class Recording:
    """A file of recorded messages.

    With fixed framing its records are of `recorded_dtype`; with other framings the file holds the payloads
    alone, each behind its length (4 bytes, big-endian). Raises ConfigError if the file cannot be written.
    """

    def __init__(self, path: Path, receiver: Hardworker) -> None:
        self._path = path
        self._receiver = receiver
        self._fixed = receiver.config.data.framing == "fixed"
        self._dtype = recorded_dtype(receiver.message_size)
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as failure:
            raise self._failed(failure) from failure

    def take(self) -> None:
        """Record everything that has arrived."""
        try:
            if self._fixed:
                batch = self._receiver.read()
                rows = np.empty(len(batch), self._dtype)
                rows["delivered"] = time.time_ns()
                rows["message"] = batch
                self._file.write(rows.tobytes())
            else:
                for message in self._receiver.messages():
                    self._file.write(len(message.payload).to_bytes(4, "big") + message.payload)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"--record {self._path}: cannot be written ({error.strerror}); name another file, or make room"
        )
