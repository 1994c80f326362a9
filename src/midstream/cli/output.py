"""Standard input, output and error of a command: what cannot be written ends as a message, no traceback.

Results that are lost are an error. What is said on standard error for those who watch is not worth the
program: it is left out while it cannot be written.
"""

import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

from midstream.errors import MidstreamError

if TYPE_CHECKING:
    from typing_extensions import Buffer


def prepare() -> None:
    """See to the process's own streams; those that were put in their place stay as they are."""
    if os.name != "posix":
        return
    # A number that is free would be given to the next file, and what is printed be written into that.
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(sys.stdout, _Results(1, "wb", closefd=False))
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(sys.stderr, _Remarks(2, "wb", closefd=False))


class _Results(io.FileIO):
    """Standard output. What cannot be written raises MidstreamError once; then the rest goes nowhere."""

    _lost = False

    def write(self, data: "Buffer") -> int:
        if self._lost:
            return memoryview(data).nbytes
        try:
            return _write(self, data)
        except OSError as error:
            self._lost = True
            if error.errno == errno.EPIPE:  # the reader, `head` perhaps, has enough: nobody is to be told
                raise SystemExit(1) from None
            raise MidstreamError(
                f"standard output: cannot be written ({error.strerror}); "
                "send it elsewhere, or make room there"
            ) from error


class _Remarks(io.FileIO):
    """Standard error."""

    def write(self, data: "Buffer") -> int:
        try:
            return _write(self, data)
        except OSError:
            return memoryview(data).nbytes


def _write(file: io.FileIO, data: "Buffer") -> int:
    """Wait for a pipe that another program has told not to wait."""
    while (count := io.FileIO.write(file, data)) is None:
        select.select([], [file], [])
    return count


def _text(former: TextIO | None, raw: io.FileIO) -> TextIO:
    """A character that the encoding lacks becomes an escape."""
    lines = raw.isatty() or isinstance(raw, _Remarks) or bool(getattr(former, "write_through", False))
    encoding = None if former is None else former.encoding
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=lines)
