"""The Python in the guide and in the README does what they say."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

PACKAGE = Path(__file__).resolve().parents[1]
GUIDE = PACKAGE.parents[1] / "docs" / "environments.md"


def python_blocks(path):
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


def test_the_readmes_example_runs():
    (example,) = python_blocks(PACKAGE / "README.md")
    names = {}
    exec(example, names)
    assert names["turn"].messages[0]["name"] == "basename"


def test_the_guides_examples_run(tmp_path, tools):
    thrift, search, guess = python_blocks(GUIDE)
    names = {}
    for block in (thrift, search, guess):
        exec(block, names)
    sample = SimpleNamespace(messages=[{"role": "assistant"}, {"role": "tool"}, {"role": "assistant"}])
    assert names["thrift"]([sample]) == [-1]
    assert names["search"]("tea", limit=1) == ["page 0 about tea"]
    game = names["Guess"](largest=3)
    state = game.start({}, seed=1)
    said = [game.step(state, [{"role": "assistant", "content": str(n)}]) for n in (1, 2, 3, "?")]
    assert [turn.done for turn in said].count(True) == 1
    assert next(turn for turn in said if turn.done).reward == 1.0
    assert said[-1].messages == [{"role": "user", "content": "lower"}]
