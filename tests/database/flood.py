"""A flood of messages through a logger that keeps little, and how much it has meanwhile."""

import os
import socket
import threading
import time
from dataclasses import dataclass

from sqlalchemy import create_engine, func, inspect, select
from tests.support.site import Serving, Site, wait_until

from midstream.storage import schema

CHUNK = 64 << 10  # bytes sent in one call


@dataclass
class Flooded:
    """sent: bytes. most: bytes kept at any time. waits: how often the database took nothing."""

    sent: int
    seconds: float
    most: int
    left: int
    waits: int
    messages: int

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.sent / self.seconds


def flood(site: Site, *, connections: int, seconds: float) -> Flooded:
    """As fast as the logger takes it."""
    stop, sent = threading.Event(), [0] * connections
    most = [0]
    chunk = os.urandom(CHUNK)

    def send(number: int) -> None:
        with site.connect() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
            while not stop.is_set():
                client.sendall(chunk)
                sent[number] += CHUNK
            client.shutdown(socket.SHUT_WR)
            client.settimeout(120)
            assert client.recv(1) == b""

    def watch() -> None:
        while not stop.wait(0.05):
            most[0] = max(most[0], stored(site))

    with Serving(site.config) as serving:
        threads = [threading.Thread(target=send, args=(number,)) for number in range(connections)]
        threads.append(threading.Thread(target=watch))
        limited = "keep_size" in site.config.read_text()
        wait_until(lambda: not limited or is_pruned(site))
        began = time.monotonic()
        for thread in threads:
            thread.start()
        stop.wait(seconds)
        stop.set()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
        if limited:
            time.sleep(2.0)
    assert serving.error is None
    total = sum(sent)
    summary = serving.summary
    return Flooded(total, took, most[0], stored(site), summary.waits, summary.messages)


def is_pruned(site: Site) -> bool:
    """Has the process that prunes looked?"""
    engine = create_engine(site.url)
    try:
        return inspect(engine).has_table("retention_clock")
    finally:
        engine.dispose()


def stored(site: Site) -> int:
    """Bytes of the streams that are kept."""
    messages = schema.messages
    engine = create_engine(site.url)
    total = 0
    try:
        with engine.connect() as database:
            for key in database.execute(select(schema.connections.c.id)).scalars().all():
                one = select(messages.c.stream_offset, func.length(messages.c.payload)).where(
                    messages.c.connection_id == key
                )
                first = database.execute(one.order_by(messages.c.sequence).limit(1)).first()
                last = database.execute(one.order_by(messages.c.sequence.desc()).limit(1)).first()
                if first and last:
                    total += last[0] + last[1] - first[0]
    finally:
        engine.dispose()
    return total
