"""The examples learn what they say."""

import json
import math
import os
import random
import re
from pathlib import Path

import pytest
from support import EXAMPLES, metrics_of

pytestmark = pytest.mark.slow


def gsm8k_rows(tmp_path):
    """The real training file where RL_DATASETS has it, else rows of its form."""
    real = Path(os.environ.get("RL_DATASETS", "/nonexistent")) / "gsm8k" / "train.jsonl"
    if real.is_file():
        return real
    rng, path = random.Random(0), tmp_path / "train.jsonl"
    names, things = ["Natalia", "Weng", "Betty", "Julie", "James"], ["clips", "books", "coins", "pages", "eggs"]
    with path.open("w") as file:
        for _ in range(1500):
            a, b, who, what = rng.randint(2, 90), rng.randint(2, 90), rng.choice(names), rng.choice(things)
            question = f"{who} has {a} {what} and buys {b} more {what}. How many {what} does {who} have now?"
            answer = f"{who} has {a} + {b} = <<{a}+{b}={a + b}>>{a + b} {what} now.\n#### {a + b}"
            file.write(json.dumps({"question": question, "answer": answer}) + "\n")
    return path


def test_supervised_training_on_gsm8k_then_export_and_eval(rl, tmp_path):
    data, run = gsm8k_rows(tmp_path), tmp_path / "run"
    paths = [f"data.path={data}", f"eval_data.path={data}"]
    rl("run", EXAMPLES / "gsm8k-sft.yaml", *paths, f"run.directory={run}", "run.steps=50", timeout=1200)
    losses = [r["eval/loss"] for r in metrics_of(run) if "eval/loss" in r]
    vocabulary = json.loads((run / "export" / "config.json").read_text())["vocab_size"]
    assert abs(losses[0] - math.log(vocabulary)) < 0.3
    assert losses[-1] < 4.5
    rl("export", run, "--step", 50, "--to", tmp_path / "hf")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (run / "export" / name).read_bytes()
    done = rl("eval", run)
    assert float(re.search(r"eval/loss\s+([\d.]+)", done.stdout).group(1)) == pytest.approx(losses[-1], rel=1e-5)


def test_ppo_with_a_value_model_learns_addition(rl, tmp_path):
    fewer = ["stages.sft.run.steps=900", "stages.ppo.run.steps=40"]
    rl("run", EXAMPLES / "quickstart-ppo.yaml", *fewer, f"run.directory={tmp_path}/run", timeout=900)
    rows = metrics_of(tmp_path / "run")
    accuracy = {
        s: [r["eval/accuracy"] for r in rows if r["stage"] == s and "eval/accuracy" in r] for s in ("sft", "ppo")
    }
    assert 0.45 < accuracy["sft"][-1] < 0.75
    assert accuracy["ppo"][-1] >= 0.97


def test_the_pipeline_takes_a_model_through_every_algorithm_and_its_gates(rl, tmp_path):
    run = tmp_path / "run"
    rl("run", EXAMPLES / "pipeline.yaml", f"run.directory={run}", timeout=1500)
    rows = metrics_of(run)
    last = {stage: {} for stage in ("sft", "rm", "dpo", "ppo", "grpo", "eval")}
    for row in rows:
        last[row["stage"]] |= row
    assert last["rm"]["eval/preference_accuracy"] > 0.9
    assert last["dpo"]["eval/accuracy"] > last["sft"]["eval/accuracy"] + 0.2
    assert last["dpo"]["train/margin"] > 0.5
    rewards = [r["rollout/reward_mean"] for r in rows if r["stage"] == "ppo"]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 1.0, "PPO raises the reward model's score"
    assert last["eval"]["eval/accuracy"] >= 0.97

    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(run / "stages" / "rm" / "export")
    assert model.config.num_labels == 1


def preference_rows(tmp_path):
    """The real HH-RLHF pairs where RL_DATASETS has them, else rows of their form."""
    real = Path(os.environ.get("RL_DATASETS", "/nonexistent")) / "hh-rlhf" / "harmless-base.jsonl.gz"
    if real.is_file():
        return real
    rng, path = random.Random(0), tmp_path / "pairs.jsonl"
    topics = ["bread", "a kite", "tea", "a tent", "soup"]
    with path.open("w") as file:
        for i in range(400):
            prompt = f"\n\nHuman: How do I make {rng.choice(topics)} in {i} minutes?\n\nAssistant:"
            better, worse = f" Gladly. Take {i} minutes and go step by step.", " I do not know."
            file.write(json.dumps({"chosen": prompt + better, "rejected": prompt + worse}) + "\n")
    return path


@pytest.mark.parametrize("kind", ["rm", "dpo"])
def test_preference_training_runs_on_real_pairs(kind, rl, tmp_path):
    data, run = preference_rows(tmp_path), tmp_path / "run"
    paths = [f"data.path={data}", f"eval_data.path={data}"]
    rl("run", EXAMPLES / f"hh-rlhf-{kind}.yaml", *paths, f"run.directory={run}", "run.steps=8", timeout=900)
    rows = metrics_of(run)
    assert rows[1]["train/loss"] == pytest.approx(math.log(2), abs=1e-4), "every score starts equal"
    sequences = [r["train/sequences"] for r in rows[1:]]
    assert len(sequences) == 8
    assert all(n % 2 == 0 and 16 <= n <= 32 for n in sequences), "pairs stay whole, long ones are left out"
    assert rows[-1]["eval/loss"] < 0.8


def test_grpo_on_gsm8k_takes_two_steps_with_a_tiny_model(rl, tmp_path):
    data, run = gsm8k_rows(tmp_path), tmp_path / "run"
    tiny = [
        "run.gpus=0",
        "run.steps=2",
        "run.cpus=1",
        "model={init: {architecture: qwen2, hidden_size: 32, layers: 2, heads: 2}, max_length: 512}",
        "tokenizer={name: bpe, vocab_size: 512}",
        "backend={name: fsdp2}",
        "generator={name: hf, max_new_tokens: 16}",
        "algorithm.prompts_per_step=4",
        "algorithm.group_size=4",
        "algorithm.overlong={max_tokens: 16, buffer_tokens: 4}",
        "evaluators=[{name: accuracy, max_new_tokens: 16, limit: 8}]",
        "eval_data.limit=8",
        "data.limit=500",
    ]
    rl(
        "run",
        EXAMPLES / "gsm8k-grpo.yaml",
        f"data.path={data}",
        f"eval_data.path={data}",
        *tiny,
        f"run.directory={run}",
    )
    rows = metrics_of(run)
    assert [r["step"] for r in rows] == [0, 1, 2]
    assert rows[-1]["rollout/math/timeout"] == 0.0
    assert "rollout/kept_fraction" in rows[-1]
