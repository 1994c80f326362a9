"""Write down what a Hardworker delivers, to compare it later with what was sent and what was logged."""

import os
import time
from pathlib import Path

import numpy as np

from midstream import modes
from midstream.closing import Closing
from midstream.errors import ConfigError
from midstream.hardworker.hardworker import Hardworker
from midstream.hardworker.messages import batch_dtype


def recorded_dtype(size: int) -> np.dtype[np.void]:
    """A recorded message of fixed size: when the application had it (nanoseconds since 1970), and itself.

    Read a file with `numpy.fromfile(path, recorded_dtype(size))`.
    """
    return np.dtype([("delivered", "<u8"), ("message", batch_dtype(size))])


class Recording(Closing):
    """A file of recorded messages.

    With fixed framing its records are of `recorded_dtype`; with other framings the file holds the payloads
    alone, each behind its length (4 bytes, big-endian). `resume` (fixed framing) goes on with the file of a
    process that was killed: half a record at its end is cut off, and the messages that are delivered again,
    because their batch was not committed, are told by connection and offset and not written twice.
    Raises ConfigError if the file cannot be written.
    """

    def __init__(self, path: Path, receiver: Hardworker, *, resume: bool = False) -> None:
        self._path = path
        self._receiver = receiver
        self._fixed = receiver.config.data.framing == "fixed"
        self._dtype = recorded_dtype(receiver.message_size)
        self._written: dict[int, int] = {}  # by connection: the offset of the last message in the file
        if resume and not self._fixed:
            raise ConfigError("--resume: only fixed framing can go on with a record; leave it out")
        try:
            if resume and path.exists():
                self._resume()
            self._file = open(path, "ab" if resume else "wb", buffering=0, opener=modes.opener)  # noqa: SIM115  until it is closed
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as failure:
            raise self._failed(failure) from failure

    def take(self) -> None:
        """Record everything that has arrived."""
        try:
            if self._fixed:
                batch = self._receiver.read()
                if self._written and len(batch):
                    batch = self._unwritten(batch)
                rows = np.empty(len(batch), self._dtype)
                rows["delivered"] = time.time_ns()
                rows["message"] = batch
                self._write(rows.tobytes())
            else:
                for message in self._receiver.messages():
                    self._write(len(message.payload).to_bytes(4, "big") + message.payload)
        except OSError as error:
            raise self._failed(error) from error

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]

    def _resume(self) -> None:
        size = self._path.stat().st_size
        os.truncate(self._path, size - size % self._dtype.itemsize)
        if size < self._dtype.itemsize:
            return
        messages = np.memmap(self._path, self._dtype, "r")["message"]
        connections, places = np.unique(messages["connection"], return_inverse=True)
        last = np.zeros(len(connections), np.uint64)
        np.maximum.at(last, places, messages["offset"])
        self._written.update(zip(connections.tolist(), last.tolist(), strict=True))

    def _unwritten(self, batch: np.ndarray) -> np.ndarray:
        """Without what is in the file; only the first batch of a process has such messages."""
        last = np.array([self._written.get(int(number), -1) for number in batch["connection"]])
        self._written.clear()
        return batch[batch["offset"].astype(np.int64) > last]

    def _failed(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"--record {self._path}: cannot be written ({error.strerror}); name another file, or make room"
        )
