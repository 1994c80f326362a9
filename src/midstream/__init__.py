"""midstream: sensor data with the guarantees of TCP, on a control computer that runs no TCP."""

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
