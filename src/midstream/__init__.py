"""midstream: sensor data with the guarantees of TCP, on a control computer that runs no TCP."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from midstream.errors import (
    CompileError,
    ConfigError,
    FramingError,
    KernelError,
    LabError,
    MidstreamError,
    NetworkError,
    StoreError,
)

if TYPE_CHECKING:
    from midstream.hardworker import Hardworker, Message
    from midstream.logger import Logger
    from midstream.sensor import Sensor

__all__ = [
    "CompileError",
    "ConfigError",
    "FramingError",
    "Hardworker",
    "KernelError",
    "LabError",
    "Logger",
    "Message",
    "MidstreamError",
    "NetworkError",
    "Sensor",
    "StoreError",
]


def __dir__() -> list[str]:
    return __all__


_PROGRAMS = {"Hardworker": "hardworker", "Message": "hardworker", "Logger": "logger", "Sensor": "sensor"}


def __getattr__(name: str) -> Any:
    """Import a program when it is first used: a hardworker has no use for a logger's database library."""
    if name not in _PROGRAMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"midstream.{_PROGRAMS[name]}"), name)
    globals()[name] = value
    return value
