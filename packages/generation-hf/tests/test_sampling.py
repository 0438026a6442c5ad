"""From logits to tokens: the distribution, the filters and the reported log-probability."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rl_core.contracts.generator import SamplingParams
from rl_generation_hf import sampling as module
from rl_generation_hf.exclusion import NeverSampled
from rl_generation_hf.sampling import sample

PROBABILITIES = torch.tensor([0.05, 0.4, 0.2, 0.25, 0.1])
LOGITS = PROBABILITIES.log() + 3.0


def grid(rows: int) -> torch.Tensor:
    return (torch.arange(rows, dtype=torch.float64) + 0.5) / rows


def frequencies(params: SamplingParams, rows: int = 2000) -> np.ndarray:
    """Shares of the tokens over evenly spaced uniforms: the probabilities themselves, to 1/rows."""
    tokens, _ = sample(LOGITS.expand(rows, -1), grid(rows), params)
    return np.bincount(tokens.numpy(), minlength=5) / rows


def test_tokens_come_in_the_shares_of_the_softmax():
    np.testing.assert_allclose(frequencies(SamplingParams()), PROBABILITIES, atol=1e-3)


def test_temperature_divides_the_logits():
    expected = PROBABILITIES.sqrt() / PROBABILITIES.sqrt().sum()
    np.testing.assert_allclose(frequencies(SamplingParams(temperature=2.0)), expected, atol=1e-3)


def test_top_k_keeps_the_most_likely_and_renormalises():
    np.testing.assert_allclose(frequencies(SamplingParams(top_k=2)), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], atol=1e-3)


def test_top_k_of_the_whole_vocabulary_or_more_changes_nothing():
    np.testing.assert_allclose(frequencies(SamplingParams(top_k=5)), PROBABILITIES, atol=1e-3)
    np.testing.assert_allclose(frequencies(SamplingParams(top_k=50)), PROBABILITIES, atol=1e-3)


def test_top_p_keeps_the_token_that_crosses_the_threshold():
    np.testing.assert_allclose(frequencies(SamplingParams(top_p=0.5)), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], atol=1e-3)


def test_top_p_applies_to_what_top_k_left():
    # After top-k: 0.4 / 0.65 = 0.615 ≥ 0.6, so one token is enough; of the full distribution it would not be.
    np.testing.assert_allclose(frequencies(SamplingParams(top_k=2, top_p=0.6)), [0, 1, 0, 0, 0])


def test_a_tiny_top_p_leaves_the_most_likely_token():
    np.testing.assert_allclose(frequencies(SamplingParams(top_p=1e-9)), [0, 1, 0, 0, 0])


def test_temperature_zero_takes_the_most_likely_token_with_its_log_probability_at_temperature_one():
    tokens, logprobs = sample(LOGITS[None], grid(1), SamplingParams(temperature=0))
    assert tokens.tolist() == [1]
    assert logprobs.item() == pytest.approx(np.log(0.4), abs=1e-6)


def test_the_log_probability_is_over_the_full_vocabulary_whatever_the_filter():
    tokens, logprobs = sample(LOGITS.expand(50, -1), grid(50), SamplingParams(temperature=0.5, top_k=2, top_p=0.9))
    expected = torch.log_softmax(LOGITS / 0.5, -1)[tokens]
    torch.testing.assert_close(logprobs, expected)


def test_extreme_uniforms_never_pick_a_token_of_probability_zero():
    logits = torch.tensor([-torch.inf, 1.0, 1.0, -torch.inf])
    extremes = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    tokens, _ = sample(logits.expand(2, -1), extremes, SamplingParams())
    assert tokens.tolist() == [1, 2]


def test_rows_sampled_in_chunks_are_the_same(monkeypatch):
    draws = torch.Generator().manual_seed(0)
    logits, uniforms = torch.randn(7, 5, generator=draws), torch.rand(7, dtype=torch.float64, generator=draws)
    whole = sample(logits, uniforms, SamplingParams())
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 10)
    tokens, logprobs = sample(logits, uniforms, SamplingParams())
    assert tokens.tolist() == whole[0].tolist()
    torch.testing.assert_close(logprobs, whole[1])


@pytest.mark.parametrize(
    ("never", "params", "expected"),
    [
        (NeverSampled(5, ids=[1]), SamplingParams(), [0.05 / 0.6, 0, 0.2 / 0.6, 0.25 / 0.6, 0.1 / 0.6]),
        (NeverSampled(5, vocab_size=3), SamplingParams(), [0.05 / 0.65, 0.4 / 0.65, 0.2 / 0.65, 0, 0]),
        (NeverSampled(5, vocab_size=4, ids=[0, 3]), SamplingParams(), [0, 0.4 / 0.6, 0.2 / 0.6, 0, 0]),
        (NeverSampled(5, ids=[1]), SamplingParams(top_k=2), [0, 0, 0.2 / 0.45, 0.25 / 0.45, 0]),
        (NeverSampled(5, ids=[1]), SamplingParams(top_p=0.7), [0, 0, 0.2 / 0.45, 0.25 / 0.45, 0]),
        (NeverSampled(5, ids=[1]), SamplingParams(temperature=0), [0, 0, 0, 1, 0]),
        (NeverSampled(5, vocab_size=9), SamplingParams(), PROBABILITIES),
    ],
)
def test_what_is_never_sampled_leaves_the_others_their_shares_and_all_their_log_probabilities(never, params, expected):
    tokens, logprobs = sample(LOGITS.expand(2000, -1), grid(2000), params, never)
    np.testing.assert_allclose(np.bincount(tokens.numpy(), minlength=5) / 2000, expected, atol=1e-3)
    np.testing.assert_allclose(logprobs, PROBABILITIES.log()[tokens], atol=1e-6)


def test_what_is_left_may_have_next_to_no_probability():
    logits = torch.tensor([[200.0, 1.0, 0.0]])
    tokens, logprobs = sample(logits.expand(1000, -1), grid(1000), SamplingParams(), NeverSampled(3, ids=[0]))
    share = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(np.bincount(tokens.numpy(), minlength=3) / 1000, [0, share, 1 - share], atol=2e-3)
    np.testing.assert_allclose(logprobs, logits.log_softmax(-1)[0, tokens], rtol=1e-6)


MIXED = [
    SamplingParams(),
    SamplingParams(temperature=2.0),
    SamplingParams(top_k=2),
    SamplingParams(top_p=0.5),
    SamplingParams(top_k=2, top_p=0.6),
    SamplingParams(temperature=0),
    SamplingParams(top_k=50, temperature=0.7),
]


@pytest.mark.parametrize("chunk", [2**24, 10])
@pytest.mark.parametrize("never", [None, NeverSampled(5, ids=[1])])
def test_rows_with_different_sampling_are_sampled_as_each_alone(never, chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    draws = torch.Generator().manual_seed(0)
    rows = 40 * len(MIXED)
    logits, uniforms = torch.randn(rows, 5, generator=draws), torch.rand(rows, dtype=torch.float64, generator=draws)
    tokens, logprobs = sample(logits, uniforms, MIXED * 40, never)
    for row in range(rows):
        one = slice(row, row + 1)
        token, logprob = sample(logits[one], uniforms[one], MIXED[row % len(MIXED)], never)
        assert tokens[one].tolist() == token.tolist()
        torch.testing.assert_close(logprobs[one], logprob)
