"""Preference learning through the command line, Ray and the real backend."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from rl_algo_dpo.records import RecordFile

pytestmark = pytest.mark.slow

TINY = """\
run: {{name: tiny-dpo, directory: {run}, steps: 10, cpus: 1}}
model:
  init: {{architecture: qwen2, hidden_size: 32, layers: 2, heads: 2, ffn: 64}}
  max_length: 16
tokenizer: {{name: characters, vocab_size: 32}}
backend: {{name: fsdp2, max_tokens_per_microbatch: 40}}
algorithm: {{name: dpo, pairs_per_step: 4, learning_rate: 1.0e-3}}
data: {{name: jsonl, path: {data}}}
"""
ROWS = 16


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """DPO on sixteen pairs, four a step: an epoch is four steps, and a step several micro-batches."""
    data = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": str(i * 7)} for i in range(ROWS)]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    path = tmp_path / "dpo.yaml"
    path.write_text(TINY.format(run=tmp_path / "run", data=data))
    return path


def metrics_of(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.startswith("time/") and "per_second" not in k} for r in rows]


def test_two_ranks_train_as_one_from_a_loss_of_ln_2(config, rl, tmp_path):
    for ranks in (1, 2):
        rl("run", config, f"backend.parallel.dp={ranks}", f"run.directory={tmp_path}/{ranks}")
    one, two = metrics_of(tmp_path / "1"), metrics_of(tmp_path / "2")
    assert len(one) == 10
    assert one[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert one[-1]["train/loss"] < math.log(2) - 0.01
    for a, b in zip(one, two, strict=True):
        assert (b["train/loss"], b["train/grad_norm"]) == pytest.approx(
            (a["train/loss"], a["train/grad_norm"]), rel=1e-5
        )


def test_a_resumed_run_repeats_the_whole_one_bit_by_bit(config, rl, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    rl("run", config, f"run.directory={whole}")
    rl("run", config, f"run.directory={broken}", "run.steps=3")
    cache = RecordFile(broken / "reference_logprobs" / "logprobs.bin")
    assert len(cache.load()) == 4 + 2 * 3 * 4  # the probe, and three steps of four pairs
    with cache.path.open("ab") as file:
        file.write(b"RLR1 torn")
    rl("resume", broken, "run.steps=10")
    assert metrics_of(broken) == metrics_of(whole)
    for name in ("export/model.safetensors", "reference_logprobs/logprobs.bin"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert len(cache.load()) == 4 + 2 * ROWS


def test_kto_at_a_learning_rate_of_zero_changes_nothing(config, rl, tmp_path):
    overrides = ["preset=kto", "pairs_per_step=16", "learning_rate=0"]
    held_out = [f"eval_data={{name: jsonl, path: {tmp_path}/pairs.jsonl}}", "evaluators=[{name: loss, every: 1}]"]
    rl("run", config, "run.steps=3", *(f"algorithm.{o}" for o in overrides), *held_out)
    rows = metrics_of(tmp_path / "run")
    assert [r["step"] for r in rows] == [0, 1, 2, 3]
    for row in rows:
        section = "train" if row["step"] else "eval"
        assert row[f"{section}/loss"] == pytest.approx(0.5, abs=1e-6)  # π = π_ref: σ(0) for both kinds
        assert row["eval/loss"] == pytest.approx(0.5, abs=1e-6)
        assert row["eval/kl"] == pytest.approx(0.0, abs=1e-5)


LEARNING = """\
run: {{name: learning, directory: {folder}/run, cpus: 1}}
backend: {{name: fsdp2}}
tokenizer: {{name: characters, vocab_size: 16}}
generator: {{name: hf, max_new_tokens: 3}}
rewards: [{{name: function, function: {folder}/letters.py:first_is_a}}]
eval_data: {{name: jsonl, path: {folder}/questions.jsonl}}
evaluators: [{{name: accuracy, max_new_tokens: 3, temperature: 1.0}}]
stages:
  - name: sft
    model:
      init: {{architecture: qwen2, hidden_size: 32, layers: 2, heads: 2, ffn: 64}}
      max_length: 16
    data: {{name: jsonl, path: {folder}/undecided.jsonl}}
    algorithm: {{name: sft, sequences_per_step: 16, learning_rate: 1.0e-2}}
    run: {{steps: 40}}
  - name: dpo
    model: {{path: "${{stages.sft.export}}", max_length: 16}}
    data: {{name: jsonl, path: {folder}/pairs.jsonl}}
    algorithm: {{name: dpo, pairs_per_step: 16, learning_rate: 3.0e-3}}
    run: {{steps: 40}}
"""


def test_dpo_makes_a_policy_do_what_the_pairs_prefer(rl, tmp_path):
    """A policy that answers a or b as it likes learns, from pairs alone, to answer a."""
    prompts = [f"{i}{j}:" for i in range(8) for j in range(8)]
    files = {
        "undecided": [{"prompt": p, "completion": c} for p in prompts[:48] for c in "ab"],
        "pairs": [{"prompt": p, "chosen": "a", "rejected": "b"} for p in prompts[:48]],
        "questions": [{"prompt": p} for p in prompts],
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "letters.py").write_text(
        "def first_is_a(samples):\n    return [float(s.completion == 'a') for s in samples]\n"
    )
    (tmp_path / "learning.yaml").write_text(LEARNING.format(folder=tmp_path))
    rl("run", tmp_path / "learning.yaml")
    rows = [r for r in metrics_of(tmp_path / "run") if r["stage"] == "dpo"]
    first, last = rows[1], rows[-1]
    assert rows[0]["eval/accuracy"] < 0.75
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert last["train/margin"] > 0.5
    assert last["train/preference_accuracy"] == 1.0
    assert last["eval/accuracy"] > 0.95
