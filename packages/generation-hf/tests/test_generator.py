"""The generator's contract: columns, stops, weights, errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import ModelSpec
from rl_core.errors import RLError
from rl_generation_hf.config import HfGeneratorConfig
from rl_generation_hf.generator import HfGenerator
from rl_torch.models import build_model
from rl_torch.weights import to_buckets
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast


@pytest.fixture
def tokenizer_path(tmp_path, small):
    """One character per token: a..z, A..V."""
    letters = [chr(ord("a") + i) for i in range(26)] + [chr(ord("A") + i) for i in range(small.vocab - 26)]
    raw = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, unk_token="a"))
    raw.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(tmp_path)
    return str(tmp_path)


def buckets_of(spec):
    model = build_model(spec, dtype=torch.float32)
    return list(to_buckets(model.state_dict().items()))


def test_the_batch_has_the_columns_of_the_contract(small):
    prompts = small.prompts([3, 5])
    batch = small.generator().generate(small.requests(prompts), SamplingParams(n=2, max_new_tokens=4))
    for i, prompt in enumerate((prompts[0], prompts[0], prompts[1], prompts[1])):
        assert batch.tokens[batch.sequence(i)][: len(prompt)].tolist() == prompt
    assert {n: c.dtype for n, c in batch.token_columns.items()} == {
        "loss_mask": np.float32,
        "sampled_logprobs": np.float32,
        "weights_version": np.int32,
    }
    assert {n: c.dtype for n, c in batch.sequence_columns.items()} == {
        "request": np.int64,
        "sample": np.int64,
        "truncated": bool,
        "prompt_length": np.int64,
    }
    assert batch.sequence_columns["request"].tolist() == [0, 0, 1, 1]
    assert batch.sequence_columns["sample"].tolist() == [0, 1, 0, 1]
    assert batch.sequence_columns["prompt_length"].tolist() == [3, 3, 5, 5]
    assert batch.token_columns["loss_mask"][batch.sequence(2)].tolist() == [0] * 5 + [1] * 4
    assert (batch.token_columns["sampled_logprobs"][batch.token_columns["loss_mask"] == 0] == 0).all()
    assert (batch.token_columns["sampled_logprobs"][batch.token_columns["loss_mask"] == 1] < 0).all()


def test_no_requests_give_an_empty_batch_with_all_columns(small):
    empty = SequenceBatch.from_lists([], sequence_columns={"seed": np.zeros(0, np.int64)})
    full = small.generator().generate(small.requests([[1]]), SamplingParams(max_new_tokens=1))
    batch = small.generator().generate(empty, SamplingParams())
    assert len(batch) == len(batch.tokens) == 0
    assert len(SequenceBatch.concat([batch, full])) == 1


def test_requests_may_be_read_only_as_they_come_from_ray(small):
    requests = small.requests(small.prompts([3, 4]))
    for array in (requests.tokens, requests.offsets, requests.sequence_columns["seed"]):
        array.flags.writeable = False
    assert len(small.generator().generate(requests, SamplingParams(max_new_tokens=2))) == 2


def test_seeds_may_be_unsigned(small):
    prompts, params = small.prompts([3]), SamplingParams(max_new_tokens=8)
    signed = small.requests(prompts, seeds=[-5])
    unsigned = replace(signed, sequence_columns={"seed": np.array([2**64 - 5], np.uint64)})
    generator = small.generator()
    small.assert_same(generator.generate(unsigned, params), generator.generate(signed, params))


def test_a_completion_ends_with_a_stop_token_and_is_truncated_without_one(small):
    stops = (5, 6, 7, 8, 9, 10)
    params = SamplingParams(n=8, max_new_tokens=8, temperature=2.0, stop_token_ids=stops)
    batch = small.generator().generate(small.requests(small.prompts([4, 6])), params)
    truncated = batch.sequence_columns["truncated"]
    assert 0 < truncated.sum() < len(truncated)
    for completion, cut in zip(small.completions(batch), truncated, strict=True):
        assert not set(completion[:-1]) & set(stops)
        assert (completion[-1] in stops) == (not cut)
        assert len(completion) == 8 or not cut


def test_a_stop_token_in_the_last_place_is_not_a_truncation(small):
    generator, requests = small.generator(), small.requests(small.prompts([4]))
    params = SamplingParams(max_new_tokens=3, temperature=0)
    last = small.completions(generator.generate(requests, params))[0][-1]
    batch = generator.generate(requests, replace(params, stop_token_ids=(last,)))
    assert not batch.sequence_columns["truncated"][0]


def test_a_stop_string_over_several_tokens_ends_the_completion_and_is_kept(small, tokenizer_path):
    generator = small.generator(tokenizer_path=tokenizer_path)
    requests = small.requests(small.prompts([4, 7, 2]))
    params = SamplingParams(n=4, max_new_tokens=20, temperature=1.5)
    decode = PreTrainedTokenizerFast.from_pretrained(tokenizer_path).decode
    free = [decode(c) for c in small.completions(generator.generate(requests, params))]
    stop = (free[0][3:5], free[5][9:12])
    batch = generator.generate(requests, replace(params, stop=stop))
    ended = 0
    for i, completion in enumerate(small.completions(batch)):
        ends = [free[i].find(s) + len(s) for s in stop if s in free[i]]
        assert decode(completion) == free[i][: min(ends, default=20)]
        assert batch.sequence_columns["truncated"][i] == (not ends)
        ended += bool(ends)
    assert 2 <= ended < len(batch)


def test_a_stop_string_in_the_prompt_does_not_count(small, tokenizer_path):
    generator = small.generator(tokenizer_path=tokenizer_path)
    requests = small.requests([[0, 1, 2]])
    params = SamplingParams(max_new_tokens=6, temperature=0, stop=("abc",))
    assert len(small.completions(generator.generate(requests, params))[0]) == 6


def test_new_weights_change_the_completions_to_the_new_models_and_the_version(small):
    generator = small.generator(small.spec(seed=0))
    requests, params = small.requests(small.prompts([4, 7])), SamplingParams(n=2, max_new_tokens=8)
    before = generator.generate(requests, params)
    assert set(before.token_columns["weights_version"]) == {0}
    generator.update_weights(buckets_of(small.spec(seed=1)), 7)
    after = generator.generate(requests, params)
    assert set(after.token_columns["weights_version"]) == {7}
    assert small.completions(after) != small.completions(before)
    small.assert_same(after, small.generator(small.spec(seed=1)).generate(requests, params))


def test_weights_that_do_not_fit_are_listed_and_change_nothing(small):
    generator = small.generator()
    requests, params = small.requests(small.prompts([4])), SamplingParams(max_new_tokens=8)
    before = generator.generate(requests, params)
    state = build_model(small.spec(), dtype=torch.float32).state_dict()
    state["model.norm.extra"] = state.pop("model.norm.weight")
    state["lm_head.weight"] = torch.zeros(3, 32)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is asserted
        generator.update_weights(list(to_buckets(state.items())), 5)
    assert str(caught.value) == (
        "weights do not fit the model; missing: model.norm.weight; unexpected: model.norm.extra; "
        "wrong shape: lm_head.weight is [3, 32], the model's is [48, 32]"
    )
    after = generator.generate(requests, params)
    small.assert_same(after, before)
    assert set(after.token_columns["weights_version"]) == {0}


def test_bfloat16_weights_are_used_when_asked_for(small):
    generator = small.generator(dtype="bfloat16")
    batch = generator.generate(small.requests(small.prompts([4, 9])), SamplingParams(max_new_tokens=5))
    assert {p.dtype for p in generator._loaded.engine.model.parameters()} == {torch.bfloat16}
    assert batch.token_columns["sampled_logprobs"].dtype == np.float32
    assert np.isfinite(batch.token_columns["sampled_logprobs"]).all()


def test_a_saved_model_folder_is_loaded(small, tmp_path):
    build_model(small.spec(), dtype=torch.float32).save_pretrained(tmp_path)
    requests, params = small.requests(small.prompts([4, 9])), SamplingParams(max_new_tokens=5)
    saved = small.generator(ModelSpec(path=str(tmp_path))).generate(requests, params)
    small.assert_same(saved, small.generator().generate(requests, params))


def test_sleep_and_wake_on_the_cpu_change_nothing(small):
    generator = small.generator()
    requests, params = small.requests(small.prompts([4])), SamplingParams(max_new_tokens=5)
    before = generator.generate(requests, params)
    generator.sleep()
    small.assert_same(generator.generate(requests, params), before)
    generator.wake()
    small.assert_same(generator.generate(requests, params), before)


def test_setup_sets_the_number_of_threads():
    generator = HfGenerator(HfGeneratorConfig(name="hf"))
    generator.setup(WorkerContext(rank=0, world_size=1, master_address="", master_port=0, threads=2))
    assert torch.get_num_threads() == 2


def error_of(call, kind=ValueError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def test_a_prompt_beyond_the_context_is_named_with_its_lengths_and_the_settings_to_change(small):
    generator = small.generator()
    requests = small.requests(small.prompts([4, 60, 61]))
    assert error_of(lambda: generator.generate(requests, SamplingParams(max_new_tokens=10))) == (
        "request 1: its prompt of 60 tokens and max_new_tokens 10 make 70 tokens, and the context is 64 "
        "(model.max_length) (1 further requests are too long as well); lower generator.max_new_tokens, "
        "or raise model.max_length, or leave out prompts of more than 54 tokens"
    )


def test_the_models_own_context_limits_when_it_is_the_smaller(small, tmp_path):
    build_model(small.spec(), dtype=torch.float32).save_pretrained(tmp_path)
    generator = small.generator(ModelSpec(path=str(tmp_path), max_length=1000))
    assert error_of(lambda: generator.generate(small.requests([[1, 2]]), SamplingParams(max_new_tokens=64))) == (
        "request 0: its prompt of 2 tokens and max_new_tokens 64 make 66 tokens, and the context is 64 "
        "(max_position_embeddings of the model); lower generator.max_new_tokens"
    )


def test_a_completion_that_just_fits_is_generated(small):
    batch = small.generator().generate(small.requests(small.prompts([54])), SamplingParams(max_new_tokens=10))
    assert batch.lengths.tolist() == [64]


def test_an_empty_prompt_is_named(small):
    assert error_of(lambda: small.generator().generate(small.requests([[1], []]), SamplingParams())) == (
        "request 1 has an empty prompt; a prompt needs at least one token, for example the beginning-of-sequence token"
    )


def test_missing_seeds_are_asked_for(small):
    requests = SequenceBatch.from_lists([[1]])
    assert error_of(lambda: small.generator().generate(requests, SamplingParams())) == (
        "requests need a sequence column 'seed' (int64 or uint64, one value per prompt); there is none"
    )


def test_seeds_of_another_type_are_refused(small):
    requests = SequenceBatch.from_lists([[1]], sequence_columns={"seed": np.zeros(1, np.float32)})
    assert error_of(lambda: small.generator().generate(requests, SamplingParams())) == (
        "requests need a sequence column 'seed' (int64 or uint64, one value per prompt); it is float32 [1]"
    )


def test_a_token_outside_the_vocabulary_is_named(small):
    requests = small.requests([[1, 2], [3, 48]])
    assert error_of(lambda: small.generator().generate(requests, SamplingParams(max_new_tokens=2))) == (
        "request 1 holds token id 48, and the model's vocabulary has 48 entries; "
        "the tokenizer and the model do not belong together"
    )


def test_stop_strings_without_a_tokenizer_are_refused(small):
    params = SamplingParams(stop=("\n", "end"))
    assert error_of(lambda: small.generator().generate(small.requests([[1]]), params)) == (
        "sampling: stop strings '\\n', 'end' need a tokenizer to read completions with, and the generator was "
        "loaded without one; pass tokenizer_path (a saved tokenizer folder) to load, or use stop_token_ids"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "sampling: n is 0; it must be at least 1"),
        ({"max_new_tokens": 0}, "sampling: max_new_tokens is 0; it must be at least 1"),
        ({"temperature": -1.0}, "sampling: temperature is -1.0; it must be 0 or more"),
        ({"top_p": 0.0}, "sampling: top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_k": -1}, "sampling: top_k is -1; it must be 0 (off) or more"),
        ({"stop": ("",)}, "sampling: stop is ('',); it must be non-empty strings"),
    ],
)
def test_sampling_parameters_out_of_range_are_refused(change, message, small):
    generator = small.generator()
    assert error_of(lambda: generator.generate(small.requests([[1]]), SamplingParams(**change))) == message


def test_a_diverged_policy_is_reported_and_good_weights_work_again(small):
    generator = small.generator()
    requests, params = small.requests(small.prompts([4, 9])), SamplingParams(max_new_tokens=5)
    good = generator.generate(requests, params)
    state = build_model(small.spec(), dtype=torch.float32).state_dict()
    damaged = {name: torch.full_like(tensor, torch.nan) for name, tensor in state.items()}
    generator.update_weights(list(to_buckets(damaged.items())), 3)
    assert error_of(lambda: generator.generate(requests, params), RLError) == (
        "generator hf: request 0, sample 0: the model's logits are not finite at completion token 0 "
        "(weights version 3); the policy has diverged or its weights are damaged: "
        "go back to a checkpoint and lower algorithm.learning_rate"
    )
    generator.update_weights(list(to_buckets(state.items())), 4)
    small.assert_same(generator.generate(requests, params), good)


def test_a_closed_generator_says_what_to_call_and_can_be_loaded_again(small):
    generator = small.generator()
    generator.close()
    message = error_of(lambda: generator.generate(small.requests([[1]]), SamplingParams()), RuntimeError)
    assert message == "generator hf: no model is loaded; call load first"
    generator.load(small.spec(), None)
    assert len(generator.generate(small.requests([[1]]), SamplingParams(max_new_tokens=1))) == 1


def test_rows_without_a_token_and_ids_without_a_meaning_are_never_sampled(small, tmp_path):
    model = build_model(small.spec(), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    spec = ModelSpec(path=str(tmp_path), vocab_size=40, never_sampled=(3, 39), max_length=64)
    sampling = SamplingParams(n=16, max_new_tokens=16)
    requests = small.requests(small.prompts([3, 7]))
    batch = small.generator(spec).generate(requests, sampling)
    excluded = {3, 39, *range(40, 48)}
    written = {token for completion in small.completions(batch) for token in completion}
    assert len(written) > 20
    assert not written & excluded
    whole = small.generator(ModelSpec(path=str(tmp_path), max_length=64)).generate(requests, sampling)
    assert {token for completion in small.completions(whole) for token in completion} & excluded, "these could be"
    for index in range(len(batch)):
        tokens = torch.from_numpy(batch.tokens[batch.sequence(index)].astype(np.int64))
        with torch.no_grad():
            logprobs = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        expected = logprobs.gather(1, tokens[1:, None])[:, 0].numpy()
        sampled = batch.token_columns["loss_mask"][batch.sequence(index)][1:] > 0
        got = batch.token_columns["sampled_logprobs"][batch.sequence(index)][1:]
        np.testing.assert_allclose(got[sampled], expected[sampled], atol=1e-5)
