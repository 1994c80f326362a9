"""Comparisons such as temperature>80, of a field's or a JSON key's value with a constant."""

import json
import math
import operator
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.errors import ConfigError

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}

MISSING = object()  # a JSON message has no such key


@dataclass(frozen=True, slots=True)
class Condition:
    """A value that is missing, or cannot be compared with the constant, does not meet it."""

    key: str
    operator: str
    constant: str | float | bool | None
    text: str  # the constant as it was written

    def __str__(self) -> str:
        return f"{self.key}{self.operator}{self.text}"

    def met_by(self, value: object) -> bool:
        """Does a value meet it?"""
        try:
            return value is not MISSING and bool(_OPERATORS[self.operator](value, self.constant))
        except TypeError:  # a number and a text
            return False

    def mask(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """The same for a column of a field; bytes are compared as hexadecimal digits."""
        if values.dtype.kind == "V":
            compare, digits = _OPERATORS[self.operator], self.text.strip('"').lower()
            return np.fromiter((compare(value.hex(), digits) for value in values.tolist()), bool, len(values))
        if not isinstance(self.constant, int | float):
            return np.zeros(len(values), bool)
        if values.dtype.kind == "b":
            values = values.astype(np.uint8)  # beside which NumPy takes any integer
        with np.errstate(over="ignore"):  # beyond what 32 bits hold, the constant is infinite
            met: npt.NDArray[np.bool_] = _OPERATORS[self.operator](values, self.constant)
        return met


def condition(text: str) -> Condition:
    """A comparison as it is written: KEY, one of == != < <= > >=, and a JSON value or any other text.

    A key in quotes is a JSON string, so that it may be any text.
    """
    match = re.fullmatch(
        r'\s*("(?:[^"\\]|\\.)*"|[^=!<>\s]+)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*', text, re.DOTALL
    )
    if not match:
        raise ConfigError(
            f"--where {text}: must be a field or JSON key, one of == != < <= > >=, and a value, such as "
            "'temperature>80'; quote it for the shell"
        )
    try:
        constant = json.loads(match[3])
        if isinstance(constant, int):
            float(constant)
    except OverflowError:  # beyond any value
        constant = math.inf if constant > 0 else -math.inf
    except (ValueError, RecursionError):
        constant = match[3]
    if isinstance(constant, list | dict):
        raise ConfigError(f"--where {text}: compares with one value, and this is a list or an object")
    key = match[1]
    if key.startswith('"'):
        with suppress(ValueError):
            key = str(json.loads(key))
    return Condition(key, match[2], constant, match[3])


def lookup(document: object, key: str) -> object:
    """What a JSON document has at a key such as speed, gps.lat or wheels.0; MISSING if it has nothing."""
    if isinstance(document, dict) and key in document:
        return document[key]
    for part in key.split("."):
        if isinstance(document, dict) and part in document:
            document = document[part]
        elif isinstance(document, list) and part.isdecimal() and int(part) < len(document):
            document = document[int(part)]
        else:
            return MISSING
    return document
