"""module.c: the reader of a ring, in C."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np

@final
class RingReader:
    """Positions and times are those of struct reader in ring.h."""

    position: int
    committed: int
    released: int
    newest: int
    size: int
    start: int
    found: int
    status: int
    streams: int
    spilled: int
    seen: int

    def __new__(
        cls,
        consumer: np.ndarray,
        pages: np.ndarray,
        journal: np.ndarray,
        word: np.ndarray,
        copy_size: int,
        connections: int,
        retain: int,
        position: int,
        timer: int,
    ) -> RingReader: ...
    def look(self) -> None: ...
    def regular(self, size: int, /) -> int: ...
    def next(self) -> tuple[int, int, int, int, int, int, bytes] | None: ...
    def commit(self, pending: bytes, /) -> None: ...
    def give_back(self) -> None: ...
    def prepare(
        self,
        size: int,
        stop: int,
        event: int,
        period: int,
        follow: int,
        plan: np.ndarray,
        values: Sequence[tuple[np.ndarray, ...]],
        kept: object,
    ) -> None: ...
    def show(self, phase: int, view: np.ndarray, /) -> None: ...
    def cycle(self) -> Any: ...
