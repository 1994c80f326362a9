"""Does a logger live? Asked ten times a second, by UDP, sealed: its daemon answers for host and service.

A question names who asks whom, and bears a random number; its answer names both, and the number. So nothing
that was recorded, or that another host says, answers it. A question that was asked before is not answered:
who asks answers a challenge first (freshness.py). A daemon that is not there while its host is (ICMP: port
unreachable) leaves the logger as it was last: it serves without its daemon.
"""

import asyncio
import json
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from midstream.daemon.freshness import Ear, Stamp, Voice
from midstream.daemon.seal import ForgedError, Key
from midstream.errors import NetworkError

INTERVAL = 0.1  # seconds between two questions
SILENCE = 0.6  # seconds without an answer after which a logger counts as gone: five answers were missed
EXCUSE = 1.5  # seconds of silence that are excused after a change of addresses
STEADY = 0.5  # seconds for which it must have served again before it counts as back

ASKERS = 64  # of whom a daemon knows that they ask now

_QUESTION, _ANSWER = "question", "answer"
_LISTEN = "0A"  # state of a socket in /proc/net/tcp


@dataclass
class Watched:
    """What is known of a logger, by the monotonic clock. reason: why it is not up."""

    address: tuple[str, int]
    link: socket.socket | None = None
    own: str = ""  # our address towards it
    asked: dict[str, float] = field(default_factory=dict)
    voice: Voice = field(default_factory=Voice)
    challenged: bool = False
    answered: float = 0.0
    refused: float = 0.0  # when its host last said that no daemon is there
    serving_since: float = 0.0  # without a silence; 0: it is not
    seen_up: bool = False

    def reason(self, now: float) -> str:
        """Why it cannot take connections now; "" if it can."""
        if now - self.answered > SILENCE and not (self.serving_since and now - self.refused < SILENCE):
            return (
                f"its daemon has not answered for {now - self.answered:.1f} s"
                if self.answered
                else "no answer"
            )
        return "" if self.serving_since else "no logger listens on the port"

    def is_steady(self, now: float) -> bool:
        """Has it served for a while?"""
        return not self.reason(now) and now - self.serving_since >= STEADY


class Heartbeat(asyncio.DatagramProtocol):
    """Answers questions about this host, and asks those that are watched.

    serving(): does this host's logger take connections? changed() is called when an answer says otherwise
    than the one before.
    """

    def __init__(self, key: Key, serving: Callable[[], bool], changed: Callable[[], None]) -> None:
        self._key, self._serving, self._changed = key, serving, changed
        self._transport: asyncio.DatagramTransport | None = None
        self._ip = ""
        self._ear = Ear(ASKERS)
        self.watched: dict[str, Watched] = {}

    async def start(self, ip: IPv4Address, port: int) -> None:
        """Answer there. Raises NetworkError."""
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(str(ip), port))
        except OSError as error:
            raise NetworkError(
                f"{ip}: UDP port {port} cannot be had ({error.strerror}); does another daemon run here? "
                "Otherwise name another port in config.toml of all hosts: daemon.port"
            ) from error
        self._transport, self._ip = transport, str(ip)

    def watch(self, hosts: dict[str, int]) -> None:
        """Ask these hosts, by address and port, and no others."""
        for ip, watched in list(self.watched.items()):
            if hosts.get(ip) != watched.address[1]:
                self._forget(watched)
                del self.watched[ip]
        for ip, port in hosts.items():
            watched = self.watched.setdefault(ip, Watched((ip, port)))
            if watched.link is None:
                self._connect(watched)

    def excuse(self) -> None:
        """Addresses have just changed: give those that are watched time to hear of it."""
        for watched in self.watched.values():
            if watched.answered:
                watched.answered = time.monotonic() + EXCUSE

    def ask(self) -> None:
        """Ask each once."""
        now = time.monotonic()
        for watched in self.watched.values():
            watched.asked = {n: t for n, t in watched.asked.items() if now - t < 1.0}
            watched.challenged = False
            self._ask(watched, now)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """Somebody asks: answer whoever asks this host, from the address that is named, and now."""
        with suppress(ForgedError, ValueError, KeyError, TypeError, OSError):
            asked = json.loads(self._key.open(_QUESTION, data))
            if asked["to"] != self._ip or asked["from"] != addr[0]:
                return
            answer: dict[str, object] = {"number": asked["number"], "from": self._ip, "to": asked["from"]}
            match self._ear.judge(asked["from"], Stamp.model_validate(asked["stamp"])):
                case "first" | "fresh":
                    answer["serving"] = self._serving()
                case "unproven":
                    answer["challenge"] = self._ear.challenge()
                case _:
                    return
            if self._transport and not self._transport.is_closing():
                self._transport.sendto(self._sealed(_ANSWER, answer), addr)

    def close(self) -> None:
        for watched in self.watched.values():
            self._forget(watched)
        if self._transport:
            self._transport.close()

    def take(self, watched: Watched, data: bytes) -> None:
        """An answer has come from there: believe it if it was made with the key, to a question of ours."""
        try:
            answer = json.loads(self._key.open(_ANSWER, data))
            number, names = str(answer["number"]), (answer["from"], answer["to"])
            challenge = answer.get("challenge")
            serving = challenge is None and bool(answer["serving"])
        except (ForgedError, ValueError, KeyError, TypeError, AttributeError):
            return
        if names != (watched.address[0], watched.own) or watched.asked.pop(number, None) is None:
            return
        now = time.monotonic()
        if challenge is not None:
            watched.voice.answer(str(challenge))
            if not watched.challenged:  # once a question
                watched.challenged = True
                self._ask(watched, now)
            return
        was = not watched.reason(now)
        watched.answered = now
        watched.serving_since = (watched.serving_since if was else now) if serving else 0.0
        watched.seen_up |= serving
        if was != serving:
            self._changed()

    def _ask(self, watched: Watched, now: float) -> None:
        if watched.link is None:
            return
        number = secrets.token_hex(8)
        watched.asked[number] = now
        names = {"from": watched.own, "to": watched.address[0]}
        question: dict[str, object] = {"number": number, **names, "stamp": watched.voice.stamp().model_dump()}
        try:
            watched.link.send(self._sealed(_QUESTION, question))
        except ConnectionRefusedError:  # the answer to the question before
            watched.refused = now
        except OSError:  # no route in this moment
            return

    def _sealed(self, purpose: str, said: dict[str, object]) -> bytes:
        return self._key.seal(purpose, json.dumps(said).encode())

    def _connect(self, watched: Watched) -> None:
        """A socket for this host alone, so that the kernel tells if nobody is there."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(watched.address)
        except OSError:  # no route in this moment; the next comparison tries again
            sock.close()
            return
        watched.link, watched.own = sock, str(sock.getsockname()[0])
        asyncio.get_running_loop().add_reader(sock, self._receive, watched)

    def _receive(self, watched: Watched) -> None:
        if watched.link:
            try:
                self.take(watched, watched.link.recv(2048))
            except ConnectionRefusedError:
                watched.refused = time.monotonic()
            except OSError:  # BlockingIOError, or no route in this moment
                return

    def _forget(self, watched: Watched) -> None:
        if watched.link:
            asyncio.get_running_loop().remove_reader(watched.link)
            watched.link.close()
            watched.link = None


def is_listening(port: int, table: Path = Path("/proc/net/tcp")) -> bool:
    """Does a process of this host listen on a TCP port, on whatever IPv4 address or on all IPv6 ones?"""
    for path in (table, table.with_name("tcp6")):
        with suppress(OSError), path.open() as lines:
            next(lines, None)
            for line in lines:
                _, local, _, state, _ = line.split(maxsplit=4)
                if state != _LISTEN:
                    break  # those that listen come first
                if int(local.rpartition(":")[2], 16) == port:
                    return True
    return False
