"""What is used in a `with` statement and closes itself at its end."""

from abc import abstractmethod
from types import TracebackType
from typing import Protocol, Self


class Closing(Protocol):
    """A context manager that closes itself, however its block ends."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
