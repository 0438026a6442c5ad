"""The examples with environments learn what they say: to use a tool, and to win a game."""

from __future__ import annotations

import json

import pytest
from support import EXAMPLES, metrics_of

pytestmark = pytest.mark.slow


def samples_of(run, **where):
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    return [row for row in rows if all(row.get(key) == value for key, value in where.items())]


def test_a_model_learns_to_use_the_calculator(rl, tmp_path):
    run = tmp_path / "run"
    rl("run", EXAMPLES / "calculator.yaml", f"run.directory={run}", timeout=1200)
    rows = metrics_of(run)
    measured = {s: [r for r in rows if r["stage"] == s and "eval/accuracy" in r] for s in ("sft", "grpo")}
    before, after = measured["grpo"][0], measured["grpo"][-1]
    assert before["eval/accuracy"] < 0.3, "after supervised training it guesses more often than it asks"
    assert after["eval/accuracy"] >= 0.95
    assert (before["eval/turns_mean"] < 1.5, after["eval/turns_mean"] > 1.9) == (True, True)
    steps = [r for r in rows if r["stage"] == "grpo" and "rollout/reward_mean" in r]
    assert max(r["mismatch/max_abs_logprob_gap"] for r in steps) < 1e-4, "trained are the tokens that were sampled"
    assert all(r["rollout/environment_errors"] == 0 for r in steps)
    written = sum(r["rollout/completion_tokens_mean"] * r["train/sequences"] for r in steps)
    assert sum(r["train/loss_tokens"] for r in steps) == pytest.approx(written), "and no others"
    shown = samples_of(run, stage="grpo", evaluator="accuracy")[-1]
    assert [m["role"] for m in shown["messages"]] == ["assistant", "tool", "assistant"]
    assert shown["messages"][1]["content"] == shown["messages"][2]["content"] == shown["answer"]
    assert shown["completion"].splitlines()[1] == f"tool: {shown['answer']}"


def test_a_model_learns_a_game_from_its_results(rl, tmp_path):
    run = tmp_path / "run"
    rl("run", EXAMPLES / "nim.yaml", f"run.directory={run}", timeout=1200)
    rows = metrics_of(run)
    won = [r["eval/accuracy"] for r in rows if "eval/accuracy" in r]
    assert won[0] < 0.5
    assert won[-1] >= 0.75
    steps = [r for r in rows if "rollout/reward_mean" in r]
    assert steps[0]["rollout/environment_reward_mean"] == steps[0]["rollout/reward_mean"] < -0.3
    assert steps[-1]["rollout/reward_mean"] > 0.6
    assert max(r["mismatch/max_abs_logprob_gap"] for r in steps) < 1e-4
