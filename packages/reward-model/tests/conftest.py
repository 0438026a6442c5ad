"""A tiny reward model with its tokenizer, and samples to score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rl_core.contracts.reward import Sample
from rl_reward_model.config import ModelRewardConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForSequenceClassification

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and the special tokens; the end token pads too, as it does in many published models."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<eos>", "<bos>", *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>", chat_template=CHAT_TEMPLATE
    )


@pytest.fixture(scope="session")
def folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Hugging Face folder as a reward-model stage exports it, with scores of the size of 1."""
    path = tmp_path_factory.mktemp("reward-model")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        num_labels=1,
        pad_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    Qwen2ForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture
def config(folder: str) -> Callable[..., ModelRewardConfig]:
    def build(**fields: Any) -> ModelRewardConfig:
        return ModelRewardConfig.model_validate({"name": "model", "path": folder, **fields})

    return build


@pytest.fixture
def samples() -> list[Sample]:
    """Seven samples of lengths from 3 to 61 tokens; the second and the last are the same."""
    texts = [
        ("1+1=", "2"),
        ("Say hello.", " Hello, my dear friend!"),
        ("a", "b"),
        ("What is larger, a mouse or a house?", " A house is larger, I'd say."),
        ("Say hello.", ""),
        ("1+1=", "eleven"),
        ("Say hello.", " Hello, my dear friend!"),
    ]
    return [
        Sample(row={"prompt": prompt, "__where__": f"train.jsonl:{line}"}, prompt=prompt, completion=completion)
        for line, (prompt, completion) in enumerate(texts, start=1)
    ]


@pytest.fixture
def plain_scores(folder: str, tokenizer: PreTrainedTokenizerFast) -> Callable[..., list[float]]:
    """Each sample alone through the model without padding, its head at the end token."""
    model = Qwen2ForSequenceClassification.from_pretrained(folder).eval()

    def score(samples: list[Sample]) -> list[float]:
        found = []
        for sample in samples:
            ids = tokenizer(sample.row["prompt"])["input_ids"] + tokenizer(sample.completion)["input_ids"]
            with torch.inference_mode():
                hidden = model.model(torch.tensor([[*ids, tokenizer.eos_token_id]])).last_hidden_state
                found.append(model.score(hidden[0, -1]).item())
        return found

    return score
