"""Does a logger live? Asked ten times a second, by UDP, sealed: its daemon answers for host and service.

A question names who asks whom, and bears a random number; its answer names both, and the number. So nothing
that was recorded, or that another host says, answers it. A question that was asked before is not answered:
who asks answers a challenge first (freshness.py). What follows from a silence: failover.py.
"""

import asyncio
import base64
import json
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any, Self

from midstream.daemon.failover import MISSED
from midstream.daemon.freshness import Stamp, StampJudge, Voice
from midstream.daemon.seal import ForgedError, Key
from midstream.daemon.sockets import NOTHING, LoggerWord
from midstream.errors import NetworkError

INTERVAL = 0.1  # seconds between two questions
WAITS = 1.0  # seconds for which a logger may take nothing of what its kernel holds, and still be well

ASKERS = 64  # of whom a daemon knows that they ask now

_QUESTION, _ANSWER = "question", "answer"


@dataclass(frozen=True, slots=True)
class Told:
    """What a logger's daemon says of it. serves: does it listen? waits: for so many seconds it has taken
    nothing of what its kernel holds. word: what it has committed."""

    serves: bool = False
    waits: float = 0.0
    word: LoggerWord = NOTHING

    def described(self) -> dict[str, object]:
        word = self.word
        return {
            "serving": self.serves,
            "waits": round(self.waits, 1),
            "run": word.run,
            "connections": word.count,
            "committed": base64.b64encode(word.packed()).decode(),
            "ports": base64.b64encode(word.marked).decode(),
        }

    @classmethod
    def parse(cls, answer: dict[str, Any]) -> Self:
        """Raises ValueError, KeyError, TypeError."""
        committed = base64.b64decode(str(answer.get("committed", "")))
        ports = base64.b64decode(str(answer.get("ports", "")))
        run, count = str(answer.get("run", "")), int(answer.get("connections", 0))
        word = LoggerWord.unpack(run, count, committed, ports)
        return cls(bool(answer["serving"]), float(answer.get("waits", 0)), word)


@dataclass
class Watched:
    """What is known of a logger; times by the clock of the one who asks. since: when it was first asked.
    served: has a logger ever listened there? well: since when its daemon answers without a silence, and says
    nothing bad; None: it does not."""

    address: tuple[str, int]
    since: float
    link: socket.socket | None = None
    own: str = ""  # our address towards it
    asked: dict[str, float] = field(default_factory=dict)
    voice: Voice = field(default_factory=Voice)
    challenged: bool = False
    answered: float | None = None
    told: Told = Told()
    served: bool = False
    well: float | None = None


class Heartbeat:
    """Answers questions about this host by the UDP socket `answers`, and asks those that are watched.

    tell() says what there is to say of this host's logger. clock: the asker's (awake.py).
    """

    def __init__(
        self, key: Key, answers: socket.socket, tell: Callable[[], Told], clock: Callable[[], float]
    ) -> None:
        self._key, self._answers, self._tell, self._clock = key, answers, tell, clock
        self._ip = answers.getsockname()[0]
        self._ear = StampJudge(ASKERS)
        self.watched: dict[str, Watched] = {}

    @classmethod
    @contextmanager
    def open(
        cls, key: Key, ip: IPv4Address, port: int, tell: Callable[[], Told], clock: Callable[[], float]
    ) -> Iterator[Self]:
        """Inside, it answers there, in the running event loop. Raises NetworkError."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as answers:
            try:
                answers.bind((str(ip), port))
            except OSError as error:
                raise NetworkError(
                    f"{ip}: UDP port {port} cannot be had ({error.strerror}); does another daemon run here? "
                    "Otherwise name another port in config.toml of all hosts: daemon.port"
                ) from error
            opened = cls(key, answers, tell, clock)
            loop.add_reader(answers, opened._receive_question)
            try:
                yield opened
            finally:
                loop.remove_reader(answers)
                opened.watch({})

    def watch(self, hosts: dict[str, int]) -> None:
        """Ask these hosts, by address and port, and no others."""
        for ip, watched in list(self.watched.items()):
            if hosts.get(ip) != watched.address[1]:
                self._forget(watched)
                del self.watched[ip]
        for ip, port in hosts.items():
            watched = self.watched.setdefault(ip, Watched((ip, port), self._clock()))
            if watched.link is None:
                self._connect(watched)

    def ask(self) -> None:
        """Ask each once."""
        now = self._clock()
        for watched in self.watched.values():
            watched.asked = {n: t for n, t in watched.asked.items() if now - t < 1.0}
            watched.challenged = False
            self._ask(watched, now)

    def answer(self, data: bytes, addr: tuple[str, int]) -> None:
        """Somebody asks: answer whoever asks this host, from the address that is named, and now."""
        with suppress(ForgedError, ValueError, KeyError, TypeError, OSError):
            asked = json.loads(self._key.open(_QUESTION, data))
            if asked["to"] != self._ip or asked["from"] != addr[0]:
                return
            answer: dict[str, object] = {"number": asked["number"], "from": self._ip, "to": asked["from"]}
            match self._ear.judge(asked["from"], Stamp.model_validate(asked["stamp"])):
                case "first" | "fresh":
                    answer |= self._tell().described()
                case "unproven":
                    answer["challenge"] = self._ear.challenge()
                case _:
                    return
            self._answers.sendto(self._sealed(_ANSWER, answer), addr)

    def take(self, watched: Watched, data: bytes) -> None:
        """An answer has come from there: believe it if it was made with the key, to a question of ours."""
        try:
            answer = json.loads(self._key.open(_ANSWER, data))
            number, names = str(answer["number"]), (answer["from"], answer["to"])
            challenge = answer.get("challenge")
            told = Told() if challenge else Told.parse(answer)
        except (ForgedError, ValueError, KeyError, TypeError, AttributeError):
            return
        if names != (watched.address[0], watched.own) or watched.asked.pop(number, None) is None:
            return
        now = self._clock()
        if challenge is not None:
            watched.voice.answer(str(challenge))
            if not watched.challenged:  # once a question
                watched.challenged = True
                self._ask(watched, now)
            return
        silent = watched.answered is None or now - watched.answered > MISSED
        watched.answered, watched.told = now, told
        watched.served = watched.served or told.serves
        if not told.serves or told.waits >= WAITS:
            watched.well = None
        elif watched.well is None or silent:
            watched.well = now

    def _ask(self, watched: Watched, now: float) -> None:
        if watched.link is None:
            return
        number = secrets.token_hex(8)
        watched.asked[number] = now
        names = {"from": watched.own, "to": watched.address[0]}
        question: dict[str, object] = {"number": number, **names, "stamp": watched.voice.stamp().model_dump()}
        try:
            watched.link.send(self._sealed(_QUESTION, question))
        except OSError:  # no daemon there, which answers the question before, or no route in this moment
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
        asyncio.get_running_loop().add_reader(sock, self._receive_answer, watched)

    def _receive_question(self) -> None:
        with suppress(OSError):  # what was answered before did not arrive
            self.answer(*self._answers.recvfrom(1 << 16))

    def _receive_answer(self, watched: Watched) -> None:
        if watched.link:
            with suppress(OSError):  # no daemon is there, or there is no route in this moment
                self.take(watched, watched.link.recv(2048))

    def _forget(self, watched: Watched) -> None:
        if watched.link:
            asyncio.get_running_loop().remove_reader(watched.link)
            watched.link.close()
            watched.link = None
