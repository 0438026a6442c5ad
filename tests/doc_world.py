"""The folder that commands and Python blocks of the documentation run in, with the files that they mention."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

from support import EXAMPLES, ROOT

ROW = {"question": "2+3=", "prompt": "2+3=", "completion": "5", "answer": "#### 5", "chosen": "5", "rejected": "6"}
HH = {"chosen": "\n\nHuman: Hi.\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi.\n\nAssistant: No."}

TOOLS = '''
def calculator(expression: str) -> str:
    """The value of an arithmetic expression."""
    return expression


def search(query: str, limit: int = 3) -> list[str]:
    """Pages about a query."""
    return [query] * limit
'''
GUESS = """
class Guess:
    def __init__(self, largest=100):
        self.largest = largest

    def start(self, row, seed):
        return seed % self.largest

    def step(self, state, conversation):
        return None
"""


def make_world(folder: Path) -> Path:
    """A user's folder: data, a config, a finished run, and the examples of the repository."""
    (folder / "gsm8k").mkdir(parents=True)
    rows = "".join(json.dumps(ROW | {"prompt": f"{n}+3="}) + "\n" for n in range(300))
    for name in ("train.jsonl", "pairs.jsonl", "gsm8k/train.jsonl"):
        (folder / name).write_text(rows)
    with gzip.open(folder / "harmless-base.jsonl.gz", "wt") as file:
        file.write(json.dumps(HH) + "\n")
    for name in ("config.yaml", "c.yaml"):
        shutil.copy(ROOT / "docs" / "snippets" / "rollouts.yaml", folder / name)
    (folder / "my_tools.py").write_text(TOOLS)
    (folder / "guess.py").write_text(GUESS)
    run = folder / "runs" / "add2x"
    run.mkdir(parents=True)
    steps = ({"step": n, "stage": "train", "rollout/reward_mean": n / 10, "train/loss": 1 / n} for n in range(1, 10))
    (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (folder / "examples").symlink_to(EXAMPLES)
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    return folder


def add_reward_model(folder: Path) -> None:
    """A tiny reward model as a Hugging Face folder, with one token per byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForSequenceClassification

    letters = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<eos>", pad_token="<eos>").save_pretrained(folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "num_labels": 1, "pad_token_id": 0, "eos_token_id": 0}
    config = Qwen2Config(vocab_size=len(letters), max_position_embeddings=64, **shape, **heads)
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
