"""What a worker tells its holder. Once the holder is gone nothing more is told."""

import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress

from midstream.errors import MidstreamError
from midstream.logger import channel
from midstream.logger.peer import SensorPeer


class WorkerReport:
    """Speaks over the worker's end of the channel; None when nobody listens any more."""

    def __init__(self, holder: socket.socket) -> None:
        self.holder: socket.socket | None = holder
        self._waiting: tuple[str, bool] | None = None

    def ready(self) -> None:
        """The database is open."""
        self._tell({"ready": True})

    def waiting(self, reason: str, *, forgets: bool = False) -> None:
        """Nothing can be stored; "" when it goes on. Told when it changes, and first. forgets: what comes is
        given up meanwhile."""
        if (reason, forgets) != self._waiting:
            self._waiting = reason, forgets
            self._tell({"forgetting" if forgets else "waiting": reason})

    def failed(self, error: MidstreamError) -> None:
        self._tell({"failed": [type(error).__name__, str(error)]})

    def consume(self, peers: Sequence[SensorPeer], counts: Mapping[str, int]) -> None:
        """What these have taken is stored: it may leave the kernel. counts: what to add to the logger's
        summary. It is said in the same breath, or a worker that dies between the two is counted twice."""
        said: channel.Message = {"count": counts}
        for start in range(0, len(peers), channel.MAX_ENTRIES):
            some = peers[start : start + channel.MAX_ENTRIES]
            self._tell(said | {"consume": [[peer.number, *peer.progress] for peer in some]})
            said = {}
        if said and any(counts.values()):
            self._tell(said)

    def close(self, peers: Sequence[SensorPeer]) -> None:
        """The end of these is stored."""
        for start in range(0, len(peers), channel.MAX_ENTRIES):
            self._tell({"close": [peer.number for peer in peers[start : start + channel.MAX_ENTRIES]]})

    def lose_holder(self) -> None:
        if self.holder is not None:
            self.holder.close()
            self.holder = None

    def _tell(self, message: channel.Message) -> None:
        if self.holder is not None:
            with suppress(BrokenPipeError, ConnectionResetError):  # then the worker reads that it is gone
                channel.send(self.holder, message)
