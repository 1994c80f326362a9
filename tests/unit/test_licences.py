"""Kernel-side sources say that they are GPL; both licences are there in full."""

from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
KERNEL_SIDE = sorted(
    path
    for folder in ("src/midstream/ebpf", "bench/src/midstream_bench/ebpf")
    for path in (PROJECT / folder).glob("*.[ch]")
)


@pytest.mark.parametrize("source", KERNEL_SIDE, ids=lambda path: path.name)
def test_kernel_side_is_gpl(source: Path) -> None:
    assert "SPDX-License-Identifier: GPL-2.0-only" in source.read_text().splitlines()[0]


def test_both_licences_are_there() -> None:
    assert KERNEL_SIDE
    assert "GNU GENERAL PUBLIC LICENSE" in (PROJECT / "LICENSES/GPL-2.0-only.txt").read_text()
    assert "Permission is hereby granted" in (PROJECT / "LICENSES/MIT.txt").read_text()
