"""The report as one HTML page: style and plots are in it, and nothing is fetched from anywhere."""

from collections.abc import Iterator, Sequence
from html import escape

from midstream_bench.receiver import Family, Receiver
from midstream_bench.report import counts, plots
from midstream_bench.report.markdown import conditions, remarks, windows
from midstream_bench.report.overview import overviews
from midstream_bench.report.results import COLUMNS, Results, full_title, job, mark, show
from midstream_bench.scenario import Scenario

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --quiet: #666d75; --line: #d9dde2; --paper: #fff;
        --soft: #f5f7f9 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --quiet: #9aa3ac; --line: #3a4048; --paper: #16191d; --soft: #1e2227 }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1320px; margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.6rem; margin-bottom: .3rem } h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem }
.conditions, .notes { color: var(--quiet); font-size: .88rem; padding-left: 1.1rem }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem;
        white-space: nowrap }
th, td { padding: .28rem .6rem; border-bottom: 1px solid var(--line); text-align: right }
th { font-weight: 600; white-space: normal; vertical-align: bottom;
     position: sticky; top: 0; background: var(--paper) }
.scenarios th:nth-child(n+3) { min-width: 5.4rem }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper) }
tr:hover td { background: var(--soft) } td small { color: var(--quiet) }
td:first-child::before { content: ""; display: inline-block; width: .6rem; height: .6rem; margin-right: .5rem;
                         border-radius: 2px; background: var(--family) }
.candid { background: var(--soft); border-left: 3px solid var(--line); padding: .6rem 1rem; font-size: .9rem }
.candid ul { margin: .3rem 0; padding-left: 1.1rem }
svg { max-width: 100%; height: auto; display: block; margin: .8rem 0 }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif } svg .tick { fill: var(--quiet) }
svg .value { font-weight: 600 } .grid { stroke: var(--line) }
.whisker { stroke: var(--ink); stroke-width: 1.5 }
.legend span { margin-right: 1.2rem; font-size: .88rem }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .4rem }
"""

_FAMILIES = {
    Family.FLOOR: "the floor: forwards, stores nothing",
    Family.MIDSTREAM: "midstream",
    Family.HANDLER: "ordinary sockets",
    Family.MIDDLEWARE: "middleware",
}


def html(results: Results) -> str:
    """The whole page."""
    return "\n".join(_page(results)) + "\n"


def _page(results: Results) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width">'
    yield f"<title>midstream benchmark</title>\n<style>{_STYLE}</style>\n</head>\n<body>"
    yield "<h1>What a message costs the hardworker</h1>"
    lines = [*conditions(results.environment), *([windows(results)] if results.runs else [])]
    yield f'<ul class="conditions">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'
    legend = (
        f'<span><i style="background:{plots.COLOURS[family]}"></i>{name}</span>'
        for family, name in _FAMILIES.items()
    )
    yield f'<p class="legend">{"".join(legend)} bars: dark the NAPI thread, light the application</p>'
    for table in overviews(results):
        yield f"<h2>{escape(table.heading)}</h2>"
        yield '<div class="scenarios">'
        yield from _plain(table.columns, table.rows)
        yield "</div>"
    for scenario in results.measured():
        yield f'<h2 id="{scenario.name}">{escape(scenario.title)}</h2>'
        rows = results.rows(scenario)
        yield from _counts(results, scenario)
        if not rows:
            continue
        yield plots.bars(rows)
        if not scenario.is_saturation:
            yield plots.latencies(rows)
        yield f'<div class="wide">{"".join(_table(results, scenario))}</div>'
        yield "".join(_candid(results, scenario))
        notes = [
            f"{full_title(receiver)}: {text}" for receiver, cell in rows for text in remarks(receiver, cell)
        ]
        if notes:
            yield f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>'
    yield "</body>\n</html>"


def _table(results: Results, scenario: Scenario) -> Iterator[str]:
    counted = bool(results.counts(scenario))
    names = ["receiver", "job", *COLUMNS.values(), "CPU ×"]
    names += ["thousand instructions"] if counted else []
    names += ["a whole core"] if scenario.is_saturation else []
    yield f"<table><thead><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr></thead><tbody>"
    for receiver, cell in results.rows(scenario):
        if not cell.values:
            continue
        fields = [escape(receiver.title) + mark(cell), job(receiver)]
        for figure in COLUMNS:
            text = show(figure, cell.median(figure))
            if figure == "cpu_us" and (value := cell.values.get(figure)) and value.count > 1:
                text += f" <small>({show(figure, value.low)}–{show(figure, value.high)})</small>"
            fields.append(text)
        ratio = results.ratio(scenario, cell)
        fields.append("–" if ratio is None else f"{ratio:.2f}")
        fields += [show("", results.instructions(scenario, receiver))] if counted else []
        fields += [show("rate", results.capacity(cell))] if scenario.is_saturation else []
        colour = plots.COLOURS[receiver.family]
        yield f'<tr style="--family:{colour}">{"".join(f"<td>{text}</td>" for text in fields)}</tr>'
    yield "</tbody></table>"


def _plain(columns: Sequence[str], rows: Sequence[tuple[Receiver, list[str]]]) -> Iterator[str]:
    """A table of text, a receiver a row."""
    yield '<div class="wide"><table><thead><tr>'
    yield f"{''.join(f'<th>{escape(name)}</th>' for name in columns)}</tr></thead><tbody>"
    for receiver, fields in rows:
        cells = "".join(f"<td>{escape(field)}</td>" for field in fields)
        yield f'<tr style="--family:{plots.COLOURS[receiver.family]}">{cells}</tr>'
    yield "</tbody></table></div>"


def _counts(results: Results, scenario: Scenario) -> Iterator[str]:
    """What a virtual machine counted."""
    if not results.counts(scenario):
        return
    yield f"<p>{counts.HEADING}</p>"
    if rows := counts.table(results, scenario):
        yield from _plain(counts.COLUMNS, rows)
    if reasons := counts.without(results, scenario):
        yield f'<ul class="notes">{"".join(f"<li>{escape(reason)}</li>" for reason in reasons)}</ul>'


def _candid(results: Results, scenario: Scenario) -> Iterator[str]:
    reference = results.reference(scenario)
    if reference is None:
        return
    title = escape(reference[0].title)
    if found := results.not_better(scenario):
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in found)
        yield f'<div class="candid">Where {title} is not better:<ul>{items}</ul></div>'
    else:
        yield f'<div class="candid">Nothing measured here was better than {title} in these figures.</div>'
