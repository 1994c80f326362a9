"""module.c: the reader of a ring, in C."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

@final
class RingReader:
    """Positions and times are those of struct reader in ring.h."""

    position: int
    end: int
    committed: int
    released: int
    newest: int
    size: int
    start: int
    found: int
    status: int
    uncommitted: int
    spilled: int
    connections: int
    seen: int

    def __new__(
        cls,
        consumer: np.ndarray,
        pages: np.ndarray,
        journal: np.ndarray,
        word: np.ndarray,
        copy_size: int,
        connections: int,
        patience: int,
        retain: int,
        timer: int,
    ) -> RingReader: ...
    def begin(
        self,
        framing: int,
        size: int,
        message: type[tuple[Any, ...]],
        addresses: Mapping[int, str],
        stream: str,
        stop: int,
        event: int,
        period: int,
        follow: int,
    ) -> None: ...
    def look(self) -> None: ...
    def regular(self) -> int: ...
    def most_rows(self) -> int: ...
    def rows(self, memory: np.ndarray, /) -> int: ...
    def message(self) -> Any: ...
    def commit(self) -> bool: ...
    def crowding(self) -> list[tuple[int, int, bytes]]: ...
    def keep_crowding(self) -> None: ...
    def unfinished(self) -> dict[int, tuple[int, int]]: ...
    def restore(self, pieces: list[tuple[int, int, bytes]], /) -> None: ...
    def totals(self) -> tuple[int, int, int, int, int, int, int]: ...
    def abandon(self) -> None: ...
    def heard(self, times: np.ndarray, /) -> None: ...
    def give_back(self) -> None: ...
    def prepare(self, plan: np.ndarray, values: Sequence[tuple[np.ndarray, ...]], kept: object) -> None: ...
    def show(self, phase: int, view: np.ndarray, /) -> None: ...
    def rest(self) -> bool: ...
    def cycle(self) -> Any: ...
