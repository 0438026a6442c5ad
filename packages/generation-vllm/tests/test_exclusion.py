"""Ids without a meaning are never sampled, and log-probabilities know nothing of it."""

from __future__ import annotations

import numpy as np
import pytest
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import ModelSpec

EXCLUDED = (3, 5, *range(40, 48))


@pytest.fixture(scope="module")
def padded(small, tmp_path_factory):
    """An engine for a folder whose embedding has 48 rows: the tokenizer knows 40, and 2 of these mean nothing."""
    folder = str(tmp_path_factory.mktemp("model"))
    small.model(small.spec()).save_pretrained(folder)
    spec = ModelSpec(path=folder, vocab_size=40, never_sampled=EXCLUDED[:2], max_length=160)
    built = small.generator(spec, max_num_seqs=64)
    yield built
    built.close()


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (2.0, 6), (0.0, 0)])
def test_ids_without_a_meaning_are_never_sampled_and_logprobs_stay_hugging_faces(temperature, top_k, padded, small):
    n = 16 if temperature else 1
    sampling = SamplingParams(n=n, max_new_tokens=24, temperature=temperature, top_k=top_k)
    batch = padded.generate(small.requests(small.prompts([3, 7, 30])), sampling)
    model = small.model(small.spec())
    assert small.gap(batch, model, temperature=temperature) < 1e-4, "over the full vocabulary"
    assert not {token for completion in small.completions(batch) for token in completion} & set(EXCLUDED)
    wanted = 0
    for index, completion in enumerate(small.completions(batch)):
        logprobs = small.logprobs(model, batch.tokens[batch.sequence(index)])[-len(completion) - 1 : -1]
        wanted += np.isin(logprobs.argmax(-1), EXCLUDED).sum()
        if not temperature:
            logprobs[:, EXCLUDED] = -np.inf
            assert completion == logprobs.argmax(-1).tolist(), "the most likely of the others"
    assert wanted, "without the exclusion this test would see some"
