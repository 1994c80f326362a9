"""Tasks that end together, and threads that are waited for."""

import asyncio
import threading

import pytest

from midstream.daemon.concurrency import WorkerThread, beside
from midstream.errors import NetworkError


@pytest.fixture
def ended() -> list[str]:
    return []


async def forever(name: str, ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def failing(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


def test_what_runs_beside_ends_with_the_body(ended: list[str]) -> None:
    async def run() -> str:
        async with beside(forever("first", ended), forever("second", ended)):
            await asyncio.sleep(0)
            return "done"

    assert asyncio.run(run()) == "done"
    assert ended == ["first", "second"]


def test_an_error_beside_ends_the_body_and_the_others(ended: list[str]) -> None:
    error = NetworkError("no route")
    error.__cause__ = OSError(101, "unreachable")

    async def run() -> None:
        async with beside(forever("first", ended), failing(error)):
            await forever("body", ended)

    with pytest.raises(NetworkError) as raised:
        asyncio.run(run())
    assert raised.value is error
    assert isinstance(error.__cause__, OSError), "the error still says what caused it"
    assert sorted(ended) == ["body", "first"]


def test_an_error_of_the_body_ends_what_runs_beside(ended: list[str]) -> None:
    error = NetworkError("nothing has been heard")

    async def run() -> None:
        async with beside(forever("first", ended)):
            await failing(error)

    with pytest.raises(NetworkError) as raised:
        asyncio.run(run())
    assert raised.value is error
    assert ended == ["first"]


def test_who_is_cancelled_is_cancelled(ended: list[str]) -> None:
    async def body() -> None:
        async with beside(forever("first", ended)):
            await forever("body", ended)

    async def run() -> bool:
        task = asyncio.create_task(body())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(run())
    assert sorted(ended) == ["body", "first"]


def test_a_worker_does_one_thing_after_the_other() -> None:
    did: list[int] = []
    may = threading.Event()

    def first() -> int:
        may.wait(10)
        did.append(1)
        return 1

    def second() -> int:
        did.append(2)
        return 2

    async def run() -> list[int]:
        worker = WorkerThread("test")
        try:
            both = asyncio.gather(worker(first), worker(second))
            await asyncio.sleep(0.02)
            assert did == [], "the event loop goes on meanwhile"
            may.set()
            return [*await both]
        finally:
            worker.close()

    assert asyncio.run(run()) == [1, 2]
    assert did == [1, 2]
