"""A key that cannot be used is told by its reason, with the command that mends exactly that."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from midstream import key
from midstream.errors import ConfigError

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


@contextmanager
def nobody() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        key.read(path)
    return str(caught.value)


def test_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert "there is no key; copy it from a host that has one" in refused(path)
    assert f"`midstream key {path}`" in refused(path)


@needs_root
def test_it_belongs_to_root_and_another_has_to_read_it(open_folder: Path) -> None:
    key.make(open_folder / "key")
    with nobody():
        text = refused(open_folder / "key")
    assert f"belongs to root, and nobody has to read it; `chown nobody {open_folder}/key`" in text
    assert "midstream key" not in text, "a new one would not be the others'"


@needs_root
def test_the_printed_command_mends_it(open_folder: Path) -> None:
    key.make(open_folder / "key")
    os.chown(open_folder / "key", NOBODY, NOBODY)
    with nobody():
        assert len(key.read(open_folder / "key")) == 64


@needs_root
def test_another_could_replace_it(open_folder: Path) -> None:
    key.make(open_folder / "key")
    os.chown(open_folder / "key", NOBODY, NOBODY)
    text = refused(open_folder / "key")
    assert "belongs to nobody, who could replace the key; it must belong to root" in text


@needs_root
def test_its_folder_is_closed(open_folder: Path) -> None:
    key.make(open_folder / "closed" / "key")
    (open_folder / "closed").chmod(0o700)
    with nobody():
        assert "nobody may not look into its folder; `chmod a+x`" in refused(open_folder / "closed" / "key")


def test_others_may_read_it(tmp_path: Path) -> None:
    key.make(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    assert f"mode 0640 lets others read the key; `chmod 600 {tmp_path}/key`" in refused(tmp_path / "key")


def test_it_is_a_folder(tmp_path: Path) -> None:
    assert "daemon.key" in refused(tmp_path)
