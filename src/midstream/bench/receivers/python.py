"""midstream's application in Python: a loop over messages, or NumPy on whole batches.

python -m midstream.bench.receivers.python CONFIG messages|batches
"""

import sys
import time

import numpy as np

from midstream import Hardworker
from midstream.bench.load.message import HEADER, find_connection
from midstream.bench.receivers.application import LATENCIES, Application, Stream, is_right

_USUAL = 128  # messages a batch has fewer
_multiply, _subtract = np.multiply, np.subtract  # to find them in NumPy takes a tenth of what they do


class _Room:
    """Arrays for what is calculated of so many messages: less work than to make them anew.

    The views let Python compare and copy what is in them, which takes less than to ask NumPy for it.
    """

    __slots__ = ("latency", "latency_view", "offset", "offset_view", "place", "place_view")

    def __init__(self, count: int) -> None:
        self.place, self.offset = np.empty((2, count), "<u8")
        self.latency = np.empty(count, np.int64)
        self.place_view, self.offset_view = self.place.data, self.offset.data
        self.latency_view = self.latency.data


class Batches:
    """The callback for a whole batch."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self.payload = np.dtype(
            [("sequence", "<u8"), ("sent", "<i8"), ("filler", "V", application.size - HEADER)]
        )
        # NumPy calculates with arrays of no dimension at once; a Python number it has to look at first.
        self._size, self._now = np.array(application.size, "<u8"), np.array(0)
        self._now_view = self._now.data
        self._rooms = [_Room(count) for count in range(_USUAL)]
        self._latencies = np.frombuffer(application.latencies, np.int64).data
        self._number: dict[int, int] = {}

    def deliver(self, batch: np.ndarray, count: int) -> None:
        """`count` messages of any connections, those of each in order, with `payload` as their payload.

        Each number is compared with the message's place in its connection's stream, which the library tells.
        """
        app, payload = self._app, batch["payload"]
        room = self._rooms[count] if count < _USUAL else _Room(count)
        _multiply(payload["sequence"], self._size, room.place)
        room.offset[...] = batch["offset"]
        if room.place_view != room.offset_view:
            app.errors += int(np.count_nonzero(room.place != room.offset))
        app.messages += count
        if app.measuring:
            self._now_view[()] = app.now
            _subtract(self._now, payload["sent"], room.latency)
            first = app.window % (LATENCIES - count)
            self._latencies[first : first + count] = room.latency_view
            app.window += count
        else:
            verifying = (row for row in batch if app.is_verifying(int(row["offset"]) // app.size))
            app.errors += sum(not self._is_right(row) for row in verifying)

    def _is_right(self, row: np.void) -> bool:
        message, connection = row["payload"].tobytes(), int(row["connection"])
        if connection not in self._number:
            self._number[connection] = find_connection(message)
        self._app.verified += 1
        return is_right(message, self._number[connection])


def batches(hardworker: Hardworker, application: Application) -> None:
    """Once a turn, all that has arrived."""
    callback = Batches(application)
    deliver = callback.deliver
    for batch in hardworker.batches(callback.payload):
        application.wakeups += 1
        if count := len(batch):
            application.now = time.time_ns()
            deliver(batch, count)
    application.bytes = application.messages * application.size  # they are all whole


def messages(hardworker: Hardworker, application: Application) -> None:
    """As a simple application is written."""
    streams: dict[int, Stream] = {}
    for message in hardworker:
        application.woken()
        stream = streams.get(message.connection)
        if stream is None:
            stream = streams[message.connection] = Stream(application)
        application.bytes += len(message.payload)
        stream.deliver(message.payload)


def main(config: str, form: str) -> None:
    """Until SIGTERM."""
    with Hardworker(config) as hardworker:
        application = Application(hardworker.message_size, hardworker.stop)
        application.ready()
        {"messages": messages, "batches": batches}[form](hardworker, application)
        application.connections = hardworker.totals.opened
        application.finish()


if __name__ == "__main__":
    main(*sys.argv[1:])
