"""One connection, as a worker sees it: what has arrived becomes messages, but stays in the kernel.

A peer peeks. What it has put into a batch may leave the kernel (by the holder) when the batch is committed,
and not before; until then it does not look again. The beginning of a message that is not whole stays in the
kernel too, unless it is so long that TCP's window might close on it: then it is stored as a fragment.
"""

import errno
import hashlib
import os
import select
import socket
import struct
import time
from bisect import bisect_left
from contextlib import suppress
from itertools import accumulate

from midstream.errors import FramingError
from midstream.logger.deaf import deafen, listen_again
from midstream.logger.held import discard, unread
from midstream.storage.formats import StreamFormat
from midstream.storage.store import Batch, ConnectionRow, Piece, Position

END_OF_STREAM = "end of stream"
_UNSEEN_RESET = "a reset or a time-out, which a worker saw that was killed"
_LOST_HEAD = "the database does not hold the beginning of a message any more"

_MAX_MARKS = 4096  # what has arrived while the database is slow needs no finer times
_SO_MEMINFO = 55  # asm-generic/socket.h, since Linux 4.12
_MEMINFO = struct.Struct("=II")  # its first two numbers: receive memory in use, and the most
_BYTES_RECEIVED = struct.Struct("=128xQ")  # in struct tcp_info, since Linux 4.1; a FIN counts one


class SensorPeer:
    """`consumed`, `sequence` and `head_size` tell where the kernel's bytes begin: see the holder."""

    def __init__(
        self,
        number: int,
        row: ConnectionRow,
        sock: socket.socket,
        stream: StreamFormat,
        *,
        consumed: int,
        sequence: int,
        head_size: int,
    ) -> None:
        self.number = number
        self.row = row
        self.socket = sock
        self.consumed = consumed
        self.over = False
        self.broken = False
        self.offset = consumed  # behind what was taken
        self.sequence = sequence
        self._head_size = head_size  # bytes in front of `offset` that belong to the next message
        self._told = (sequence, head_size)  # at `consumed`
        self._stream = stream
        self._decoder = stream.decoder()
        self._recorded = False  # has, or waits for, a row
        self._marks: list[tuple[int, int]] = []  # offset, time: when the bytes in front of it had arrived
        self._digests = {0: hashlib.sha256()}  # by offset: now and, until that is committed, before
        self._finished = False  # the sensor sent its FIN
        self._fault = ""  # how the connection broke
        self._squeezed = False  # nothing may stay in the kernel
        self._deaf = False
        self._ended = False  # by us, before the last bytes are taken

    def woken(self, events: int) -> None:
        """epoll has reported something: note when. The newest mark is replaced if there are too many."""
        if self._ended:
            return
        self._acknowledge()
        if events & (select.EPOLLERR | select.EPOLLHUP):
            error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # told only once
            if error == errno.EPIPE:  # a reset behind the FIN: the stream is complete
                self._finished = True
            else:
                self._fault = self._fault or (os.strerror(error) if error else _UNSEEN_RESET)
        elif events & select.EPOLLRDHUP:
            self._finished = True
        if len(self._marks) >= _MAX_MARKS:
            self._marks.pop()
        self._marks.append((self.received, time.time_ns()))

    @property
    def received(self) -> int:
        """Bytes that the kernel has acknowledged since the connection began; one more after a FIN."""
        (count,) = _BYTES_RECEIVED.unpack(
            self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
        )
        return int(count)

    @property
    def pressing(self) -> bool:
        """May TCP's window close before long?"""
        return self._squeezed or self._full()

    def take(self, batch: Batch, limit: int, *, last: str = "") -> bool:
        """Put what has arrived, up to about `limit` bytes, into the batch. True if more is left to take.

        `last` is a reason to end the connection when nothing is left.
        """
        if not self._recorded:
            self._recorded = True
            batch.opened.append(self.row)
        waiting = unread(self.socket)
        data = self._peek(min(waiting, limit)) if waiting or not self._ended else None
        ended = data == b""
        data = data or b""
        more = len(data) < waiting
        payloads = self._feed(data)
        if self._fault == _UNSEEN_RESET and self.received > self.consumed + waiting:
            self._finished, self._fault = True, ""  # both sides have ended the stream
        if self._decoder.error is not None:
            self.broken = True
            over = str(self._decoder.error)
        elif ended or ((self._finished or self._fault) and unread(self.socket) == len(data)):
            over = self._fault or END_OF_STREAM
        else:
            over = "" if more else last
        self._add(batch, data, payloads, over=bool(over), more=more)
        if over:
            self._end(batch, over)
        return more and not over

    def resume(self, position: Position | None) -> None:
        """Go on where the database ends, or where the kernel's bytes begin if the database does not know."""
        self.over = self.broken = False
        self.row.id = None if position is None else position.id
        self._recorded = position is not None
        self._decoder = self._stream.decoder()
        if position is not None and position.offset >= self.consumed:
            self.offset, self.sequence, self._head_size = (
                position.offset,
                position.sequence,
                len(position.head),
            )
            self.over = position.closed
            if not self.over:
                self._decoder.feed(position.head)
        else:
            self.offset, (self.sequence, self._head_size) = self.consumed, self._told
            if self._head_size:
                self._fault = self._fault or _LOST_HEAD
                self._head_size = 0
        if self.offset not in self._digests:
            self._digests = {}

    def consume(self) -> bool:
        """What was taken has left the kernel. True if TCP's window may be closed all the same.

        The last bytes of a segment keep all of its memory.
        """
        self.consumed, self._told = self.offset, (self.sequence, self._head_size)
        self._squeezed = unread(self.socket) > 0 and self._full()
        return self._squeezed

    def deafen(self) -> None:
        """Nothing more comes, nor is acknowledged: the sensor knows of nothing that is not here now.

        Where only the privileged may attach a filter, both sides are ended instead: the kernel answers what
        comes with a reset (RFC 9293, section 3.6.1), and what is here can still be read. So our FIN goes out
        before all is stored.
        """
        if not self._deaf:
            self._deaf = True
            with suppress(OSError):  # the connection is broken
                try:
                    deafen(self.socket)
                except PermissionError:
                    self._ended = True
                    self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """A deaf socket sends its FIN, and answers what comes after that with a reset."""
        if self._deaf:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            with suppress(OSError):
                listen_again(self.socket)
        self.socket.close()

    def discard(self) -> None:
        """Take out of the kernel what was taken: the holder's work, where there is none any more."""
        discard(self.socket, self.offset - self.consumed)
        self.consumed = self.offset

    def look_where_the_kernel_is(self) -> None:
        """The holder was killed, perhaps before it had taken out what was taken."""
        if self.received - unread(self.socket) >= self.offset:
            self.consumed = self.offset

    @property
    def sequence_told(self) -> int:
        """The number of the first message of which the kernel still has bytes."""
        return self._told[0]

    @property
    def progress(self) -> tuple[int, int, int]:
        """offset, sequence and head_size, as the holder wants to know them."""
        return self.offset, self.sequence, self._head_size

    def _peek(self, size: int) -> bytes | None:
        """The kernel's bytes, b"" at the end of the stream; None if nothing is there and it may go on."""
        if self._fault == _LOST_HEAD:
            return b""
        try:
            return self.socket.recv(max(size, 1), socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError as error:  # only when all bytes have been read
            self._fault = self._fault or error.strerror or str(error)
            return b""

    def _acknowledge(self) -> None:
        """Let the kernel acknowledge what it holds back, as it would for who reads: while bytes stay in the
        kernel it waits for a time-out, 40 ms and more, for which a sensor with a small window would wait too.
        """
        with suppress(OSError):  # the connection is broken, which another call will tell
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _full(self) -> bool:
        """Does what waits in the kernel take so much of its memory that the window may be closed?

        It is never closed while less than half of the buffer is taken (__tcp_select_window in the kernel).
        """
        memory = self.socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        allocated, buffer = _MEMINFO.unpack(memory)
        return bool(3 * allocated >= buffer)

    def _feed(self, data: bytes) -> list[bytes]:
        try:
            return self._decoder.feed(data) if data else []
        except FramingError:
            return []  # the fault is in decoder.error, also when whole messages came before it

    def _add(self, batch: Batch, data: bytes, payloads: list[bytes], *, over: bool, more: bool) -> None:
        """Put the messages into the batch, and decide whether what follows them stays in the kernel."""
        pending = (
            self._decoder.pending if payloads else len(data)
        )  # of these data, in front of no message's end
        had_head = self._head_size > 0
        if payloads:
            start = self.offset - self._head_size
            frame = self._stream.frame
            ends = list(accumulate((len(payload) + frame for payload in payloads), initial=start))[1:]
            batch.pieces.append(Piece(self.row, self.sequence, start, payloads, self._times(ends), frame))
            batch.messages += len(payloads)
            batch.payload_bytes += len(data) - pending
            self.sequence += len(payloads)
            self._head_size = 0
        if pending and not over:
            full = self._squeezed or (not payloads and (more or self._full()))
            if self._head_size or full:
                fragment = data[len(data) - pending :]
                batch.fragments.append((self.row, self.offset + len(data) - pending, fragment))
                batch.payload_bytes += pending
                self._head_size += pending
                pending = 0
            else:
                self._decoder = self._stream.decoder()
        elif over:
            pending = 0
        if had_head and (payloads or over):
            batch.completed.append(self.row)
        self._advance(data[: len(data) - pending])

    def _advance(self, taken: bytes) -> None:
        """These bytes will leave the kernel when the batch is committed."""
        if not taken:
            return
        digest = self._digests.get(self.offset)
        if digest is not None:
            now = digest.copy()
            now.update(taken)
            self._digests = {self.offset: digest, self.offset + len(taken): now}
        self.offset += len(taken)
        self._marks = [mark for mark in self._marks if mark[0] > self.offset]

    def _times(self, ends: list[int]) -> list[int]:
        """When the bytes in front of each of these offsets had arrived."""
        marks = self._marks
        if marks and marks[0][0] >= ends[-1]:
            return [marks[0][1]] * len(ends)
        offsets, times = [offset for offset, _ in marks], [then for _, then in marks] + [time.time_ns()]
        return [times[bisect_left(offsets, end)] for end in ends]

    def _end(self, batch: Batch, reason: str) -> None:
        digest = self._digests.get(self.offset)
        row = self.row
        row.closed_ns = time.time_ns()
        row.size = self.offset
        row.digest = digest.hexdigest() if digest is not None else None
        row.reason = reason
        row.reset = bool(self._fault)
        row.unfinished = self._decoder.unfinished
        self.over = True
        batch.closed.append(row)
