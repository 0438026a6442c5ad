"""The decoding loop against transformers.generate and plain forwards, and its independence of batch mates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rl_core.contracts.generator import SamplingParams
from rl_generation_hf.masks import AttentionPattern
from rl_torch.models import build_model

ARCHITECTURES = {
    "qwen2 with grouped-query attention": ("qwen2", {}),
    "qwen2 with one key head per query head": ("qwen2", {"kv_heads": 4, "tie_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "llama": ("llama", {"kv_heads": 1}),
    "mistral with a window on all layers": ("mistral", {"extra": {"sliding_window": 6}}),
    "qwen2 with a window on one layer": (
        "qwen2",
        {
            "extra": {
                "use_sliding_window": True,
                "sliding_window": 6,
                "layer_types": ["full_attention", "sliding_attention"],
            }
        },
    ),
    "gemma2 with a window and soft-capped logits": (
        "gemma2",
        {"extra": {"sliding_window": 6, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}},
    ),
}
LENGTHS = [3, 9, 1, 5, 9, 14, 2, 5]


@pytest.fixture(params=ARCHITECTURES, ids=str)
def spec(request, small):
    architecture, fields = ARCHITECTURES[request.param]
    return small.spec(architecture, **fields)


def recomputed(model, batch, temperature):
    """Log-probabilities of all tokens given those before, one plain forward per sequence; 0 at the first token."""
    parts = []
    for i in range(len(batch)):
        ids = torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64))
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0].float() / temperature
        logprobs = torch.log_softmax(logits, -1)[:-1].gather(1, ids[1:, None])[:, 0]
        parts.append(np.concatenate([[0.0], logprobs.numpy()]))
    return np.concatenate(parts)


def test_greedy_completions_equal_those_of_transformers_generate(spec, small):
    prompts = small.prompts(LENGTHS)
    batch = small.generator(spec).generate(small.requests(prompts), SamplingParams(max_new_tokens=12, temperature=0))
    model = build_model(spec, dtype=torch.float32)
    for prompt, completion in zip(prompts, small.completions(batch), strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert completion == out[0, len(prompt) :].tolist()


def test_sampled_logprobs_equal_those_of_a_plain_forward_for_each_architecture(spec, small):
    batch = small.generator(spec).generate(
        small.requests(small.prompts(LENGTHS)), SamplingParams(n=2, max_new_tokens=9)
    )
    mask = batch.token_columns["loss_mask"]
    expected = recomputed(build_model(spec, dtype=torch.float32), batch, 1.0) * mask
    np.testing.assert_allclose(batch.token_columns["sampled_logprobs"], expected, atol=small.rounding)


@pytest.mark.parametrize(
    ("sampling", "temperature"),
    [
        ({"temperature": 0.7}, 0.7),
        ({"temperature": 1.8, "top_p": 0.8}, 1.8),
        ({"temperature": 1.0, "top_k": 3}, 1.0),
        ({"temperature": 1.3, "top_k": 5, "top_p": 0.9}, 1.3),
        ({"temperature": 0.0}, 1.0),
    ],
)
def test_sampled_logprobs_are_at_the_sampling_temperature_over_the_full_vocabulary(sampling, temperature, small):
    params = SamplingParams(n=3, max_new_tokens=8, **sampling)
    batch = small.generator().generate(small.requests(small.prompts(LENGTHS)), params)
    expected = recomputed(build_model(small.spec(), dtype=torch.float32), batch, temperature)
    found, mask = (batch.token_columns[name] for name in ("sampled_logprobs", "loss_mask"))
    np.testing.assert_allclose(found, expected * mask, atol=small.rounding / temperature)


@pytest.fixture
def params():
    return SamplingParams(n=3, max_new_tokens=10, temperature=1.2, stop_token_ids=(1, 2, 3))


def test_a_prompt_alone_gives_what_it_gives_in_a_mixed_batch(spec, small, params):
    prompts = small.prompts(LENGTHS)
    together = small.generator(spec).generate(small.requests(prompts), params)
    generator = small.generator(spec)
    for i, prompt in enumerate(prompts):
        alone = generator.generate(small.requests([prompt], seeds=[i]), params)
        small.assert_same(alone, together.select(together.sequence_columns["request"] == i))


def test_the_order_of_requests_does_not_matter(small, params):
    prompts = small.prompts(LENGTHS)
    order = [5, 0, 7, 2, 6, 1, 4, 3]
    straight = small.generator().generate(small.requests(prompts), params)
    shuffled = small.generator().generate(small.requests([prompts[i] for i in order], seeds=order), params)
    for place, i in enumerate(order):
        small.assert_same(
            shuffled.select(shuffled.sequence_columns["request"] == place),
            straight.select(straight.sequence_columns["request"] == i),
        )


@pytest.mark.parametrize("max_batch_tokens", [1, 24, 60, 100, 170])
def test_a_small_cache_gives_the_same_completions(max_batch_tokens, spec, small, params):
    requests = small.requests(small.prompts(LENGTHS))
    expected = small.generator(spec).generate(requests, params)
    small.assert_same(small.generator(spec, max_batch_tokens=max_batch_tokens).generate(requests, params), expected)


def test_a_generator_that_is_used_again_gives_the_same_completions(small, params):
    """The cache keeps its memory, and other shapes are asked for in between."""
    generator = small.generator(max_batch_tokens=100)
    requests = small.requests(small.prompts(LENGTHS))
    first = generator.generate(requests, params)
    generator.generate(small.requests(small.prompts([30, 2], seed=1)), SamplingParams(max_new_tokens=20))
    generator.generate(small.requests(small.prompts([4] * 20, seed=2)), SamplingParams(max_new_tokens=1))
    small.assert_same(generator.generate(requests, params), first)


def test_equal_lengths_take_no_mask_and_give_what_mixed_lengths_give(small, monkeypatch):
    params = SamplingParams(max_new_tokens=8)
    prompts = small.prompts([6, 6, 6, 11])
    generator, masks = small.generator(), []
    decode = AttentionPattern.decode

    def watched(*given, **named):
        masks.append(decode(*given, **named))
        return masks[-1]

    monkeypatch.setattr(AttentionPattern, "decode", watched)
    equal = generator.generate(small.requests(prompts[:3]), params)
    assert masks == [None] * 7
    mixed = generator.generate(small.requests(prompts), params)
    assert any(mask is not None for mask in masks)
    small.assert_same(equal, mixed.select([0, 1, 2]))


def test_the_same_seed_gives_the_same_samples_and_another_index_or_seed_gives_others(small):
    prompt = small.prompts([5])[0]
    requests = small.requests([prompt, prompt, prompt], seeds=[11, 11, 12])
    batch = small.generator().generate(requests, SamplingParams(n=2, max_new_tokens=16, temperature=2.0))
    first, second, same_first, same_second, other_first, other_second = small.completions(batch)
    assert (first, second) == (same_first, same_second)
    assert len({tuple(c) for c in (first, second, other_first, other_second)}) == 4


def test_fewer_samples_or_tokens_are_a_prefix_of_more(small):
    requests = small.requests(small.prompts([5, 8]))
    generator = small.generator()
    more = small.completions(generator.generate(requests, SamplingParams(n=4, max_new_tokens=12)))
    fewer = small.completions(generator.generate(requests, SamplingParams(n=2, max_new_tokens=5)))
    assert fewer == [more[i][:5] for i in (0, 1, 4, 5)]


def test_first_tokens_come_with_the_frequencies_of_the_softmax(small):
    prompt = small.prompts([4])[0]
    n = 4000
    batch = small.generator().generate(small.requests([prompt], seeds=[123]), SamplingParams(n=n, max_new_tokens=1))
    counts = np.bincount(np.array(small.completions(batch))[:, 0], minlength=small.vocab)
    with torch.no_grad():
        logits = build_model(small.spec(), dtype=torch.float32)(input_ids=torch.tensor([prompt])).logits[0, -1]
    expected = torch.softmax(logits, -1).double().numpy() * n
    common = expected >= 5
    counts = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    degrees = len(counts) - 1
    statistic = ((counts - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    assert degrees > 5
    assert statistic < degrees + 4 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("max_batch_tokens", [65536, 90])
def test_finished_rows_leave_the_batch_and_prompts_are_read_once(max_batch_tokens, small):
    """Every sampled token but the last costs one row of one step; every prompt is one row of one reading."""
    generator, read, stepped = small.generator(max_batch_tokens=max_batch_tokens), [], []

    decoder = generator._loaded.engine

    def count(_module, tokens):
        (read if decoder.cache.prefilling else stepped).append(tokens[0].shape)

    decoder.model.get_input_embeddings().register_forward_pre_hook(count)
    params = SamplingParams(n=3, max_new_tokens=12, temperature=1.5, stop_token_ids=tuple(range(8)))
    batch = generator.generate(small.requests(small.prompts(LENGTHS)), params)
    lengths = np.array([len(c) for c in small.completions(batch)])
    assert len(set(lengths)) > 4
    assert sum(rows for rows, _ in read) == len(LENGTHS)
    assert sum(rows for rows, _ in stepped) == (lengths - 1).sum()


def test_rows_at_once_stay_within_the_budget_and_rise_when_long_prompts_are_through(small):
    generator, rows = small.generator(max_batch_tokens=80), []
    generator._loaded.engine.model.get_input_embeddings().register_forward_pre_hook(
        lambda _module, tokens: rows.append(len(tokens[0]))
    )
    generator.generate(small.requests(small.prompts([36, 36, *[4] * 30])), SamplingParams(max_new_tokens=4))
    # 80 // (36 + 4) rows with the long prompts, 80 // (4 + 4) afterwards.
    assert rows[:4] == [2, 2, 2, 2]
    assert max(rows) == 10
    assert generator._loaded.engine.cache.slots * generator._loaded.engine.cache.columns <= 80


def test_a_model_whose_state_is_more_than_keys_and_values_decodes_without_a_cache_and_says_so(small, caplog):
    generator = small.generator(small.spec("lfm2", extra={"layer_types": ["conv", "full_attention"]}))
    assert "keeps a state that a cache of keys and values cannot hold" in caplog.text
    batch = generator.generate(small.requests(small.prompts([3, 7, 5])), SamplingParams(max_new_tokens=6))
    model = generator._loaded.engine.model
    for row in range(3):
        ids = torch.from_numpy(batch.tokens[batch.offsets[row] : batch.offsets[row + 1]].astype(np.int64))
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=ids[None], use_cache=False).logits[0, :-1], -1)
        expected = log_p.gather(1, ids[1:, None])[-6:, 0].numpy()
        got = batch.token_columns["sampled_logprobs"][batch.offsets[row] : batch.offsets[row + 1]][-6:]
        np.testing.assert_allclose(got, expected, atol=1e-5)
