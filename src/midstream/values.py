"""What a single value in config.toml may be. Each function returns it as it is used, or raises ValueError."""

import mmap
import re

from midstream.database_url import check_form

WITH_UNIT = r"^([0-9]{1,10}) ?(KiB|MiB|GiB)$"
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
MAX_RING = 2**31  # the kernel takes a ring's size as a power of two in 32 bits
MAX_SOCKET = 107  # bytes of a Unix socket's path (unix(7))
RESERVED = frozenset(
    ("sensor", "port", "connection", "connection_id", "sequence", "received", "received_ns", "payload")
)
"""What the logger says of every message, beside its fields."""


def byte_count(value: object) -> object:
    """A number of bytes as it is, or from a string with a binary unit. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(WITH_UNIT, value)
    if not match:
        raise ValueError("not a whole number with KiB, MiB or GiB")
    return int(match[1]) * UNITS[match[2]]


def ring_size(value: object) -> object:
    """Bytes of a ring, from an integer or from a string with a binary unit."""
    value = byte_count(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if value < mmap.PAGESIZE or value & (value - 1):
            raise ValueError(f"not a power of two of at least one memory page ({mmap.PAGESIZE} bytes)")
        if value > MAX_RING:
            raise ValueError("larger than 2 GiB, the most that the kernel takes")
    return value


def interface(value: str) -> str:
    if value and not re.fullmatch(r"(?!\.{1,2}$)[^\s/:]{1,15}", value):
        raise ValueError("not a name that Linux gives to an interface")
    return value


def mode(value: str) -> str:
    if not re.fullmatch(r"0?[0-7]{3}", value):
        raise ValueError("not three octal digits")
    return value


def socket(value: str) -> str:
    if value and not re.fullmatch(r"(/[^/\x00]+)+", value):
        raise ValueError("not an absolute path of a file")
    if len(value.encode()) > MAX_SOCKET:
        raise ValueError(f"longer than {MAX_SOCKET} bytes, the most that Linux takes")
    return value


def name(value: str) -> str:
    if value and not (value.isprintable() and len(value) <= 63):
        raise ValueError("not printable, or longer than 63 characters")
    return value


def pins(value: str) -> str:
    if not re.fullmatch(r"(/[^/\x00]+)+/?", value):
        raise ValueError("not an absolute path of a folder")
    if "." in value:
        raise ValueError("bpffs refuses names with dots")
    return value.rstrip("/")


def database(value: str) -> str:
    check_form(value)
    return value


def field_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,47}", value):  # PostgreSQL cuts names at 63 bytes
        raise ValueError("not a name for a column of a database")
    if value.lower() in RESERVED:
        raise ValueError("the logger's own name for something else")
    return value


def stream_name(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", value):
        raise ValueError("not a name for a table, a topic and a folder")
    return value
