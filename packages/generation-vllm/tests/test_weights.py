"""Weights: replaced in place, checked first, and never mixed with what older ones left in the cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rl_core.contracts.generator import SamplingParams
from rl_core.errors import RLError
from rl_torch.weights import to_buckets

TOLERANCE = 1e-4
SHAPES = {
    "qwen2-tied": {"architecture": "qwen2"},
    "llama-untied": {"architecture": "llama", "tie_embeddings": False},
    "qwen3-tied": {"architecture": "qwen3", "layers": 1},
}


@pytest.fixture(params=list(SHAPES))
def shaped(request, small):
    """A generator of one architecture, and its spec with another seed."""
    fields = SHAPES[request.param]
    built = small.generator(small.spec(**fields), max_num_seqs=64)
    yield built, lambda seed: small.spec(seed=seed, **fields)
    built.close()


def greedy_of(model, small, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(small.logprobs(model, np.asarray(tokens))[-1].argmax()))
    return tokens[len(prompt) :]


def test_after_each_of_five_updates_the_completions_are_the_new_models(shaped, small):
    generator, spec = shaped
    prompts = small.prompts([5, 70, 110])
    seen = set()
    for version in range(1, 6):
        generator.update_weights(small.buckets(spec(version)), version)
        model = small.model(spec(version))
        for temperature in (0.0, 0.8):
            params = SamplingParams(n=2, max_new_tokens=12, temperature=temperature)
            batch = generator.generate(small.requests(prompts), params)
            assert set(batch.token_columns["weights_version"].tolist()) == {version}
            assert small.gap(batch, model, temperature=temperature) < TOLERANCE
            if temperature == 0:
                completions = small.completions(batch)
                assert completions[::2] == [greedy_of(model, small, p, 12) for p in prompts]
                seen.add(tuple(completions[0]))
    assert len(seen) == 5


def test_a_prefix_read_with_older_weights_would_be_wrong_and_does_not_survive_an_update(generator, small):
    requests, params = small.requests(small.prompts([100])), SamplingParams(n=2, max_new_tokens=8)
    generator.generate(requests, params)
    model, buckets = small.model(small.spec(seed=3)), small.buckets(small.spec(seed=3))
    loaded = generator._loaded
    loaded.engine._llm.collective_rpc("rl_load_weights", args=(buckets, loaded.parameters.renamed(buckets)))
    assert small.gap(generator.generate(requests, params), model) > 0.1
    generator.update_weights(buckets, 3)
    assert small.gap(generator.generate(requests, params), model) < TOLERANCE
    generator.update_weights(small.buckets(small.spec()), 0)


def test_weights_that_do_not_fit_are_listed_and_change_nothing(generator, small):
    requests, params = small.requests(small.prompts([4, 40])), SamplingParams(max_new_tokens=8)
    before = generator.generate(requests, params)
    state = small.model(small.spec(seed=1)).state_dict()
    state["model.norm.extra"] = state.pop("model.norm.weight")
    state["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 64)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is asserted
        generator.update_weights(list(to_buckets(state.items())), 5)
    assert str(caught.value) == (
        "weights do not fit the model; missing: model.norm.weight; unexpected: model.norm.extra; "
        "wrong shape: model.layers.0.mlp.up_proj.weight is [3, 64], the model's is [96, 64]"
    )
    after = generator.generate(requests, params)
    small.assert_same(after, before)
    assert set(after.token_columns["weights_version"].tolist()) == {0}


def test_weights_that_vllm_does_not_find_are_named(generator, small):
    buckets = small.buckets(small.spec())
    renamed = {"model.norm.weight": None, "model.layers.1.mlp.down_proj.weight": None}
    with pytest.raises(RLError) as caught:
        generator._loaded.engine.update_weights(buckets, generator._loaded.parameters.renamed(buckets) | renamed)
    assert str(caught.value) == (
        "generator vllm: vLLM found no value for model.layers.1.mlp.down_proj.weight, model.norm.weight among the "
        "trained weights; it knows this architecture under other parameter names than transformers does\n"
        "    use generator: {name: hf} for this model"
    )
    generator.update_weights(buckets, 0)


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight"])
def test_of_tied_weights_either_name_is_enough(kept, generator, small):
    requests, params = small.requests(small.prompts([4, 40])), SamplingParams(max_new_tokens=8)
    state = small.model(small.spec(seed=2)).state_dict()
    for name in {"model.embed_tokens.weight", "lm_head.weight"} - {kept}:
        del state[name]
    generator.update_weights(list(to_buckets(state.items())), 2)
    assert small.gap(generator.generate(requests, params), small.model(small.spec(seed=2))) < TOLERANCE
    generator.update_weights(small.buckets(small.spec()), 0)


def test_a_diverged_policy_is_reported_and_good_weights_work_again(generator, small):
    requests, params = small.requests(small.prompts([4, 70])), SamplingParams(max_new_tokens=5)
    good = generator.generate(requests, params)
    state = small.model(small.spec()).state_dict()
    damaged = {name: torch.full_like(tensor, torch.nan) for name, tensor in state.items()}
    generator.update_weights(list(to_buckets(damaged.items())), 3)
    with pytest.raises(RLError) as caught:
        generator.generate(requests, params)
    assert str(caught.value) == (
        "generator vllm: request 0, sample 0: the model's logits are not finite at completion token 0 "
        "(weights version 3); the policy has diverged or its weights are damaged: "
        "go back to a checkpoint and lower algorithm.learning_rate"
    )
    generator.update_weights(small.buckets(small.spec()), 0)
    small.assert_same(generator.generate(requests, params), good)
