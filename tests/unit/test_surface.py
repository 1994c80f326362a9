"""What users may build on: names, errors and exit codes. A change here is a change of the interface."""

import importlib
import inspect
import re
import subprocess
import sys
import typing

import pytest

import midstream
from midstream import errors

NAMES = [
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
EXIT_CODES = {
    "MidstreamError": 1,
    "ConfigError": 2,
    "CompileError": 3,
    "KernelError": 4,
    "NetworkError": 5,
    "StoreError": 6,
    "FramingError": 1,
    "LabError": 1,
}


def tree() -> dict[str, type[BaseException]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }


def test_the_package_offers_these_names_and_no_others() -> None:
    assert midstream.__all__ == dir(midstream) == NAMES
    assert all(getattr(midstream, name) for name in NAMES)
    assert midstream.__doc__
    with pytest.raises(AttributeError, match="nothing"):
        _ = midstream.nothing


def test_the_hardworker_package_offers_these_names() -> None:
    package = importlib.import_module("midstream.hardworker")
    assert package.__all__ == ["Hardworker", "Message", "Totals", "batch_dtype"]


def test_every_error_is_a_midstream_error_with_its_exit_code() -> None:
    classes = tree()
    assert {name: getattr(value, "exit_code") for name, value in classes.items()} == EXIT_CODES  # noqa: B009
    for name, value in classes.items():
        if name != "MidstreamError":
            assert value.__bases__ == (errors.MidstreamError,)
        assert getattr(midstream, name) is value
    assert errors.MidstreamError.__bases__ == (Exception,)


def test_the_tree_that_opens_errors_py_tells_the_truth() -> None:
    shown = re.findall(r"─ (\w+) .* exit code (\d)", errors.__doc__ or "")
    assert {name: int(code) for name, code in shown} | {"MidstreamError": 1} == EXIT_CODES


def test_a_kernel_error_keeps_the_error_number() -> None:
    assert errors.KernelError("refused").errno == 0
    error = errors.KernelError("refused", errno=13)
    assert (error.errno, str(error)) == (13, "refused")


def test_a_message_cannot_be_changed() -> None:
    message = midstream.Message("192.0.2.1", 1, 0, 5, b"payload")
    with pytest.raises(AttributeError):
        message.payload = b"other"  # type: ignore[misc]  # this is what must fail
    assert message == midstream.Message(
        sensor="192.0.2.1", connection=1, sequence=0, time=5, payload=b"payload"
    )


def test_importing_midstream_starts_no_compiler_and_loads_no_library() -> None:
    code = (
        "import pathlib, sys, midstream; maps = pathlib.Path('/proc/self/maps').read_text(); "
        "sys.exit('libbpf' in maps or '/_ring' in maps or 'pyroute2' in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=30)


def offered() -> list[tuple[str, object]]:
    """Everything that is offered, with the public methods of its classes."""
    found: list[tuple[str, object]] = []
    for name in NAMES:
        value = getattr(midstream, name)
        found.append((name, value))
        members = [(below, getattr(value, below)) for below in vars(value) if not below.startswith("_")]
        found += [(f"{name}.{below}", member) for below, member in members if callable(member)]
    return found


@pytest.mark.parametrize(("name", "value"), [pytest.param(*pair, id=pair[0]) for pair in offered()])
def test_what_is_offered_is_described_and_typed(name: str, value: object) -> None:
    assert inspect.getdoc(value), f"{name}: says nothing of itself"
    function = vars(value).get("__init__", value) if isinstance(value, type) else value
    if not inspect.isfunction(function):
        return
    hints = typing.get_type_hints(function)
    parameters = [each for each in inspect.signature(function).parameters if each not in ("self", "cls")]
    assert not [each for each in parameters if each not in hints], f"{name}: a parameter has no type"
    assert "return" in hints, f"{name}: its result has no type"
