"""midstream's application in Python: a loop over messages, or NumPy on the columns of a turn.

python -m midstream_bench.receivers.python CONFIG messages|columns
"""

import sys
import time

import numpy as np

from midstream import Hardworker
from midstream.hardworker.views import USUAL
from midstream.load import Incoming
from midstream.load.message import HEADER, find_connection
from midstream.streams import resolved
from midstream_bench.receivers.application import LATENCIES, Application, Stream, is_right

COLUMNS = "sequence", "number", "sent"
_subtract = np.subtract  # to find it in NumPy takes a tenth of what it does


class _Room:
    """What is calculated of these columns, and views of them.

    The views let Python compare and copy what is in them, which takes less than to ask NumPy for it.
    """

    __slots__ = ("latency", "latency_view", "number_view", "sent", "sequence", "sequence_view")

    def __init__(self, sequence: np.ndarray, number: np.ndarray, sent: np.ndarray) -> None:
        self.sequence, self.sent = sequence, sent
        self.latency = np.empty(len(sent), np.int64)
        self.sequence_view, self.number_view = sequence.data, number.data
        self.latency_view = self.latency.data


class Columns:
    """The callback for all messages of a turn."""

    def __init__(self, application: Application, size: int) -> None:
        self._app = application
        self._size = size
        self.payload = np.dtype([("number", "<u8"), ("sent", "<i8"), ("filler", "V", size - HEADER)])
        self._now = np.array(0)  # NumPy calculates with an array at once; a Python number it has to look at
        self._now_view = self._now.data
        self._rooms: dict[int, _Room] = {}
        self._latencies = np.frombuffer(application.latencies, np.int64).data
        self._number: dict[int, int] = {}

    def deliver(self, count: int, columns: tuple[np.ndarray, ...]) -> None:
        """`count` messages of any connections, those of each in order.

        The number in each is compared with its place in its connection's stream, which the library tells.
        """
        app = self._app
        room = self._rooms.get(count)
        if room is None or room.sequence is not columns[0]:
            room = _Room(*columns)
            if count < USUAL:  # these columns come again
                self._rooms[count] = room
        if room.number_view != room.sequence_view:
            app.errors += int(np.count_nonzero(np.not_equal(*columns[:2])))
        app.messages += count
        if app.measuring:
            self._now_view[()] = app.now
            _subtract(self._now, room.sent, room.latency)
            first = app.window % (LATENCIES - count)
            self._latencies[first : first + count] = room.latency_view
            app.window += count

    def verify(self, batch: np.ndarray) -> None:
        """The same messages whole, outside the window."""
        app = self._app
        verifying = (row for row in batch if app.is_verifying(int(row["offset"]) // self._size))
        app.errors += sum(not self._is_right(row) for row in verifying)

    def _is_right(self, row: np.void) -> bool:
        message, connection = row["payload"].tobytes(), int(row["connection"])
        if connection not in self._number:
            self._number[connection] = find_connection(message)
        self._app.verified += 1
        return is_right(message, self._number[connection])


def columns(hardworker: Hardworker, application: Application) -> None:
    """Once a turn, all that has arrived."""
    callback = Columns(application, hardworker.message_size)
    deliver = callback.deliver
    for values in hardworker.columns(*COLUMNS, payload=callback.payload):
        application.wakeups += 1
        if count := len(values[0]):
            application.now = time.time_ns()
            deliver(count, values)
            if not application.measuring:
                callback.verify(hardworker.batch)
    application.bytes = application.messages * hardworker.message_size  # they are all whole


def messages(hardworker: Hardworker, application: Application) -> None:
    """As a simple application is written."""
    incoming = {
        name: Incoming(topology.port, topology.size, config.data.framing)
        for name, (config, topology) in resolved(hardworker.config, hardworker.topology).items()
    }
    streams: dict[tuple[str, int], Stream] = {}
    for message in hardworker:
        application.woken()
        of = message.stream, message.connection
        stream = streams.get(of)
        if stream is None:
            stream = streams[of] = Stream(application, incoming[message.stream])
        application.bytes += len(message.payload)
        stream.deliver(message.payload)


def main(config: str, form: str) -> None:
    """Until SIGTERM."""
    with Hardworker(config) as hardworker:
        application = Application(hardworker.stop)
        application.ready()
        {"messages": messages, "columns": columns}[form](hardworker, application)
        application.connections = hardworker.totals.opened
        application.finish()


if __name__ == "__main__":
    main(*sys.argv[1:])
