"""What Prometheus cannot hold, at the same address for people: the newest samples and the pictures of the run."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from prometheus_client import CollectorRegistry, make_wsgi_app
from rl_tracker_common.files import pictures
from rl_tracker_common.samples import sample_table

_HEAD = "<!doctype html><meta charset=utf-8><title>{title}</title><style>body{{font-family:sans-serif}} td,th\
{{border:1px solid #aaa;padding:4px;vertical-align:top;white-space:pre-wrap}} table{{border-collapse:collapse}}\
img{{max-width:100%}}</style><h1>{title}</h1><p><a href='metrics'>metrics</a></p>"

Answer = Callable[[str, list[tuple[str, str]]], Any]


class Page:
    """A WSGI application: ``/metrics`` for Prometheus, ``/`` and ``/plots/…`` for people."""

    def __init__(self, registry: CollectorRegistry, *, for_people: bool) -> None:
        self._metrics = make_wsgi_app(registry)
        self._for_people = for_people
        self._title, self._directory = "rl", ""
        self._samples: tuple[list[str], list[list[Any]]] = ([], [])

    def begin(self, title: str, directory: str) -> None:
        """A stage begins; ``directory``: of the run."""
        self._title, self._directory = title, directory

    def show(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The samples of a step take the place of the ones before."""
        self._samples = sample_table(step, rows)

    def __call__(self, environ: dict[str, Any], answer: Answer) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            return self._metrics(environ, answer)
        content, kind = None, ""
        if self._for_people:
            content, kind = self._content(path)
        if content is None:
            answer("404 Not Found", [("Content-Type", "text/plain")])
            return [b"not found\n"]
        # Samples are what a model wrote: nothing in them may run or load anything.
        safe = [("Content-Security-Policy", "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'")]
        answer("200 OK", [("Content-Type", kind), ("X-Content-Type-Options", "nosniff"), *safe])
        return [content]

    def _content(self, path: str) -> tuple[bytes | None, str]:
        drawn = {self._name(one): one for one in pictures(self._directory)} if self._directory else {}
        if path == "/":
            return self._html(list(drawn)).encode(), "text/html; charset=utf-8"
        found = drawn.get(unquote(path.removeprefix("/plots/")))
        return (found.read_bytes(), "image/png") if found is not None else (None, "")

    def _name(self, picture: Path) -> str:
        return str(picture.relative_to(self._directory))

    def _html(self, drawn: Sequence[str]) -> str:
        columns, rows = self._samples
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        body = ["".join(f"<td>{html.escape(str(value))}</td>" for value in row) for row in rows]
        table = f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in body) + "</table>"
        images = "".join(f"<h2>{html.escape(n)}</h2><img src='plots/{html.escape(n, quote=True)}'>" for n in drawn)
        return _HEAD.format(title=html.escape(self._title)) + (table if columns else "") + images
