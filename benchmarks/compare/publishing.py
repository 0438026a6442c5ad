"""The report on the screen and in the documentation."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from compare import overhead, utilisation
from compare.picture import draw
from compare.ratios import Comparison
from compare.results import Results
from compare.table import markdown

BEGIN = "<!-- compare: begin -->"
END = "<!-- compare: end -->"


def report(results: Results, comparisons: Sequence[Comparison]) -> str:
    """Markdown: the machine, the table, and what of the machine is used."""
    about = results.machine
    if not about:
        return "there are no results yet\n"
    head = (
        f"{about['processor']}, {about['cores']} cores, torch {about['torch']}, transformers {about['transformers']}, "
        f"Ray {about['ray']}."
    )
    used = [*utilisation.lines(results), *overhead.lines(results)]
    return "\n".join([head, "", markdown(comparisons, peer="TRL"), *used, *([""] if used else [])])


def publish(results: Results, comparisons: Sequence[Comparison], docs: Path) -> list[Path]:
    """Put the report into performance.md, and the picture and the JSON file into figures/; returns what was written."""
    page = docs / "performance.md"
    picture = draw(comparisons, docs / "figures" / "compare.png", peer="TRL")
    data = docs / "figures" / "compare.json"
    if results.path.resolve() != data.resolve():
        shutil.copyfile(results.path, data)
    shown = f"{report(results, comparisons)}\n![Ratios of throughput, this project to TRL](figures/compare.png)\n"
    page.write_text(between(page.read_text(), shown))
    return [page, picture, data]


def between(text: str, new: str) -> str:
    """``text`` with ``new`` between its two marks.

    Raises:
        ValueError: a mark is missing.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"the page must have the lines {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{new}{END}{rest.split(END)[1]}"
