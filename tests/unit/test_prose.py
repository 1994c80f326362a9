"""What people read is read once: no sentence of the documentation has more than 25 words.

Code, tables and headings are not sentences. Neither is generated output: EXEMPT names it with the reason.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 25
EXEMPT = {
    f"bench/docs/{name}.md": "midstream bench writes it"
    for name in ("benchmark-run", "benchmark-run-2026-11-28")
}
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "bench/docs/*.md")
    for path in ROOT.glob(pattern)
    if str(path.relative_to(ROOT)) not in EXEMPT
)

FENCE = re.compile(r" *(`{3,}|~{3,}).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
ITEM = re.compile(r"(?:[-*+]|\d+\.) ")
END = re.compile(r"(?<=[.!?])[)\"*_]*\s+(?=[\"*_(`\[]*\S)")
ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|No)|…)\.?$")
WORD = re.compile(r"[^\W_](?:[\w'’./:%@+-]*\w)?")


def paragraphs(text: str) -> Iterator[str]:
    """Running text alone, a paragraph or an item of a list at a time."""
    text = re.sub(r"<!--.*?-->|<svg.*?</svg>", "", text, flags=re.DOTALL)
    lines: list[str] = []
    for line in [*FENCE.sub("", text).splitlines(), ""]:
        words = line.strip()
        begins = ITEM.match(words)
        if lines and (begins or not words or words.startswith(("|", "#"))):
            yield " ".join(lines)
            lines = []
        if words and not words.startswith(("|", "#")):
            lines.append(words[begins.end() :] if begins else words)


def sentences(text: str) -> Iterator[str]:
    """Code and links count as what is read of them: code as one word, a link as its words."""
    for paragraph in paragraphs(text):
        read = re.sub(r"(`+).+?\1", "code", paragraph)
        read = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", read)
        rest = ""
        for part in END.split(read):
            rest = f"{rest} {part}".strip()
            if not ABBREVIATION.search(rest):
                yield rest
                rest = ""
        if rest:
            yield rest


@pytest.mark.parametrize("page", PAGES)
def test_no_sentence_is_longer_than_one_reading(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    long = [
        (len(words), sentence) for sentence in sentences(text) if len(words := WORD.findall(sentence)) > LIMIT
    ]
    assert not long, "\n".join(f"{count} words: {sentence}" for count, sentence in long)


def test_what_a_sentence_is() -> None:
    text = """# A heading. It is none.

One of `two. or` three, e.g. this
one. And [a link. of](that.md) it: still *one.*

- An item
- Another? Yes.

| a | table. |

```sh
code. more
```
"""
    assert list(sentences(text)) == [
        "One of code three, e.g. this one.",
        "And a link.",
        "of it: still *one.*",
        "An item",
        "Another?",
        "Yes.",
    ]


def test_what_is_exempt_is_there() -> None:
    for page in EXEMPT:
        assert (ROOT / page).exists()
