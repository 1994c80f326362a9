"""What runs beside the daemon's main task: tasks that end together, and threads that wait for the kernel."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@asynccontextmanager
async def beside(*jobs: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run these as long as the body runs. An error in one ends all, the body too, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]
            yield
            for task in tasks:
                task.cancel()
        return
    except BaseExceptionGroup as failed:
        first: BaseException = failed.exceptions[0]
    raise first  # outside of the handler: the group says nothing more, and would hide what caused the error


class WorkerThread:
    """A thread that does one thing after the other, while the event loop goes on."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(function, *args, **kwargs))

    def close(self) -> None:
        """Wait until it has done what it was asked."""
        self._pool.shutdown()
