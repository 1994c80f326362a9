"""Messages of one stream to Apache Parquet, with the columns of arrow.py: one for each value."""

from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import pyarrow.parquet

from midstream.closing import Closing
from midstream.log.arrow import BYTES, ArrowMessages
from midstream.storage.stored import StoredConnection, StoredMessage


class ParquetWriter(Closing):
    """The stream's name is in the file's metadata. files: so many are written at once, and share memory."""

    def __init__(
        self, stream: BinaryIO, connections: Sequence[StoredConnection], payload: bool, *, files: int = 1
    ) -> None:
        name = connections[0].stream if connections else ""
        self._messages = ArrowMessages(name, connections, payload=payload, max_bytes=BYTES // files)
        self._file = pyarrow.parquet.ParquetWriter(stream, self._messages.schema, compression="zstd")

    def close(self) -> None:
        self._write(self._messages.rest())
        self._file.close()

    def write(self, messages: Sequence[StoredMessage]) -> None:
        self._write(self._messages.add(messages))

    def _write(self, tables: Iterable[Any]) -> None:
        for table in tables:
            self._file.write_table(table, row_group_size=table.num_rows)
