"""What the verifier has against a program: a few lines of its log, which is as long as it had to think.

The log repeats each instruction and each line of the source that it came by. What is wrong follows the last
of them. Behind it stand figures and, from Linux 7.3 on, a report with a reason, the place, and advice.
"""

import re

BEGIN, END = "-- BEGIN PROG LOAD LOG --", "-- END PROG LOAD LOG --"
"""libbpf's words around a log."""

_MOST = 8  # lines of what is wrong: a report has a few, none of them has more
_INSTRUCTION = re.compile(r"\d+: \([0-9a-f]{2}\) ")
_SOURCE = re.compile(r"; (?P<text>.*?)(?: @ (?P<place>[^ ]+:\d+))?$")
_REPORT = "Verification failed:"
_HEADINGS = re.compile(r"(Reason|At|Causal path|Suggestion):$")
_FIGURES = re.compile(
    r"processed \d+ insns|verification time|stack depth|cur state:|old state:|mark_precise:|func#\d|"
    r"(from \d+ to )?\d+: R\d|(from \d+ to )?\d+: (safe|frame\d)|regs=|parent |last_idx|"
    r"(Live regs|[a-z_ ]*precise|propagating|returning from|caller:|callee:)"
)


def explain(log: str) -> list[str]:
    """The line of the source, the instruction, and what is wrong with it, from libbpf's words of a refusal.

    Nothing if there is no log of a verifier in it, or one that ends before it says what is wrong.
    """
    _, found, rest = log.partition(BEGIN)
    if not found:
        return []
    lines = [line.strip() for line in rest.partition(END)[0].splitlines()]
    last = max((n for n, line in enumerate(lines) if _INSTRUCTION.match(line)), default=-1)
    sources = [match for line in lines[: last + 1] if (match := _SOURCE.match(line))]
    told = []
    if sources:
        place = sources[-1]["place"]
        told.append(f"{place}: {sources[-1]['text']}" if place else sources[-1]["text"])
    if last >= 0:
        told.append(lines[last].partition(";")[0].strip())
    wrong = _wrong(lines[last + 1 :])[:_MOST] if END in rest else []
    return told + wrong if wrong else []


def _wrong(lines: list[str]) -> list[str]:
    """Of what follows the last instruction, what says why."""
    plain, reason, heading = [], [], ""
    for line in lines:
        if line.startswith(_REPORT):
            heading = _REPORT
            reason.append(line)
        elif heading and (match := _HEADINGS.match(line)):
            heading = match[1]
        elif heading == "Reason" and line:
            reason.append(line)
        elif not heading and line and not _FIGURES.match(line) and not _SOURCE.match(line):
            plain.append(line)
    return plain + reason
