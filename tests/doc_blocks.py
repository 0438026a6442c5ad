"""Fenced code blocks of the documentation: where they are and what language they say they are in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from support import ROOT

TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        where: ``docs/page.md:12``, the line of the opening fence.
        language: first word after the fence; empty if there is none.
        title: ``title="…"`` after it: the name of the file that the block shows, or empty.
        text: what stands between the fences.
    """

    where: str
    language: str
    title: str
    text: str


def pages() -> list[Path]:
    """Every page for readers: the documentation, the READMEs, what the repository says about taking part."""
    found = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "RELEASING")]
    found += [*ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/README.md")]
    found += [path for path in ROOT.glob("examples/**/*.md") if "runs" not in path.parts]
    return sorted(found)


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, from top to bottom, those inside of lists and admonitions included."""
    found = []
    for token in MarkdownIt("commonmark").parse(page.read_text()):
        if token.type != "fence":
            continue
        title = TITLE.search(token.info)
        words = token.info.split()
        where = f"{page.relative_to(ROOT)}:{token.map[0] + 1}"
        found.append(Block(where, words[0] if words else "", title[1] if title else "", token.content))
    return found
