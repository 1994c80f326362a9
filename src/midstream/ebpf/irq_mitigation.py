"""Fewer interrupts for a reader with a period: the interface's packets are taken once a period, too.

A network card interrupts for the first packet that comes after the kernel has looked (NAPI). A reader that
looks every 10 ms gains nothing from that. Linux can leave the interrupt off and look by a timer instead
(Documentation/networking/napi.rst, "IRQ mitigation"): `gro_flush_timeout` is the timer, in nanoseconds, and
`napi_defer_hard_irqs` how many times in a row it may find nothing before the interrupt is switched on again.

Both are set beside the interface's other settings, for all its traffic. What was there before is kept in the
map `irq_mitigation`, which is pinned with the program, so that `undo` finds it whatever became of who set it.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from midstream.ebpf import libbpf, pins
from midstream.errors import KernelError

EMPTY_LOOKS = 4
"""Times the timer may find nothing. It misses a sensor of the reader's period now and then."""

SAVED = np.dtype(
    [
        ("ifindex", "<u4"),
        ("empty_looks", "<u4"),
        ("timeout", "<u8"),
        ("set_timeout", "<u8"),
    ]
)
"""struct irq_mitigation in tables.h: what was there before, and what was set; ifindex 0: nothing was."""


@dataclass(frozen=True)
class IrqMitigation:
    """What an interface is set to. timeout: nanoseconds, 0: every packet may interrupt."""

    empty_looks: int
    timeout: int


def matched(period: float) -> IrqMitigation:
    """The setting for a reader with this period, in seconds.

    The timer is a sixteenth shorter than the period: a packet waits for the timer and then for the reader,
    who comes half of that sixteenth later (`follow`), and is delivered before one period is over.
    """
    return IrqMitigation(EMPTY_LOOKS, round(period * 1e9 * 15 / 16))


def follow(period: float) -> float:
    """After which time, in seconds, a reader looks again who found packets of a certain time."""
    return period * 31 / 32


def read(interface: str) -> IrqMitigation:
    """What the interface is set to now. Raises KernelError if it has no such setting."""
    return IrqMitigation(*(int(_read(interface, name)) for name in _NAMES))


def write(interface: str, wanted: IrqMitigation) -> None:
    """Set it. Raises KernelError."""
    for name, value in zip(_NAMES, (wanted.empty_looks, wanted.timeout), strict=True):
        path = _path(interface, name)
        try:
            path.write_text(str(value))
        except OSError as error:
            raise KernelError(
                f"{path}: cannot be set to {value} ({error.strerror}); is this root, and /sys writable? "
                "config.toml: hardworker.irq_mitigation = false goes without"
            ) from error


def apply(interface: str, period: float, folder: Path) -> bool:
    """Match the interface to a reader with this period; remember in folder's pins what was there before the
    first one.

    False, and nothing done, if it was matched already. Raises KernelError.
    """
    before, wanted, ifindex = read(interface), matched(period), socket.if_nametoindex(interface)
    earlier = _saved(folder)
    if earlier is not None and earlier["ifindex"] == ifindex:
        if before == wanted:
            return False
        if before.timeout == earlier["set_timeout"]:  # ours, for another period
            before = IrqMitigation(int(earlier["empty_looks"]), int(earlier["timeout"]))
    _save(folder, np.array((ifindex, before.empty_looks, before.timeout, wanted.timeout), SAVED))
    write(interface, wanted)
    return True


def undo(folder: Path) -> None:
    """Give the interface what it had, unless somebody has set something else since."""
    saved = _saved(folder)
    if saved is None or not saved["ifindex"]:
        return
    try:
        interface = socket.if_indextoname(int(saved["ifindex"]))
        if read(interface).timeout == saved["set_timeout"]:
            write(interface, IrqMitigation(int(saved["empty_looks"]), int(saved["timeout"])))
        _save(folder, np.zeros((), SAVED))
    except (OSError, KernelError):
        return  # the interface is gone, and its settings with it


_NAMES = ("napi_defer_hard_irqs", "gro_flush_timeout")


def _save(folder: Path, saved: np.ndarray) -> None:
    fd = pins.open_map(folder, "irq_mitigation", value_size=SAVED.itemsize)
    try:
        libbpf.update(fd, bytes(4), saved.tobytes())
    finally:
        os.close(fd)


def _saved(folder: Path) -> np.void | None:
    try:
        fd = pins.open_map(folder, "irq_mitigation", value_size=SAVED.itemsize)
    except KernelError:
        return None
    try:
        value = libbpf.lookup(fd, bytes(4), SAVED.itemsize)
    finally:
        os.close(fd)
    return np.frombuffer(value, SAVED)[0] if value else None


def _path(interface: str, name: str) -> Path:
    return Path("/sys/class/net", interface, name)


def _read(interface: str, name: str) -> str:
    path = _path(interface, name)
    try:
        return path.read_text()
    except OSError as error:
        raise KernelError(
            f"{path}: cannot be read ({error.strerror}); is /sys that of this network namespace? "
            "config.toml: hardworker.irq_mitigation = false goes without"
        ) from error
