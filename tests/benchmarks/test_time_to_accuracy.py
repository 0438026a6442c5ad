"""The race to an accuracy: what is read from the systems' progress, and the table."""

from __future__ import annotations

import sys

import pytest
from support import ROOT


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def result(system: str, seed: int, first: float, target: float | None) -> dict:
    return {"system": system, "seed": seed, "first_step_s": first, "target_s": target, "measured": []}


def test_ratios_are_of_the_same_seed_and_a_system_that_never_gets_there_loses():
    from time_to_accuracy.__main__ import table

    results = [
        result("rl", 0, 10.0, 30.0), result("trl", 0, 5.0, 60.0),
        result("rl", 1, 10.0, 40.0), result("trl", 1, 5.0, 65.0),
        result("rl", 2, 10.0, 35.0), result("trl", 2, 5.0, None),
    ]  # fmt: skip
    assert table(results).splitlines()[1:] == [
        "| seconds to 97 % | this project | TRL | ratio, median (least to most) | target |",
        "|---|---|---|---|---|",
        "| from the start of the process | 35.0 | 65.0 | **0.50** (0.00 to 0.62) | 0.6 ✓ |",
        "| from the end of the first step | 25.0 | 60.0 | **0.36** (0.00 to 0.50) | 0.6 ✓ |",
    ]
    lost = table([result("rl", 0, 10.0, None), result("trl", 0, 5.0, None)]).splitlines()
    assert lost[3] == "| from the start of the process | inf | inf | **inf** (inf to inf) | 0.6 ✗ |"


def test_progress_is_read_while_a_system_runs(tmp_path, monkeypatch):
    from time_to_accuracy import __main__ as module
    from time_to_accuracy.recipe import Recipe

    lines, progress = module._lines, tmp_path / "progress.jsonl"

    def told(path, process):
        """The system goes on when its line has been read."""
        for number, line in enumerate(lines(path, process)):
            yield line
            (tmp_path / f"read-{number}").touch()

    monkeypatch.setattr(module, "_lines", told)
    code = f"""
import json, os, time
steps = ("sft", 1, None), ("sft", 300, 0.5), ("grpo", 10, 0.98), ("grpo", 20, 0.99)
for number, (stage, step, accuracy) in enumerate(steps):
    with open({str(progress)!r}, "a") as file:
        file.write(json.dumps({{"stage": stage, "step": step, "accuracy": accuracy}}) + "\\n")
    deadline = time.monotonic() + 120
    while not os.path.exists(f"{tmp_path}/read-{{number}}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
"""
    recipe = Recipe(0, 1, tokenizer="", demonstrations="", questions="", held_out="", progress=str(progress))
    assert Recipe.read(str(recipe.write(tmp_path / "recipe.json"))).seed == 0
    found = module._run([sys.executable, "-c", code], progress, tmp_path / "log", recipe)
    assert found["measured"] == [["sft", 300, 0.5], ["grpo", 10, 0.98], ["grpo", 20, 0.99]]
    assert 0 < found["first_step_s"] < found["target_s"] < found["all_s"]


def test_the_recipe_is_the_examples():
    import yaml
    from time_to_accuracy.recipe import Recipe

    sft, grpo = yaml.safe_load((ROOT / "examples" / "quickstart.yaml").read_text())["stages"]
    shape, optimizer = sft["model"]["init"], sft["algorithm"]["optimizer"]
    assert (shape["hidden_size"], shape["layers"], shape["heads"], shape["ffn"]) == (
        Recipe.hidden_size, Recipe.layers, Recipe.heads, Recipe.ffn,
    )  # fmt: skip
    assert shape["extra"] == {"initializer_range": Recipe.initializer_range}
    assert (sft["run"]["steps"], sft["algorithm"]["sequences_per_step"]) == (Recipe.sft_steps, Recipe.sft_rows)
    assert float(sft["algorithm"]["learning_rate"]) == Recipe.sft_learning_rate
    assert (optimizer["warmup_steps"], tuple(optimizer["betas"])) == (Recipe.warmup_steps, Recipe.betas)
    assert sft["evaluators"][0]["every"] == Recipe.sft_measured_every
    assert (grpo["run"]["steps"], grpo["evaluators"][0]["every"]) == (Recipe.grpo_steps, Recipe.grpo_measured_every)
    assert (grpo["algorithm"]["prompts_per_step"], grpo["algorithm"]["group_size"]) == (
        Recipe.prompts,
        Recipe.group_size,
    )
    assert float(grpo["algorithm"]["learning_rate"]) == Recipe.grpo_learning_rate
