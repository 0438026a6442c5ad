"""Plugins as `rl plugin new` writes them, sound or with one deliberate mistake, and what their suite says."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from rl_plugin_kit.outcome import outcomes
from rl_plugin_kit.suites import suite_of

ELSEWHERE = (
    "test_a_ray_worker_receives_its_config_and_builds_it",
    "test_a_tiny_run_continues_exactly_where_it_stopped",
)
"""Rules that need Ray; they are the same for all kinds and tested once, in test_ray_worker.py and test_tiny_run.py."""


@pytest.fixture
def findings(generate) -> Callable[..., dict[str, str]]:
    """``findings(kind, {old: new}, file=…)``: rule → message, for the rules that a changed package breaks."""

    def findings(
        kind: str, changes: Mapping[str, str] | None = None, *, file: str = "", also: tuple[str, ...] = ()
    ) -> dict[str, str]:
        for other in also:
            generate(other)
        names, folder = generate(kind)
        path = folder / "src" / names.module / (file or f"{'source' if kind == 'data' else kind}.py")
        text = path.read_text()
        for old, new in (changes or {}).items():
            assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path.name}"
            text = text.replace(old, new)
        path.write_text(text)
        given = {
            "component": "my-first",
            "fields": {"path": str(folder / "tests" / "rows.txt")} if kind == "data" else {},
        }
        suite = type("Suite", (suite_of(names.kind.component),), given)
        found = list(outcomes(suite, without=ELSEWHERE))
        assert len(found) >= 4
        return {one.rule: one.detail for one in found if one.status != "ok"}

    return findings
