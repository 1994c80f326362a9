"""A JetStream's stream, read: single messages from its leader, many at once from any of its replicas.

Everything is a question with an answer (direct get in batches, nats-server 2.11). There is no consumer: the
servers keep nothing for a reader, and one that is killed leaves nothing behind. A server that goes away is
replaced by another, and the question asked again.
"""

import asyncio
import base64
import json
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import StreamConfig

from midstream.errors import StoreError
from midstream.storage.nats_servers import API_TIMEOUT, NatsServers, address
from midstream.storage.store import Unavailable

PATIENCE = 20.0  # seconds that servers have to answer; a new leader needs 5 to 7
RETRY = 0.1  # seconds from one try to the next
AT_ONCE = 64  # questions that wait for their answers
NO_MESSAGE, NO_STREAM = 10037, 10059  # err_code of an answer

Question = dict[str, Any]
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Found:
    """A message of the stream. number: its sequence there; stored: when a server took it (RFC 3339)."""

    subject: str
    number: int
    headers: Mapping[str, str]
    data: bytes
    stored: str


@dataclass(frozen=True, slots=True)
class StreamState:
    """first: the number of the first message that is left. counts: messages by subject."""

    first: int
    deleted: int  # after the first
    counts: Mapping[str, int]


class JetStreamStream:
    """The stream that a nats:// URL names, which must be midstream's. Everything raises StoreError."""

    def __init__(self, url: str) -> None:
        servers = address(url)
        self.name, self.stream = servers.name, servers.stream
        self._info = f"STREAM.INFO.{self.stream}"
        self._servers = NatsServers(servers)
        try:
            try:
                self._servers.connect()  # without patience: perhaps the URL is wrong
            except Unavailable as error:
                raise StoreError(str(error)) from error
            answer = self._ask(partial(self._request, self._info, {}))
            if _code(answer) == NO_STREAM:
                raise StoreError(
                    f"{self.name}: no logger has stored anything here: there is no stream {self.stream}. "
                    "What to do: name the logger's ([logger] database in config.toml, or --database)"
                )
            config = StreamConfig.from_response(answer["config"])
            self._servers.check(config)
            if not config.allow_direct:
                raise StoreError(
                    f"{self.name}: the stream {self.stream} does not allow direct gets. What to do: "
                    f"nats stream edit {self.stream} --allow-direct"
                )
            self.keeps_some = (config.max_msgs_per_subject or 0) > 0
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._servers.close()

    def state(self, subjects: str) -> StreamState:
        """How it is now, with the counts of the subjects of that pattern."""
        counts: dict[str, int] = {}
        while True:
            question = {"subjects_filter": subjects, "offset": len(counts)}
            answer = self._ask(partial(self._request, self._info, question))
            if "error" in answer:
                raise StoreError(f"{self.name}: {answer['error'].get('description')}")
            state = answer["state"]
            some = state.get("subjects") or {}
            counts.update(some)
            if not some or len(counts) >= answer.get("total", 0):
                return StreamState(state["first_seq"], state.get("num_deleted", 0), counts)

    def get(self, question: Question) -> Found | None:
        """The one message of a question such as {"last_by_subj": …}; None if there is none."""
        return self.get_all([question])[0]

    def get_all(self, questions: Sequence[Question]) -> list[Found | None]:
        """The same for many questions. The leader answers: what was there before is in the answer."""
        found: list[Found | None] = []
        for start in range(0, len(questions), AT_ONCE):
            some = questions[start : start + AT_ONCE]
            found += self._ask(partial(self._get_all, some))
        return found

    def read(
        self, subject: str, number: int, count: int, max_bytes: int, upto: int = 0
    ) -> tuple[list[Found], bool]:
        """The messages of a subject from a number on, at most so many; and whether there are more.

        `upto`: the number of a message of theirs that is there. A replica that does not have it yet is not
        believed that nothing follows.
        """
        question = {"seq": max(number, 1), "next_by_subj": subject, "batch": count, "max_bytes": max_bytes}
        return self._ask(partial(self._read, question, upto))

    def _ask(self, work: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        """Until it is answered, or nobody has answered for too long."""
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                self._servers.connect()
                return self._servers.run(work())
            except Unavailable as error:
                self._servers.disconnect()  # another server may do better
                if time.monotonic() > give_up:
                    raise StoreError(str(error)) from error
                time.sleep(RETRY)

    async def _request(self, what: str, question: Question) -> dict[str, Any]:
        answer = await self._servers.client.request(
            f"$JS.API.{what}", json.dumps(question).encode(), timeout=API_TIMEOUT
        )
        result: dict[str, Any] = json.loads(answer.data)
        if result.get("error", {}).get("code") == 503:  # there is no leader just now
            raise NatsError(result["error"].get("description", "not available"))
        return result

    async def _get_all(self, questions: Sequence[Question]) -> list[Found | None]:
        subject = f"STREAM.MSG.GET.{self.stream}"
        answers = await asyncio.gather(*(self._request(subject, question) for question in questions))
        return [self._found(answer) for answer in answers]

    def _found(self, answer: dict[str, Any]) -> Found | None:
        if _code(answer) == NO_MESSAGE:
            return None
        if "error" in answer:
            raise StoreError(f"{self.name}: {answer['error'].get('description')}")
        message = answer["message"]
        lines = base64.b64decode(message.get("hdrs", "")).decode(errors="replace").split("\r\n")[1:]
        headers = dict(line.split(": ", 1) for line in lines if ": " in line)
        data = base64.b64decode(message.get("data", ""))
        return Found(message["subject"], message["seq"], headers, data, message["time"])

    async def _read(self, question: Question, upto: int) -> tuple[list[Found], bool]:
        found, ending = await self._batch(question)
        more = int(ending.get("Nats-Num-Pending", 0)) > 0
        last = found[-1].number if found else question["seq"] - 1
        if not more and last < upto:
            (newest,) = await self._get_all([{"last_by_subj": question["next_by_subj"]}])
            if newest is not None and newest.number > last:
                raise NatsError("a replica of the stream lags behind the others")
        return found, more

    async def _batch(self, question: Question) -> tuple[list[Found], Mapping[str, str]]:
        """The messages, and the headers of the one that ends them."""
        client = self._servers.client
        found: list[Found] = []
        ended: asyncio.Future[Mapping[str, str]] = asyncio.get_running_loop().create_future()

        async def take(message: Msg) -> None:
            headers = message.headers or {}
            if "Status" not in headers:
                found.append(
                    Found(
                        headers["Nats-Subject"],
                        int(headers["Nats-Sequence"]),
                        headers,
                        message.data,
                        headers["Nats-Time-Stamp"],
                    )
                )
            elif not ended.done():
                ended.set_result(headers)

        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=take, pending_bytes_limit=0)
        try:
            await client.publish(
                f"$JS.API.DIRECT.GET.{self.stream}", json.dumps(question).encode(), reply=inbox
            )
            before = -1
            while not ended.done():
                if len(found) == before or not client.is_connected:
                    raise NatsError("no answer")
                before = len(found)
                await asyncio.wait([ended], timeout=API_TIMEOUT)
        finally:
            if client.is_connected:
                await subscription.unsubscribe()
        headers = ended.result()
        if headers["Status"] not in ("204", "404"):
            raise NatsError(headers.get("Description", f"status {headers['Status']}"))
        return found, headers


def _code(answer: dict[str, Any]) -> int:
    code: int = answer.get("error", {}).get("err_code", 0)
    return code
