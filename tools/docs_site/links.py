"""Links between pages: the same Markdown is read in the repository and on the site, where folders differ."""

from __future__ import annotations

import os
import re
from pathlib import Path

from docs_site.inventory import ROOT, packages

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def site_pages() -> dict[Path, str]:
    """File of the repository → page of the site, for those that lie outside of docs/."""
    found = {ROOT / "README.md": "index.md"}
    for name, folder in packages().items():
        found[folder / "README.md"] = f"packages/{name}.md"
    for readme in sorted((ROOT / "examples" / "plugins").glob("*/README.md")):
        found[readme] = f"examples/{readme.parent.name}.md"
    for config in sorted((ROOT / "examples").glob("*.yaml")):
        found[config] = f"examples/{config.stem}.md"
    return found


def relink(text: str, *, source: Path, page: str) -> str:
    """Links of ``source``, a file of the repository, as they must be on ``page`` of the site.

    A link to a file that the site has no page for becomes plain text.
    """
    elsewhere = site_pages()

    def replace(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        if re.match(r"[a-z]+:", target):
            return match[0]
        file = Path(os.path.normpath(source.parent / target))
        if file in elsewhere or file / "README.md" in elsewhere:
            goal = elsewhere.get(file) or elsewhere[file / "README.md"]
        elif file.is_relative_to(ROOT / "docs"):
            goal = str(file.relative_to(ROOT / "docs"))
        elif not (source.parent / target).exists() and source.is_relative_to(ROOT / "docs"):
            return match[0]  # a generated page, which only the site has
        else:
            return label
        return f"[{label}]({os.path.relpath(goal, os.path.dirname(page) or '.')}{anchor})"

    return LINK.sub(replace, text)
