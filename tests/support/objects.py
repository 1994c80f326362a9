"""A host that has no compiler."""

from importlib.metadata import PackageNotFoundError

import pytest

from midstream.ebpf import compiler


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """For this process, until the test ends."""

    def missing() -> str:
        raise compiler.CompilerMissingError from PackageNotFoundError("ziglang")

    monkeypatch.setattr(compiler, "_compiler_version", missing)
