"""Grouped-query attention of one token is what transformers computes, without copies of the keys."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from rl_kernels_cpu.grouped_attention import ATTENTION, attention, use_grouped_attention
from rl_kernels_cpu.kernel import KERNEL
from rl_torch.kernels.contract import Use
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

torch.set_num_threads(1)
ROWS, HEADS, GROUPS, SEEN, WIDTH = 3, 6, 2, 7, 4


def states(length: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (ROWS, HEADS, length, WIDTH), (ROWS, GROUPS, SEEN, WIDTH), (ROWS, GROUPS, SEEN, WIDTH)
    return tuple(torch.randn(*shape, generator=generator) for shape in shapes)


def ragged() -> torch.Tensor:
    """Rows that see 7, 3 and 1 keys."""
    hidden = torch.arange(SEEN) >= torch.tensor([7, 3, 1])[:, None]
    return torch.zeros(ROWS, 1, 1, SEEN).masked_fill(hidden[:, None, None], -torch.inf)


@pytest.mark.parametrize("mask", [None, ragged()], ids=["all keys", "rows of different lengths"])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_one_token_sees_what_it_sees_in_transformers(mask: torch.Tensor | None, scaling: float | None) -> None:
    module = SimpleNamespace(num_key_value_groups=HEADS // GROUPS, is_causal=True)
    query, key, value = states(1)
    found, _ = attention(module, query, key, value, mask, scaling=scaling, dropout=0.0)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, dropout=0.0)
    assert found.shape == expected.shape == (ROWS, 1, HEADS, WIDTH)
    assert (found - expected).abs().max() < 1e-6


def test_a_prompt_is_attended_to_causally() -> None:
    module = SimpleNamespace(num_key_value_groups=HEADS // GROUPS, is_causal=True)
    query, key, value = states(SEEN)
    found, _ = attention(module, query, key, value, None)
    expected, _ = sdpa_attention_forward(module, query, key, value, None)
    assert torch.equal(found, expected)
    first = value[:, :, 0].repeat_interleave(HEADS // GROUPS, 1)
    assert (found[:, 0] - first).abs().max() < 1e-6, "the first token sees itself only"


def test_a_model_takes_it_where_its_layers_let_attention_be_chosen() -> None:
    shape = {"hidden_size": 24, "num_hidden_layers": 1, "vocab_size": 16, "intermediate_size": 32}
    qwen = Qwen2ForCausalLM(Qwen2Config(**shape, num_attention_heads=6, num_key_value_heads=2)).eval()
    tokens = torch.arange(5)[None]
    before = qwen(tokens).logits
    use_grouped_attention(qwen)
    assert qwen.config._attn_implementation == ATTENTION
    assert torch.equal(qwen(tokens).logits, before)

    eager = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16, attn_implementation="eager"))
    reason = "GPT2LMHeadModel has an attention of its own, which cannot be replaced"
    assert KERNEL.fits(eager, Use("decoding", "cpu")) == reason
