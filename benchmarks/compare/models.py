"""The models: Qwen2 shapes from scratch, saved once and loaded by every system.

For GRPO a model whose completions have known lengths although every token is sampled: a *countdown*. Its characters
stand on levels of two; behind a character of level n comes one of the two of level n - 1, with equal probability up to
what the layers add, and behind level 0 the end token (or, where completions are not to end, the highest level). So the
last character of a prompt decides how many tokens follow, in every system. The layers are random and compute as in any
other model: only the embedding and the output projection are made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rl_data_text.config import CharactersConfig
from rl_data_text.tokenizers.characters import CharacterTokenizer
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from compare.workloads import CHARACTERS, EOS, FIRST_CHARACTER, SIZES, SPECIAL_TOKENS, VOCABULARY, Workload

_LOUDNESS = 10.0
"""Of the embedding relative to what the layers add to it, which is below 1."""

_CERTAINTY = 30.0
"""Logit of the two characters that may follow, all others being near 0."""


def save_model(workload: Workload, size: str, folder: Path) -> Path:
    """Write model and tokenizer for ``workload``, unless they are there; returns their folder."""
    kind = "score" if workload.kind == "rm" else "plain"
    if workload.kind == "grpo":
        kind = "countdown" if workload.varied else "endless"
    target = folder / f"model-{size}-{kind}"
    if (target / "tokenizer.json").is_file():
        return target
    model = build(size, kind)
    model.save_pretrained(target)
    tokenizer = CharacterTokenizer(CharactersConfig(name="characters", alphabet=_alphabet(), vocab_size=VOCABULARY))
    tokenizer.load(None, [])
    tokenizer.save(str(target))  # last: now the folder is complete
    return target


def build(size: str, kind: str) -> PreTrainedModel:
    """A model of ``kind`` plain, score, countdown or endless, in float32."""
    torch.manual_seed(0)
    shape = SIZES[size]
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=512,
        tie_word_embeddings=kind == "plain",
        pad_token_id=0,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    config.num_labels = 1
    if kind == "score":
        return Qwen2ForSequenceClassification(config).float()
    model = Qwen2ForCausalLM(config).float()
    if kind != "plain":
        _count_down(model, ends=kind == "countdown")
    return model


@torch.no_grad()
def _count_down(model: Qwen2ForCausalLM, *, ends: bool) -> None:
    """Make the embedding's rows orthogonal, and the output projection the table of what follows what."""
    width = model.config.hidden_size
    rows = torch.linalg.qr(torch.randn(width, width))[0][:VOCABULARY]
    embedding: Any = model.get_input_embeddings()
    embedding.weight.copy_(rows * _LOUDNESS * width**0.5)
    output = torch.zeros(VOCABULARY, width)
    for index in range(CHARACTERS):
        level = index // 2
        above = [2 * level - 2, 2 * level - 1] if level else [] if ends else [CHARACTERS - 2, CHARACTERS - 1]
        for follower in [SPECIAL_TOKENS + i for i in above] or [EOS]:
            output[follower] += rows[SPECIAL_TOKENS + index]
    # The last norm makes every hidden state sqrt(width) long.
    projection: Any = model.get_output_embeddings()
    projection.weight.copy_(output * _CERTAINTY / width**0.5)


def _alphabet() -> str:
    return "".join(chr(FIRST_CHARACTER + i) for i in range(CHARACTERS))
