"""What the hardworker's program writes and user space reads; record.h says the same in C."""

import numpy as np

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

FORWARDED = (
    "opened",
    "stored",
    "early",
    "known",
    "bare",
    "reset",
    "reset_ignored",
    "syn_ignored",
)
PASSED = ("stranger", "no_connection")
DROPPED = (
    "ring_full",
    "table_full",
    "too_early",
    "beyond_fin",
    "no_ack",
    "syn_data",
    "bad_flags",
    "bad_length",
    "oversized",
    "ip_options",
    "fragment",
)
OUTCOMES = FORWARDED + PASSED + DROPPED
"""The counters, in the order of struct counters: each marked packet counts in exactly one of them."""

NO_WAKEUP = 1
"""BPF_RB_NO_WAKEUP: a reader with a period of its own is woken by nothing."""

SETTINGS = np.dtype([("wakeup", "<u8"), ("stamp", "V32")])
"""Written before the program is loaded, read-only ever after."""
