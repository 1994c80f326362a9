"""What a logger that failed may have lost of a connection, as the hardworker's ring had it.

A file of them: a line of JSON that says what there is, then the bytes of all records end to end.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple

from midstream.config import DATA


class Part(NamedTuple):
    """Some bytes of a stream. offset: where in it they lie. received_ns: since 1970."""

    offset: int
    received_ns: int
    data: bytes


@dataclass(frozen=True)
class Lost:
    """sensor, port, first, opened_ns and stream: what the connection is known by (told.py). committed: so
    many of its bytes does the logger have. closed: its sensor has ended it, after all of it.

    parts: in the order in which they came, which is not always the sensor's; where two have the same byte,
    Stream of daemon/reassembly.py decides."""

    sensor: str
    port: int
    first: int
    opened_ns: int
    committed: int
    closed: bool
    parts: list[Part]
    stream: str = DATA


def dump(lost: Iterable[Lost], file: IO[bytes]) -> None:
    """Write it down."""
    head, data = [], []
    for each in lost:
        parts = [(part.offset, part.received_ns, len(part.data)) for part in each.parts]
        head.append({**vars(each), "parts": parts})
        data += [part.data for part in each.parts]
    file.write(json.dumps(head).encode() + b"\n")
    file.writelines(data)


def load(file: IO[bytes]) -> Iterator[Lost]:
    """What was written down."""
    for known in json.loads(file.readline()):
        parts = [Part(offset, received, file.read(size)) for offset, received, size in known.pop("parts")]
        yield Lost(**known, parts=parts)
