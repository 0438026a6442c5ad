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


def test_the_quickstart_learns_addition(rl, tmp_path):
    done = rl("run", EXAMPLES / "quickstart.yaml", f"run.directory={tmp_path}/run", timeout=900)
    rows = metrics_of(tmp_path / "run")
    accuracy = {
        s: [r["eval/accuracy"] for r in rows if r["stage"] == s and "eval/accuracy" in r] for s in ("sft", "grpo")
    }
    assert 0.45 < accuracy["sft"][-1] < 0.75, "noisy demonstrations leave a middling accuracy"
    assert accuracy["grpo"][-1] >= 0.97
    assert max(r.get("mismatch/max_abs_logprob_gap", 0.0) for r in rows) < 1e-4
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "curves.png" in done.stdout
    assert len(re.findall(r"^.\s*\d\d\+\d\d=", done.stdout, re.M)) == 10, done.stdout


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
    rl("run", EXAMPLES / "gsm8k-sft.yaml", *paths, f"run.directory={run}", timeout=1200)
    losses = [r["eval/loss"] for r in metrics_of(run) if "eval/loss" in r]
    vocabulary = json.loads((run / "export" / "config.json").read_text())["vocab_size"]
    assert abs(losses[0] - math.log(vocabulary)) < 0.3
    assert losses[-1] < 4.0
    rl("export", run, "--step", 100, "--to", tmp_path / "hf")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (run / "export" / name).read_bytes()
    done = rl("eval", run)
    assert float(re.search(r"eval/loss\s+([\d.]+)", done.stdout).group(1)) == pytest.approx(losses[-1], rel=1e-5)
