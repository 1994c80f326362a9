"""What a sensor writes down: one SENT_DTYPE record for each message that it handed to TCP."""

import hashlib
import struct
from pathlib import Path

import numpy as np

from midstream import modes
from midstream.errors import ConfigError

SENT_DTYPE = np.dtype([("sequence", "<u8"), ("time", "<u8"), ("digest", "V16")])
"""A message in a sensor's record: index from 0, when it was sent (ns since 1970), BLAKE2b-16 of its bytes."""

_ROW = struct.Struct("<QQ16s")  # SENT_DTYPE


class Record:
    """The file of SENT_DTYPE records."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        try:
            self._file = open(path, "wb", opener=modes.opener)  # noqa: SIM115  open as long as the record is
        except OSError as error:
            raise self._failed(error) from error

    def write(self, sequence: int, time_ns: int, payload: bytes) -> None:
        digest = hashlib.blake2b(payload, digest_size=16).digest()
        try:
            self._file.write(_ROW.pack(sequence, time_ns, digest))
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"cannot write the record {self._path}: {error.strerror}. Name a file in a writable folder"
        )
