"""A TOML file as a pydantic model, and exact words for whatever is wrong with it.

Every fault of a file becomes a line of one ConfigError: file, key, value, what is allowed, what to do.
config.py and network.py say what their files may hold.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from midstream.errors import ConfigError

Location = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """A table of a TOML file: unknown keys are refused, types are not converted, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class FaultsError(ValueError):
    """What one validator found wrong in several places: a location below its own, and the reason."""

    def __init__(self, faults: Sequence[tuple[Location, str]]) -> None:
        super().__init__()
        self.faults = faults


def absolute(path: Path) -> Path:
    """The absolute path. Raises ConfigError if the current folder, which it needs for that, is gone."""
    try:
        return path.absolute()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: relative to the current folder, which has been deleted; change to one that exists"
        ) from error


def read_text(path: Path, *, advice: str) -> str:
    """The text of a UTF-8 file, a byte order mark ignored. Raises ConfigError that ends with advice."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; {advice}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        value = f"byte 0x{error.object[error.start]:02x}"
        raise ConfigError(
            f"{path}: line {line}: {value}: must be UTF-8 text; save the file as UTF-8"
        ) from error


def parse_toml(text: str, path: Path, model: type[Model]) -> Model:
    """Validate a TOML text that came from path. Raises one ConfigError with a line for each fault."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {_syntax_fault(text, error)}") from error
    try:
        return model.model_validate(document)
    except ValidationError as error:
        faults = [
            _fault(document, model, location, kind, reason)
            for details in error.errors(include_url=False)
            for location, kind, reason in _expand(details["loc"], details["type"], details.get("ctx", {}))
        ]
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults)) from error


def literal(value: object) -> str:
    """A value as TOML writes it; a list has a line for each entry, and a mapping becomes an inline table."""
    if isinstance(value, list | tuple):
        return "[\n" + "".join(f"    {literal(each)},\n" for each in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {literal(each)}" for key, each in value.items()) + " }"
    # JSON's strings, numbers and booleans are TOML's (1.0), but for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _syntax_fault(text: str, error: Exception) -> str:
    advice = "check the quotes and brackets, and that no key occurs twice"
    match = re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", str(error))
    if not match:
        return f"not valid TOML: {error}; {advice}"
    reason, line, column = match[1], int(match[2]), match[3]
    shown = _show_text(text.split("\n")[line - 1].strip())
    return f"line {line}, column {column}: {shown}: not valid TOML: {reason}; {advice}"


def _expand(location: Location, kind: str, context: dict[str, Any]) -> list[tuple[Location, str, str]]:
    cause = context.get("error")
    if isinstance(cause, FaultsError):
        return [((*location, *below), kind, reason) for below, reason in cause.faults]
    return [(location, kind, "" if cause is None else str(cause))]


def _fault(
    document: dict[str, Any], model: type[BaseModel], location: Location, kind: str, reason: str
) -> str:
    field = _field(model, location)
    name, value = _key_and_value(document, location)
    if field is None:
        return f"{name}{value}: no such key; {_suggestion(model, location)}"
    allowed = f"must be {field.description}"
    if kind == "missing":
        return f"{f'[{name}]' if _table(field) else name}: missing; {allowed}; add it"
    if _table(field):
        return f"{name}{value}: {allowed}; write [{name}] and its keys below"
    if value == f" = {show(None)}":  # TOML has no null: the key is not there, and something else needs it
        return f"{name}: missing; {reason}; {allowed}; add it"
    default = "" if field.is_required() else ", or leave it out"
    if field.get_default() is not None and default:
        default += f" (default {show(field.get_default())})"
    return f"{name}{value}: {reason + '; ' if reason else ''}{allowed}; correct it{default}"


def _table(field: FieldInfo | None) -> type[BaseModel] | None:
    """The model of a field that is a table of the file."""
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _rows(field: FieldInfo | None) -> type[BaseModel] | None:
    """The model of the entries of a field that is a list of tables."""
    entry = next(iter(get_args(field.annotation)), None) if field else None
    return entry if isinstance(entry, type) and issubclass(entry, BaseModel) else None


def _field(model: type[BaseModel], location: Location) -> FieldInfo | None:
    """The field at a location; None for a key that does not exist."""
    field = None
    for key in location:
        if isinstance(key, str):
            field = model.model_fields.get(key)
            model = _table(field) or _rows(field) or model
    return field


def _key_and_value(document: Any, location: Location) -> tuple[str, str]:
    """How a message names a place in the file: `data.size` and ` = 0`, or `[data]` and nothing."""
    name, value = "", document
    for key in location:
        if isinstance(key, str):
            bare = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
            name = f"{name}.{bare}" if name else bare
            value = value.get(key) if isinstance(value, dict) else None
        elif isinstance(value, list):  # a single sensor may be written without a list
            name, value = f"{name}[{key}]", value[key]
    return (f"[{name}]", "") if isinstance(value, dict) else (name, f" = {show(value)}")


def _suggestion(model: type[BaseModel], location: Location) -> str:
    """The nearest known key: the same word in any table, else a similar one in this table or in another."""
    wrong = str(location[-1]).lower()
    rows = _rows(_field(model, location[:-1]))
    siblings: dict[str, str] = {name: name for name in rows.model_fields} if rows else {}
    others: dict[str, str] = {}
    for name, field in model.model_fields.items():
        table = _table(field)
        (others if location[:-1] else siblings)[name] = f"[{name}]" if table else name
        for below in table.model_fields if table else ():
            (siblings if location[:-1] == (name,) else others)[below] = f"{name}.{below}"
    for known, cutoff in ((siblings, 1.0), (others, 1.0), (siblings, 0.6), (others, 0.75)):
        for nearest in difflib.get_close_matches(wrong, known, n=1, cutoff=cutoff):
            return f"did you mean {known[nearest]}?"
    return f"allowed here: {', '.join(siblings.values())}; remove it"


def show(value: object) -> str:
    """A value as a message shows it."""
    return _show_text(json.dumps(value, ensure_ascii=False, default=str))


def _show_text(text: str) -> str:
    """A value as a message shows it: short, and without the password that a URL holds before its @."""
    text = re.sub(r'^("?).*@', r"\1***@", text)
    return text if len(text) <= 80 else f"{text[:79]}…"
