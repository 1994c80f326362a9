"""Completion, as bash asks for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from midstream import cli

ASK = """
eval "$(midstream --show-completion)"
complete -p midstream
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _midstream_completion midstream; echo "${COMPREPLY[@]}"; }
ask midstream log export --format ""
"""


def test_bash_completes(tmp_path: Path) -> None:
    run = subprocess.run(
        ["bash", "--norc", "-c", ASK],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )
    assert run.stderr == ""
    said, *completions = run.stdout.splitlines()
    assert said.endswith("-F _midstream_completion midstream")
    assert [sorted(line.split()) for line in completions] == [
        ["csv", "jsonl", "mcap", "parquet"],
    ]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("midstream log", []),
        ("midstream log ", ["log"]),
        ("midstream log\n", ["log"]),
        ("midstream --help lab up", ["lab"]),
        ("midstream x", []),
        ("midstream ", []),
        ("midstream", []),
    ],
)
def test_only_what_can_be_meant_is_imported(
    line: str, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_MIDSTREAM_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    assert cli._named() == wanted
