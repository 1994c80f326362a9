"""The worker: peeks at what the connections bring, stores it, and has it taken out of the kernel.

One loop for all connections; a thread talks to the database. A batch is gathered when its oldest bytes have
waited for `batch_interval`, or earlier when a connection is pressing; while it is being committed the next
bytes wait in the kernel, TCP's windows close if that takes long, and the sensors wait. So memory is bounded
and nothing is dropped, however long the database is not there. After a failure the worker forgets the batch,
opens the database again, asks it how far it came and goes on from there, like the successor of a dead one.
"""

import select
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from midstream.errors import MidstreamError, StoreError
from midstream.logger import channel
from midstream.logger.forgetting import Forgetting
from midstream.logger.peer import SensorPeer
from midstream.logger.report import WorkerReport
from midstream.logger.writer import Writer
from midstream.storage.formats import Formats
from midstream.storage.store import Batch, ConnectionRow, Position, Store, Unavailable

MAX_BATCH_BYTES = 8 << 20  # payload in a batch: batch_size alone would let long messages fill the memory
MIN_SHARE = 1 << 16  # bytes that a connection may have of a batch, however many there are
DRAIN_SECONDS = 0.5  # most time after a stop for what the kernel has acknowledged already
QUIET = 0.05  # seconds without a byte after which it is complete
STOP_PATIENCE = 5.0  # seconds after a stop for a database that takes nothing
SLOW = 5.0  # seconds after which a commit is called waiting
HOLD = 0.5  # seconds in which everything is stored again, after which it is said to go on
FIRST_RETRY, LAST_RETRY = 0.2, 5.0  # seconds between two tries to open the database
# A spool leaves the processor to the application: it looks at many connections at a time, commits less often.
SPOOL_PAUSE = 0.02  # seconds between two looks
SPOOL_INTERVAL = 0.25  # seconds from one commit to the next at least
SPOOL_RETRY = 0.5  # seconds between two tries at most: its backfill makes room all the time
STOPPED = "the logger was stopped"
ORPHANED = "the logger was killed"

_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET


class Worker:
    """Talks to the holder over `holder`. streams: those whose messages come.
    spools: this is the hardworker's spool. forgets_after: seconds of failures after which a spool forgets
    what comes, so that the application goes on; None: it waits.

    Not patient: the first time that the database is opened, what only the user can mend ends the worker.
    """

    def __init__(
        self,
        holder: socket.socket,
        new_store: Callable[[], Store],
        streams: Formats,
        *,
        batch_interval: float,
        batch_size: int,
        patient: bool,
        spools: bool = False,
        forgets_after: float | None = None,
    ) -> None:
        self._spools = spools
        self._report = WorkerReport(holder)
        self._new_store = new_store
        self._streams = streams
        self._batch_interval = max(batch_interval, SPOOL_INTERVAL) if spools else batch_interval
        self._batch_size = batch_size
        self._patient = patient
        self._forgets_after = forgets_after
        self._failing_since = self._failed_at = 0.0  # 0: it does not
        self._forgotten = Forgetting()
        self._store: Store | None = None
        self._usable = False  # is the store open and in order?
        self._writer = Writer()
        self._then: Callable[[Any], None] | None = None  # what to do with the result of the writer's job
        self._job_since = 0.0
        self._poll = select.epoll()
        self._poll.register(holder, select.EPOLLIN)
        self._poll.register(self._writer, select.EPOLLIN)
        self._peers: dict[int, SensorPeer] = {}  # by descriptor
        self._strangers: list[SensorPeer] = []  # the store has to be asked how far they came
        self._ready: dict[SensorPeer, None] = {}  # have something to take, in turn
        self._since = 0.0  # when the first of them had
        self._pressing = False  # one of them cannot wait
        self._consuming: list[SensorPeer] = []  # until the holder has taken their bytes out of the kernel
        self._unanswered = 0
        self._retry_at = 0.0
        self._retry = FIRST_RETRY
        self._troubled = True  # it is not known, or not so, that everything can be stored
        self._good_since = 0.0  # since when it seems so again, 0: it does not
        self._stop_reason = ""
        self._stopped_at = self._moved_at = 0.0
        self._running = True

    def run(self) -> None:
        """Work until the holder says stop, or is gone, and everything is stored."""
        self._open()
        while self._running:
            others = []
            for descriptor, events in self._poll.poll(self._timeout()):
                if peer := self._peers.get(descriptor):
                    peer.woken(events)
                    self._get_ready(peer)
                else:  # later: it may close sockets, and open others with the same descriptors
                    others.append(descriptor)
            if self._writer.fileno() in others:
                self._job_done()
            if self._report.holder is not None and self._report.holder.fileno() in others:
                self._hear(self._report.holder)
            self._step(time.monotonic())
            if self._spools and not self._pressing:
                time.sleep(SPOOL_PAUSE)
        for peer in self._peers.values():
            peer.socket.close()
        store = self._store
        if store is not None:
            self._writer.submit(store.close)
        self._writer.close(timeout=1.0)
        self._poll.close()
        self._report.lose_holder()

    def _timeout(self) -> float:
        """Seconds until `_step` has something to do, if nothing happens."""
        now = time.monotonic()
        if self._then is not None or self._consuming:
            return SLOW / 4
        if not self._usable and not self._forgets:
            return max(0.0, self._retry_at - now)
        if self._stop_reason:
            return QUIET / 2
        due = [self._since + self._batch_interval] if self._ready else []
        due += [] if self._usable else [self._retry_at]
        due += [self._good_since + HOLD] if self._troubled and self._good_since else []
        return max(0.0, min(due) - now) if due else -1

    def _step(self, now: float) -> None:
        """Begin what is due. One thing at a time."""
        if self._troubled and self._good_since and now >= self._good_since + HOLD:
            self._troubled, self._retry = False, FIRST_RETRY
            self._report.waiting("")
        if self._then is not None:
            if now - self._job_since > SLOW:
                self._trouble(f"the database has not answered for {SLOW:g} s. What to do: see that it runs")
                self._give_up_if_stopped(now, "it does not answer")
        elif self._consuming:
            pass  # the holder is at it
        elif self._stop_reason and not self._peers:
            self._running = False
        elif not self._usable and now >= self._retry_at:
            self._open()
        elif not self._usable and not self._forgets:
            pass  # until the next try
        elif self._strangers:
            self._resume()
        elif self._stop_reason and (now >= min(self._moved_at + QUIET, self._stopped_at + DRAIN_SECONDS)):
            for peer in self._peers.values():
                peer.deafen()
            self._ready = dict.fromkeys(self._peers.values())
            self._gather(self._stop_reason)
        elif self._ready and (
            self._pressing or self._stop_reason or now >= self._since + self._batch_interval
        ):
            self._gather("")

    def _open(self) -> None:
        old, holes = self._store, self._forgotten.holes()

        def open_store() -> Store:
            if old is not None:
                old.close()
            store = self._new_store()
            try:
                if holes:
                    store.note_forgotten(holes)
            except (Unavailable, MidstreamError):
                store.close()
                raise
            return store

        self._do(open_store, self._opened)

    def _opened(self, store: Store) -> None:
        self._store, self._usable, self._patient = store, True, True
        self._forgotten.clear()
        self._strangers = list(self._peers.values())
        self._report.ready()
        if not self._peers:
            self._failing_since = 0.0
            self._good()

    def _resume(self) -> None:
        """Ask the store how far the strangers came, and go on from there."""
        store, peers = self._store, self._strangers
        self._strangers = []
        if not self._usable:
            self._resumed(peers, {})
            return
        assert store is not None
        self._do(
            lambda: store.resume([peer.row for peer in peers]),
            lambda positions: self._resumed(peers, positions),
        )

    def _resumed(self, peers: list[SensorPeer], positions: Mapping[str, Position]) -> None:
        messages = size = 0
        for peer in peers:
            told = peer.sequence_told
            peer.resume(positions.get(peer.row.token))
            messages += peer.sequence - told  # committed by a worker that could not say so any more
            size += peer.offset - peer.consumed
            self._get_ready(peer)
        self._settle(peers, messages=messages, bytes=size)

    def _gather(self, last: str) -> None:
        """Fill a batch, in turn from those that have something, and have it written.

        `last` is a reason to end each of them with what it has.
        """
        batch = Batch()
        taken = []
        share = max(MIN_SHARE, MAX_BATCH_BYTES // max(1, len(self._ready)))
        for peer in list(self._ready):
            if batch.messages >= self._batch_size or batch.payload_bytes >= MAX_BATCH_BYTES:
                break
            del self._ready[peer]
            if peer.take(batch, share, last=last):
                self._ready[peer] = None  # behind the others
            taken.append(peer)
        self._pressing = bool(self._ready)
        if batch and not self._usable:
            self._forgotten.add(batch)
            self._settle(taken, forgotten=batch.messages)
        elif batch:
            store = self._store
            assert store is not None
            self._do(lambda: store.write(batch), lambda commits: self._stored(batch, taken, commits))
        elif not self._ready and self._usable:
            self._good()  # nothing waits to be stored

    def _stored(self, batch: Batch, taken: list[SensorPeer], commits: int) -> None:
        self._failing_since = 0.0
        self._good()
        self._settle(
            taken,
            messages=batch.messages,
            bytes=sum(peer.offset - peer.consumed for peer in taken),
            commits=commits,
            unfinished=sum(bool(row.unfinished) for row in batch.closed),
            resets=sum(row.reset for row in batch.closed),
            framing_errors=sum(peer.broken for peer in taken),
            forgotten=batch.forgotten,
        )

    def _settle(self, peers: Iterable[SensorPeer], **counts: int) -> None:
        """What is stored, and counted so, leaves the kernel; connections whose end is stored are closed.

        Our FIN tells the sensor that all is stored, and it is sent only if the kernel holds nothing any more.
        """
        self._consuming = [peer for peer in peers if peer.offset > peer.consumed]
        self._unanswered = len(self._consuming)
        over = [peer for peer in peers if peer.over]
        self._report.consume(self._consuming, counts)
        self._report.close(over)
        if self._report.holder is None:
            self._consume_alone()
        for peer in over:
            del self._peers[peer.socket.fileno()]
            self._ready.pop(peer, None)
            self._poll.unregister(peer.socket)
            peer.close()

    def _hear(self, holder: socket.socket) -> None:
        received = channel.receive(holder)
        if received is None:
            self._lose_holder()
            return
        message, descriptors = received
        if "connections" in message:
            for entry, descriptor in zip(message["connections"], descriptors, strict=True):
                self._take_over(entry, socket.socket(fileno=descriptor))
        if "discarded" in message:
            self._unanswered -= message["discarded"]
            if not self._unanswered:
                self._consumed()
        if "stop" in message:
            self._stop(STOPPED)

    def _take_over(self, entry: channel.Message, sock: socket.socket) -> None:
        sock.setblocking(False)
        row = ConnectionRow(
            entry["token"],
            entry["sensor"],
            entry["port"],
            entry["opened_ns"],
            first=entry["first"],
            spooled=self._spools,
            stream=entry["stream"],
        )
        peer = SensorPeer(
            entry["number"],
            row,
            sock,
            self._streams[row.stream],
            consumed=entry["consumed"],
            sequence=entry["sequence"],
            head_size=entry["head"],
        )
        self._peers[sock.fileno()] = peer
        if entry["handed"]:
            self._strangers.append(peer)
        self._get_ready(peer)
        self._poll.register(sock, _EVENTS)

    def _get_ready(self, peer: SensorPeer) -> None:
        if peer.over:
            return
        now = time.monotonic()
        self._moved_at = now
        if not self._ready:
            self._since = now
        self._ready[peer] = None
        self._pressing = self._pressing or peer.pressing

    def _consumed(self) -> None:
        consumed, self._consuming = self._consuming, []
        for peer in consumed:
            if not peer.over and peer.consume():
                self._get_ready(peer)

    def _stop(self, reason: str) -> None:
        self._stop_reason = reason
        self._stopped_at = self._moved_at = time.monotonic()

    def _lose_holder(self) -> None:
        """Nobody accepts any more. What was acknowledged is in the sockets: store it, and end."""
        self._report.lose_holder()  # which also takes it out of the epoll set
        for peer in self._consuming:
            peer.look_where_the_kernel_is()
        self._consume_alone()
        self._stop(ORPHANED)

    def _consume_alone(self) -> None:
        for peer in self._consuming:
            peer.discard()
        self._consumed()

    def _do(self, job: Callable[[], Any], then: Callable[[Any], None]) -> None:
        self._then, self._job_since = then, time.monotonic()
        self._writer.submit(job)

    def _job_done(self) -> None:
        then, self._then = self._then, None
        assert then is not None
        try:
            result = self._writer.result()
        except (Unavailable, MidstreamError) as error:
            if isinstance(error, MidstreamError) and not self._patient:
                self._give_up(error)
            else:
                self._fail(str(error))
        else:
            then(result)

    def _fail(self, reason: str) -> None:
        """Forget the batch; all of it is still in the kernel."""
        now = time.monotonic()
        if not self._failing_since or now > self._failed_at + SLOW:  # nobody had anything to store meanwhile
            self._failing_since = now
        self._failed_at = now
        self._trouble(reason)
        self._usable = False
        self._strangers = list(self._peers.values())
        self._retry_at = now + self._retry
        self._retry = min(2 * self._retry, SPOOL_RETRY if self._spools else LAST_RETRY)
        self._give_up_if_stopped(now, reason)

    def _trouble(self, reason: str) -> None:
        self._troubled, self._good_since = True, 0.0
        self._report.waiting(reason, forgets=self._forgets)

    def _good(self) -> None:
        """Something was stored, or nothing had to be."""
        self._good_since = self._good_since or time.monotonic()

    @property
    def _forgets(self) -> bool:
        """Has nothing been stored for so long that what comes is given up?"""
        return bool(
            self._forgets_after is not None
            and self._failing_since
            and time.monotonic() >= self._failing_since + self._forgets_after
        )

    def _give_up_if_stopped(self, now: float, reason: str) -> None:
        if self._stop_reason == STOPPED and now > self._stopped_at + STOP_PATIENCE:
            self._give_up(StoreError(reason))

    def _give_up(self, error: MidstreamError) -> None:
        self._report.failed(error)
        self._running = False
