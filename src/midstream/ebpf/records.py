"""What the hardworker's program writes and user space reads; record.h says the same in C."""

import numpy as np

ABI = 2
"""Of the maps, and of the records in the ring: another number where what lies in them is laid out otherwise,
or means something else. A program of the same number may take another's place, with its maps, whatever
their versions."""

OPEN, FIN, RESET = 1, 2, 4

RECORD = np.dtype(
    [
        ("offset", "<u8"),
        ("time", "<u8"),
        ("connection", "<u4"),
        ("length", "<u4"),
        ("sensor", "<u2"),
        ("port", "<u2"),
        ("flags", "<u2"),
        ("unused", "<u2"),
    ]
)
"""The head of a record, before its payload. time: CLOCK_MONOTONIC, nanoseconds."""

LARGEST_RECORD = 4096
"""More bytes than any record takes, whatever the machine's pages are: const.toml allows no longer packet."""

FORWARDED = (
    "opened",
    "stored",
    "out_of_order",
    "duplicate",
    "pure_ack",
    "reset",
    "reset_ignored",
    "syn_ignored",
)
PASSED = ("stranger",)
ANSWERED = ("no_connection", "replaced")
DROPPED = (
    "ring_full",
    "table_full",
    "out_of_window",
    "beyond_fin",
    "bad_checksum",
    "no_ack",
    "bad_ack",
    "stale",
    "quota_full",
    "forged",
    "syn_data",
    "bad_flags",
    "bad_length",
    "oversized",
    "ip_options",
    "fragment",
)
OUTCOMES = FORWARDED + PASSED + ANSWERED + DROPPED
"""The counters, in the order of struct counters: each marked packet counts in exactly one of them. What each
means: docs/guarantees.md, "What becomes of a packet"."""

NO_WAKEUP, FORCE_WAKEUP = 1, 2
"""BPF_RB_NO_WAKEUP: a reader with a period of its own is woken by nothing. BPF_RB_FORCE_WAKEUP: each record
wakes any other, also one that retains what it is done with."""

NO_QUOTA = (1 << 32) - 1
"""More than a sensor can take."""

JOURNAL_GENERATION, JOURNAL_HEAD, JOURNAL_ROW = 8, 24, 48
"""Bytes of the parts of the reader's journal: its generation, and struct copy and struct open of
hardworker/ring.h."""

KEPT_HEAD, KEPT_BYTES = 24, 3968
"""Bytes of the parts of an entry of that map, struct kept (hardworker/spill.py)."""

SETTINGS = np.dtype(
    [
        ("wakeup", "<u8"),
        ("ring_quota", "<u8"),
        ("open_quota", "<u4"),
        ("check", "<u4"),
        ("stamp", "V32"),
        ("layout", "V32"),
        ("sensors", "<u8"),
    ]
)
"""Written before the program is loaded, read-only ever after."""


CONNECTION = np.dtype(
    {
        "names": [
            "number",
            "next",
            "seen",
            "first",
            "acknowledged",
            "sensor",
            "destination",
            "established",
            "opened",
        ],
        "formats": ["<u4", "<u8", "<u8", "<u4", "<u4", "<u2", "<u4", "<u2", "<u8"],
        "offsets": [4, 8, 24, 32, 36, 48, 56, 62, 224],
        "itemsize": 232,
    }
)
"""Of struct connection (connection.h) what is asked for outside the kernel."""

BEGINNING = np.dtype([("opened", "<u8"), ("first", "<u4"), ("port", "<u2"), ("unused", "<u2")])

BEGINNINGS = np.dtype([("count", "<u4"), ("unused", "<u4"), ("of", BEGINNING, 7)])
"""The first connections of a sensor that were established since the maps were made."""

ENDED = np.dtype(
    [
        ("ip", "V4"),
        ("port", ">u2"),
        ("unused", "<u2"),
        ("held", "<u8"),
        ("opened", "<u8"),
        ("first", "<u4"),
        ("destination", "<u4"),
        ("number", "<u4"),
        ("sensor", "<u2"),
        ("how", "<u2"),
    ]
)
"""How a connection ended: an entry of the queue `ended`. how: FIN or RESET."""

COMMITTED_HEAD = np.dtype([("generation", "<u8"), ("time", "<u8"), ("read", "<u8"), ("forfeited", "<u8")])
COMMITTED_TABLE = np.dtype([("known", "<u4"), ("mask", "<u4"), ("unused", "<u8")])
COMMITTED = np.dtype([("key", "<u8"), ("offset", "<u8")])
"""What the logger has committed, in the map of that name: its head, that of each of its two tables, and a
place of them (ebpf/retained.py)."""

CONTROL = np.dtype([("destination", "<u4"), ("unlinked", "<u4")])
"""What the program, and the application, are told while they work. destination: of connections that open now.
unlinked: not 0 if the program is no longer on the interface."""

HERE = 0xFFFFFFFF
"""The destination that is this host's own stack; every other is a position in const.toml's loggers."""


def settings(
    stamp: bytes,
    *,
    wakeup: bool,
    check: bool,
    ring_quota: int,
    open_quota: int,
    layout: bytes = bytes(32),
    sensors: int = 0,
) -> bytes:
    """The bytes of struct settings. Quotas in bytes and in connections, a sensor."""
    values = (FORCE_WAKEUP if wakeup else NO_WAKEUP, ring_quota, open_quota, check, stamp, layout, sensors)
    return np.array(values, SETTINGS).tobytes()


def committed_slots(connections: int) -> int:
    """The places of a table of what is committed, for so many connections: at least half of them are free."""
    return int(1 << (2 * connections - 1).bit_length())


def committed_table_size(connections: int) -> int:
    """Bytes of such a table."""
    return COMMITTED_TABLE.itemsize + committed_slots(connections) * COMMITTED.itemsize


def committed_size(connections: int) -> int:
    """Bytes of all that says what is committed; a multiple of 8."""
    return COMMITTED_HEAD.itemsize + 2 * committed_table_size(connections)


def journal_copy_size(connections: int) -> int:
    """Bytes of one of the journal's two copies, for so many connections."""
    return JOURNAL_HEAD + connections * JOURNAL_ROW


def journal_size(connections: int) -> int:
    """Bytes of a journal; a multiple of 8."""
    return JOURNAL_GENERATION + 2 * journal_copy_size(connections)
