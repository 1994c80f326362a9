"""The report: what is measured is in it, what is not is told, and the page needs nothing else."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from bench.tests.unit.runs import (
    ABSENT,
    ALONE,
    BUSY,
    FLOOR,
    FULL,
    HANDLER,
    LOSSY,
    OURS,
    QUEUE,
    RECEIVERS,
    SCENARIOS,
    run,
)

from midstream_bench.machine.counted import Counted
from midstream_bench.report import Results, html, markdown
from midstream_bench.report.results import REFERENCE, show
from midstream_bench.run import Run

ENVIRONMENT = {
    "date": "2026-11-25 12:00 UTC",
    "seconds": 3.0,
    "kernel": "6.1.0",
    "cpu": "A CPU",
    "cores": 2,
    "virtual": True,
    "packages": {"pyzmq": "26.0"},
    "programs": {},
    "settings": {"congestion control": "cubic"},
}
RUNS = [
    *(run(FLOOR, repetition=n, cpu=5.0) for n in (1, 2, 3)),
    *(run(OURS, repetition=n, cpu=cpu) for n, cpu in enumerate((9.0, 10.0, 12.0), 1)),
    run(HANDLER, cpu=40.0),
    run(ALONE, cpu=8.0),
    run(QUEUE, cpu=10.4),
    run(ABSENT, problems=("not installed: absent",), figures={}),
    run(OURS, FULL, cpu=4.0),
]


@pytest.fixture
def results() -> Results:
    return Results(RUNS, RECEIVERS, SCENARIOS, ENVIRONMENT)


def test_every_receiver_is_in_the_table_or_told_of(results: Results) -> None:
    text = markdown(results)
    section = text.partition(f"## {BUSY.title}")[2]
    table = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert [fields[0].strip("| ") for fields in table[1:6]] == [
        "the floor",
        "midstream, NumPy",
        "C, epoll",
        "C, epoll",
        "A <queue> & more",
    ]
    assert table[2][2] == "10 (9–12)" and table[2][-1].strip("| ") == "1.00"
    assert table[4][2] == "40" and table[4][-1].strip("| ") == "4.00"
    assert "- Absent: no figure: not installed: absent" in text
    assert "- A <queue> & more: the broker runs on the logger" in text
    assert "Linux 6.1.0, 2 cores of A CPU (virtual machine)" in text
    assert "## 16 × 100 Hz × 1 KiB" in text and "0.1% loss" not in text


def test_it_says_where_midstream_is_not_better(results: Results) -> None:
    found = results.not_better(BUSY)
    assert found[0] == (
        "CPU time (10 µs): less with C, epoll (receives only) (8); within 10% of it A <queue> & more (10.4)"
    )
    assert found[-1].startswith(
        "memory (30 MiB): within 10% of it C, epoll (receives only) (30), C, epoll (30)"
    )
    assert not [sentence for sentence in found if "floor" in sentence]
    assert all(f"- {sentence}" in markdown(results) for sentence in found)
    alone = Results([run(OURS)], RECEIVERS, SCENARIOS, ENVIRONMENT)
    assert "Nothing measured here was better than midstream, NumPy" in markdown(alone)
    assert "not better" not in markdown(Results([run(HANDLER)], RECEIVERS, SCENARIOS, {}))


def test_doubtful_figures_are_marked() -> None:
    results = Results([run(OURS, disturbed=("qemu",))], RECEIVERS, SCENARIOS, {})
    assert "| midstream, NumPy * |" in markdown(results)
    assert "- midstream, NumPy: doubtful: qemu" in markdown(results)
    assert html(results).count("midstream, NumPy *") == 3  # the table and two plots


def test_saturation_tells_what_a_core_could_take(results: Results) -> None:
    cell = results.cells[FULL.name, OURS.name]
    assert results.capacity(cell) == pytest.approx(1600 / (1.5 * 4 * 1600 / 1e6))
    assert "| a whole core |" in markdown(results)
    assert not [sentence for sentence in results.not_better(FULL) if "latency" in sentence]


def test_what_a_virtual_machine_counted_stands_beside_it() -> None:
    ours = Counted("ours", 4250.0, 2400, 2400, 1.49, 1.5, 0.02, 4, 0.3, 0.3, 0.1)
    behind = replace(ours, receiver="handler", instructions=34000.0, problems=("fell behind",))
    alone = replace(ours, receiver="alone", instructions=17000.0)
    none = Counted("absent", problems=("not installed: absent",))
    row = {one.receiver: one for one in (ours, behind, alone, none)}
    machine = {BUSY.name: row, LOSSY.name: row}  # of the second there are no runs in a lab
    results = Results(RUNS, RECEIVERS, SCENARIOS, ENVIRONMENT, machine)
    text, page = markdown(results), html(results)
    assert "| 4.25 |" in text and "<td>4.25</td>" in page
    line = (
        "| C, epoll (receives only) | receives only | 17.00 | 4.00 | 0.30 | 0.10 "
        "| 2400 / 2400 | 1.49 / 1.50 | 4 | 2% |"
    )
    assert text.count(line) == 2 and f"## {LOSSY.title}" in text
    assert "34.00" not in text and "- C, epoll: fell behind" in text and "- Absent: not installed" in text
    assert page.count("<td>17.00</td>") == 2 and "34.00" not in page and "C, epoll: fell behind" in page
    Balance().feed(page)


def test_all_are_compared_with_the_same_receiver_if_it_has_a_figure() -> None:
    usual = replace(OURS, name=REFERENCE, title="midstream, usual")
    counted = {name: Counted(name, cost, due=1) for name, cost in (("ours", 4000.0), (REFERENCE, 5000.0))}
    runs, receivers = [run(OURS, cpu=4.0), run(usual, cpu=5.0)], (OURS, usual)
    results = Results(runs, receivers, SCENARIOS, ENVIRONMENT, {BUSY.name: counted})
    assert (reference := results.reference(BUSY)) and reference[0] is usual
    assert results.counted_reference(BUSY) is counted[REFERENCE]
    failed = [run(OURS, cpu=4.0), Run(REFERENCE, BUSY.name, 1, problems=("lost 3",))]
    results = Results(failed, receivers, SCENARIOS, ENVIRONMENT, {BUSY.name: {"ours": counted["ours"]}})
    assert (reference := results.reference(BUSY)) and reference[0] is OURS
    assert results.counted_reference(BUSY) is counted["ours"]


def test_an_overview_has_a_column_for_each_scenario(results: Results) -> None:
    text, page = markdown(results), html(results)
    heading = "CPU time in the lab, µs a message"
    (line,) = [line for line in text.partition(f"## {heading}")[2].splitlines()[:4] if "receiver" in line]
    assert line == f"| receiver | job | {' | '.join(scenario.title for scenario in results.measured())} |"
    assert f"<h2>{heading}</h2>" in page
    one = Results(RUNS[:1], RECEIVERS, SCENARIOS, ENVIRONMENT)
    assert heading not in markdown(one) and heading not in html(one)


def test_one_reason_for_all_is_told_once() -> None:
    machine = {FULL.name: {name: Counted(name, problems=("not counted",)) for name in ("ours", "handler")}}
    results = Results([], RECEIVERS, SCENARIOS, ENVIRONMENT, machine)
    assert "- every receiver: not counted" in markdown(results)
    Balance().feed(html(results))


def test_the_page_is_whole_and_needs_nothing_else(results: Results) -> None:
    page = html(results)
    Balance().feed(page)
    assert not re.search(r"""(?:src|href)=["'](?!#)|@import|url\(|<script""", page)
    assert "A &lt;queue&gt; &amp; more" in page and "<queue>" not in page
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 3  # a flood has no latencies
    for plot in plots:
        drawn = ElementTree.fromstring(plot)
        assert {text.text for text in drawn.iter("text")} >= {"midstream, NumPy"}
    bars = ElementTree.fromstring(plots[0])
    widths = [float(bar.get("width", "0")) for bar in bars.iter("rect")]
    assert sum(widths[6:8]) == pytest.approx(8 * sum(widths[0:2]), rel=0.02)  # 40 µs and 5


def test_a_report_of_one_run_that_failed() -> None:
    results = Results([Run("ours", BUSY.name, 1, problems=("lost 3",))], RECEIVERS, SCENARIOS, {})
    assert "midstream, NumPy: no figure: lost 3" in markdown(results)
    Balance().feed(html(results))


@pytest.mark.parametrize(
    ("figure", "value", "text"),
    [
        ("cpu_us", 3.14159, "3.14"),
        ("cpu_us", 314.159, "314"),
        ("rate", 1234567.8, "1,234,568"),
        ("busy", 0.051, "5.1%"),
    ],
)
def test_figures_have_three_digits(figure: str, value: float, text: str) -> None:
    assert show(figure, value) == text
    assert show(figure, None) == "–"


class Balance(HTMLParser):
    """Asserts that tags are closed in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None: ...

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
