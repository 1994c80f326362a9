"""The README's recording: what a terminal showed, when it did, in one file that fetches nothing."""

import io
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from rich.text import Text
from tools.recording import COLUMNS, HOLD, PICTURE, Frame, Screen, picture, record

from midstream.demo import Settings
from midstream.demo.observer import Counts, View
from midstream.demo.picture import triangle
from midstream.demo.view import Picture

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
VIEW = View(Counts(2000, 2000, 2000, 1000), Counts(1001, 1002, 1003, 512), 1, 0, 0.2)


def plain(screen: Screen) -> list[str]:
    return [Text.from_ansi(line).plain.rstrip() for line in screen.lines]


def test_what_the_demonstration_draws_is_understood() -> None:
    out, settings, screen = io.StringIO(), Settings(), Screen("# midstream demo")
    console = Console(file=out, force_terminal=True, width=COLUMNS, legacy_windows=False)
    with Picture(console, settings) as drawn:
        drawn.note("something to know")
        drawn.stage("building the lab")
        drawn.watch(VIEW)
        screen.feed(out.getvalue())
        lines = plain(screen)
        assert lines[:2] == ["# midstream demo", "demo: something to know"]
        expected = [line.rstrip() for line in triangle(settings, VIEW).plain.splitlines()]
        assert lines[5 : 5 + len(expected)] == expected
        assert lines[-1].endswith("2,000 of 5,000 messages, 0:03 left")
        out.seek(0)
        out.truncate()
    screen.feed(out.getvalue() + "\r\n\x1b[1;32mAll\x1b[0m arrived\r\n")
    assert [line for line in plain(screen) if line] == [
        "# midstream demo",
        "demo: something to know",
        "All arrived",
    ]


@pytest.mark.parametrize("text", ["\x1b[5;5H", "\x1b]0;title\x07", "\x1b[1K"])
def test_what_is_not_understood_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="not understood"):
        Screen().feed(text)


@pytest.mark.slow
def test_a_program_is_recorded_on_a_terminal_of_its_own() -> None:
    program = "import sys, time; print(sys.stdout.isatty()); time.sleep(1); print('é'); sys.exit(3)"
    frames, status = record([sys.executable, "-c", program], "$ program")
    assert status == 3
    assert [frame.lines for frame in frames] == [
        ("$ program", ""),
        ("$ program", "True", ""),
        ("$ program", "True", "é", ""),
    ]
    assert frames[0].time == 0 and frames[2].time - frames[1].time == pytest.approx(1, abs=0.5)


def test_it_moves_as_it_did_and_ends_as_it_ended() -> None:
    frames = [
        Frame(0, ("$ a <b>",)),
        Frame(1, ("$ a <b>", "\x1b[1;36mone\x1b[0m")),
        Frame(2, ("$ a <b>", "two")),
    ]
    text = picture(frames, "a & b")
    drawn = ElementTree.fromstring(text)
    assert [one.text for one in drawn.iter(f"{SVG}text")] == ["$ a <b>", "one", "two"]
    assert (title := drawn.find(f"{SVG}title")) is not None and title.text == "a & b"
    one, two = drawn.iter(f"{SVG}g")
    assert one.get("visibility") == "hidden" and two.get("visibility") is None
    moments = dict(re.findall(r"@keyframes (k\d) { (.*) } \.", text))
    at = [f"{100 * second / (2 + HOLD):.3f}%" for second in range(3)]
    assert moments[one.get("class")] == (
        f"{at[0]} {{ visibility: hidden }} {at[1]} {{ visibility: visible }} {at[2]} {{ visibility: hidden }}"
    )
    assert moments[two.get("class")] == f"{at[0]} {{ visibility: hidden }} {at[2]} {{ visibility: visible }}"


def test_the_recording_is_whole_and_fetches_nothing() -> None:
    text = PICTURE.read_text(encoding="utf-8")
    said = " ".join(one.text or "" for one in ElementTree.fromstring(text).iter(f"{SVG}text"))
    assert "All 5,000 messages arrived once, in order and unchanged" in said and "hardworker" in said
    assert re.findall(r"\w+:/[^\"]*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"@import|url\(|href|<script|<image", text)
    assert not re.search(r"/(?:home|root|tmp|var)/", text)
    assert len(text) < 200_000
    assert f"]({PICTURE.relative_to(ROOT)})" in (ROOT / "README.md").read_text(encoding="utf-8")
