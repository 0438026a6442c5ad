"""A reward model trained by ``rl run`` ranks held-out pairs."""

from __future__ import annotations

import json
import random

import pytest
from support import metrics_of
from transformers import AutoModelForSequenceClassification

CONFIG = """\
run: {{name: reward, directory: {run}, steps: 60, cpus: 1, require: eval/preference_accuracy > 0.9}}
model:
  init: {{architecture: qwen2, hidden_size: 32, layers: 2, heads: 2, ffn: 64}}
  max_length: 24
tokenizer: {{name: characters}}
backend: {{name: fsdp2}}
algorithm:
  name: rm
  pairs_per_step: 16
  learning_rate: 5.0e-3
  margin: gap
  center_rewards_coefficient: 0.01
data: {{name: jsonl, path: {data}/train.jsonl}}
eval_data: {{name: jsonl, path: {data}/test.jsonl}}
evaluators: [{{name: loss}}]
"""


def pair(rng: random.Random) -> dict:
    """The better completion has more a's than b's."""
    ups, length = rng.sample(range(7), 2), rng.randint(7, 9)
    texts = ["".join(rng.sample("a" * n + "b" * (length - n), length)) for n in sorted(ups, reverse=True)]
    gap = abs(ups[0] - ups[1]) / 4
    return {"prompt": f"{rng.randint(10, 99)}:", "chosen": texts[0], "rejected": texts[1], "gap": gap}


@pytest.mark.slow
def test_a_reward_model_ranks_held_out_pairs(rl, tmp_path):
    rng = random.Random(0)
    for name, count in (("train", 400), ("test", 100)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(pair(rng)) + "\n" for _ in range(count)))
    config = tmp_path / "rm.yaml"
    config.write_text(CONFIG.format(run=tmp_path / "run", data=tmp_path))
    checked = rl("check", config).stdout
    assert "an example is a pair of sequences: 32 sequences per step" in " ".join(checked.split())
    rl("run", config)
    lines = metrics_of(tmp_path / "run")
    assert lines[0]["eval/preference_accuracy"] == 0.5
    assert lines[1]["train/preference_accuracy"] == 0.5
    assert lines[-1]["eval/preference_accuracy"] > 0.9
    assert lines[-1]["train/loss"] < lines[1]["train/loss"]
    assert lines[-1]["train/sequences"] == 32
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "export")
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == 0
