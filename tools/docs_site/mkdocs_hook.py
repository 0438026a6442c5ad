"""mkdocs calls this: it adds the generated pages, and fixes links of pages that are also read in the repository."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from docs_site import commands, options
from docs_site.inventory import ROOT
from docs_site.links import relink, site_pages

ROLE = re.compile(r":(?:class|meth|func|mod|data|attr|exc):<code>~?([^<]+)</code>")


def on_files(files: Any, config: Any) -> Any:
    """Add what is made from the code, and the pages that lie outside of docs/."""
    made = options.pages() | {"reference/command-line.md": commands.page()}
    for source, page in site_pages().items():
        text = source.read_text()
        if source.suffix == ".yaml":
            text = f"# {source.name}\n```yaml\n{text}```\n"
        made[page] = relink(text, source=source, page=page)
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links out of docs/ lead to pages of the site."""
    source = ROOT / "docs" / page.file.src_uri
    return relink(markdown, source=source, page=page.file.src_uri) if source.is_file() else markdown


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Docstrings are written for Python's own tools: their roles become plain code."""
    return ROLE.sub(r"<code>\1</code>", html)
