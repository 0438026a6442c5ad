"""The generator's contract: columns, seeds, stops, log-probabilities, errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rl_core.batch import SequenceBatch
from rl_core.contracts.generator import SamplingParams
from rl_core.errors import EnvironmentProblem
from transformers import PreTrainedTokenizerFast

TOLERANCE = 1e-4


def error_of(call, kind=ValueError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def test_the_batch_has_the_columns_of_the_contract(generator, small):
    prompts = small.prompts([3, 5])
    batch = generator.generate(small.requests(prompts), SamplingParams(n=2, max_new_tokens=4))
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


def test_no_requests_give_an_empty_batch_with_all_columns(generator, small):
    empty = SequenceBatch.from_lists([], sequence_columns={"seed": np.zeros(0, np.int64)})
    full = generator.generate(small.requests([[1]]), SamplingParams(max_new_tokens=1))
    batch = generator.generate(empty, SamplingParams())
    assert len(batch) == len(batch.tokens) == 0
    assert len(SequenceBatch.concat([batch, full])) == 1


def test_requests_may_be_read_only_as_they_come_from_ray(generator, small):
    requests = small.requests(small.prompts([3, 4]))
    for array in (requests.tokens, requests.offsets, requests.sequence_columns["seed"]):
        array.flags.writeable = False
    assert len(generator.generate(requests, SamplingParams(max_new_tokens=2))) == 2


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (0.5, 1.0, 0), (1.7, 0.8, 0), (1.3, 1.0, 5), (0.8, 0.9, 10), (0.0, 1.0, 0), (0.0, 0.5, 3)],
)
def test_logprobs_are_hugging_faces_at_the_sampling_temperature(temperature, top_p, top_k, generator, small):
    params = SamplingParams(n=4, max_new_tokens=16, temperature=temperature, top_p=top_p, top_k=top_k)
    batch = generator.generate(small.requests(small.prompts([3, 40, 100, 7])), params)
    assert small.gap(batch, small.model(small.spec()), temperature=temperature) < TOLERANCE


def test_greedy_completions_are_hugging_faces(generator, small):
    model = small.model(small.spec())
    batch = generator.generate(
        small.requests(small.prompts([3, 40, 100])), SamplingParams(max_new_tokens=24, temperature=0)
    )
    for index, completion in enumerate(small.completions(batch)):
        prompt = int(batch.sequence_columns["prompt_length"][index])
        best = small.logprobs(model, batch.tokens[batch.sequence(index)]).argmax(-1)
        assert completion == best[prompt - 1 : -1].tolist()


def test_top_k_and_top_p_leave_out_what_they_should(generator, small):
    model = small.model(small.spec())
    for params in (
        SamplingParams(n=16, max_new_tokens=8, temperature=2.0, top_k=3),
        SamplingParams(n=16, max_new_tokens=8, temperature=2.0, top_p=0.5),
    ):
        batch = generator.generate(small.requests(small.prompts([5, 9])), params)
        for index, completion in enumerate(small.completions(batch)):
            prompt = int(batch.sequence_columns["prompt_length"][index])
            rows = small.logprobs(model, batch.tokens[batch.sequence(index)], temperature=2.0)[prompt - 1 : -1]
            for row, token in zip(rows, completion, strict=True):
                likelier = row > row[token] + 1e-5
                assert likelier.sum() < (params.top_k or small.vocab)
                assert np.exp(row[likelier]).sum() < params.top_p + 1e-5


def test_samples_are_drawn_in_proportion_to_their_probability(generator, small):
    prompt = small.prompts([6])
    batch = generator.generate(small.requests(prompt * 8), SamplingParams(n=250, max_new_tokens=1, temperature=1.5))
    expected = np.exp(small.logprobs(small.model(small.spec()), np.asarray(prompt[0]), temperature=1.5)[-1])
    found = np.bincount(np.concatenate(small.completions(batch)), minlength=small.vocab) / 2000
    # Five standard deviations of a multinomial's frequencies.
    assert (np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / 2000) + 1e-3).all()


def test_equal_requests_give_equal_samples_and_other_seeds_or_indices_others(generator, small):
    requests, params = small.requests(small.prompts([4, 50]), seeds=[7, 8]), SamplingParams(n=3, max_new_tokens=16)
    first = generator.generate(requests, params)
    small.assert_same(generator.generate(requests, params), first)
    texts = small.completions(first)
    assert len({tuple(t) for t in texts}) == 6
    other = generator.generate(small.requests(small.prompts([4, 50]), seeds=[9, 10]), params)
    assert not {tuple(t) for t in small.completions(other)} & {tuple(t) for t in texts}


def test_seeds_next_to_each_other_do_not_share_samples(generator, small):
    prompt = small.prompts([4])
    batch = generator.generate(small.requests(prompt * 4, seeds=[0, 1, 2, 3]), SamplingParams(n=4, max_new_tokens=16))
    assert len({tuple(t) for t in small.completions(batch)}) == 16


def test_a_sample_does_not_depend_on_what_else_is_in_the_batch(generator, small):
    prompts, params = small.prompts([4, 60, 33, 9, 120, 5]), SamplingParams(n=4, max_new_tokens=12)
    together = generator.generate(small.requests(prompts), params)
    for index in (2, 4):
        alone = generator.generate(small.requests([prompts[index]], seeds=[index]), replace(params, n=2))
        assert small.completions(alone) == small.completions(together)[4 * index : 4 * index + 2]


def test_samples_do_not_depend_on_how_prompts_are_divided_over_steps(generator, small):
    # 60 × 130 tokens are more than an engine reads in one step.
    prompts, params = small.prompts([130] * 60), SamplingParams(max_new_tokens=6, temperature=1.5)
    together = small.completions(generator.generate(small.requests(prompts), params))
    for first in range(0, 60, 12):
        seeds = range(first, first + 12)
        part = generator.generate(small.requests(prompts[first : first + 12], seeds=seeds), params)
        assert small.completions(part) == together[first : first + 12]


def test_seeds_may_be_unsigned(generator, small):
    prompts, params = small.prompts([3]), SamplingParams(max_new_tokens=8)
    signed = small.requests(prompts, seeds=[-5])
    unsigned = replace(signed, sequence_columns={"seed": np.array([2**64 - 5], np.uint64)})
    small.assert_same(generator.generate(unsigned, params), generator.generate(signed, params))


def test_samples_of_a_prompt_share_its_prefix_in_the_cache(generator, small):
    scheduler = generator._loaded.engine._llm.llm_engine.engine_core.engine_core.scheduler
    before = scheduler.kv_cache_manager.block_pool.get_usage()
    seen = []
    requests = small.requests(small.prompts([100], seed=5))
    original = scheduler.schedule
    scheduler.schedule = lambda *a, **k: seen.append(original(*a, **k)) or seen[-1]
    try:
        generator.generate(requests, SamplingParams(n=8, max_new_tokens=2))
    finally:
        scheduler.schedule = original
    prefill = sum(sum(s.num_scheduled_tokens.values()) for s in seen)
    # One reads 100 tokens, seven the 4 beyond three full blocks of 32; then each samples one more.
    assert prefill == 100 + 7 * 4 + 8
    assert scheduler.kv_cache_manager.block_pool.get_usage() == before


def test_a_completion_ends_with_a_stop_token_and_is_truncated_without_one(generator, small):
    stops = (5, 6, 7, 8, 9, 10)
    params = SamplingParams(n=8, max_new_tokens=8, temperature=2.0, stop_token_ids=stops)
    batch = generator.generate(small.requests(small.prompts([4, 6])), params)
    truncated = batch.sequence_columns["truncated"]
    assert 0 < truncated.sum() < len(truncated)
    for completion, cut in zip(small.completions(batch), truncated, strict=True):
        assert not set(completion[:-1]) & set(stops)
        assert (completion[-1] in stops) == (not cut)
        assert len(completion) == 8 or not cut


def test_a_stop_token_in_the_last_place_is_not_a_truncation(generator, small):
    requests = small.requests(small.prompts([4]))
    params = SamplingParams(max_new_tokens=3, temperature=0)
    last = small.completions(generator.generate(requests, params))[0][-1]
    batch = generator.generate(requests, replace(params, stop_token_ids=(last,)))
    assert not batch.sequence_columns["truncated"][0]


def test_a_stop_string_over_several_tokens_ends_the_completion_and_is_kept(generator, letters, small):
    requests = small.requests(small.prompts([4, 7, 2]))
    params = SamplingParams(n=4, max_new_tokens=20, temperature=1.5)
    decode = PreTrainedTokenizerFast.from_pretrained(letters).decode
    free = [decode(c) for c in small.completions(generator.generate(requests, params))]
    stop = (free[0][3:5], free[5][9:12], free[9][-2:])
    batch = generator.generate(requests, replace(params, stop=stop))
    ended = 0
    for i, completion in enumerate(small.completions(batch)):
        ends = [free[i].find(s) + len(s) for s in stop if s in free[i]]
        assert decode(completion) == free[i][: min(ends, default=20)]
        assert batch.sequence_columns["truncated"][i] == (not ends)
        ended += bool(ends)
    assert 3 <= ended < len(batch)
    assert small.gap(batch, small.model(small.spec()), temperature=1.5) < TOLERANCE


def test_a_stop_string_in_the_prompt_does_not_count(generator, small):
    requests = small.requests([[0, 1, 2]])
    params = SamplingParams(max_new_tokens=6, temperature=0, stop=("abc",))
    assert len(small.completions(generator.generate(requests, params))[0]) == 6


def test_sleep_and_wake_on_the_cpu_change_nothing(generator, small):
    requests, params = small.requests(small.prompts([4])), SamplingParams(max_new_tokens=5)
    before = generator.generate(requests, params)
    generator.sleep()
    small.assert_same(generator.generate(requests, params), before)
    generator.wake()
    small.assert_same(generator.generate(requests, params), before)


def test_a_prompt_beyond_the_context_is_named_with_its_lengths_and_the_settings_to_change(generator, small):
    requests = small.requests(small.prompts([4, 156, 157]))
    assert error_of(lambda: generator.generate(requests, SamplingParams(max_new_tokens=10))) == (
        "request 1: its prompt of 156 tokens and max_new_tokens 10 make 166 tokens, and the context is 160 "
        "(model.max_length) (1 further requests are too long as well); lower generator.max_new_tokens, "
        "or raise model.max_length, or leave out prompts of more than 150 tokens"
    )


def test_a_completion_that_just_fits_is_generated(generator, small):
    batch = generator.generate(small.requests(small.prompts([150])), SamplingParams(max_new_tokens=10))
    assert batch.lengths.tolist() == [160]
    assert batch.sequence_columns["truncated"].all()


def test_an_empty_prompt_is_named(generator, small):
    assert error_of(lambda: generator.generate(small.requests([[1], []]), SamplingParams())) == (
        "request 1 has an empty prompt; a prompt needs at least one token, for example the beginning-of-sequence token"
    )


def test_missing_seeds_are_asked_for(generator):
    requests = SequenceBatch.from_lists([[1]])
    assert error_of(lambda: generator.generate(requests, SamplingParams())) == (
        "requests need a sequence column 'seed' (int64 or uint64, one value per prompt); there is none"
    )


def test_a_token_outside_the_vocabulary_is_named(generator, small):
    requests = small.requests([[1, 2], [3, 48]])
    assert error_of(lambda: generator.generate(requests, SamplingParams(max_new_tokens=2))) == (
        "request 1 holds token id 48, and the model's vocabulary has 48 entries; "
        "the tokenizer and the model do not belong together"
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
def test_sampling_parameters_out_of_range_are_refused(change, message, generator, small):
    assert error_of(lambda: generator.generate(small.requests([[1]]), SamplingParams(**change))) == message


def test_a_call_that_fails_leaves_nothing_behind_for_the_next_one(generator, small, monkeypatch):
    requests, params = small.requests(small.prompts([4, 9])), SamplingParams(n=2, max_new_tokens=6)
    expected = generator.generate(requests, params)
    engine = generator._loaded.engine._llm.llm_engine

    def failing():
        raise OSError("no more memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "step", failing)
        assert error_of(lambda: generator.generate(requests, params), OSError) == "no more memory"
    assert not engine.has_unfinished_requests()
    small.assert_same(generator.generate(requests, params), expected)


def test_heads_that_the_cpu_has_no_kernel_for_are_refused_before_vllm_is_asked(small):
    assert error_of(lambda: small.generator(small.spec(heads=4, kv_heads=2)), EnvironmentProblem) == (
        "vLLM on the CPU has no attention for heads of size 16; "
        "it has 32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512\n"
        "    change the number of heads (their size is hidden_size / heads, or head_dim), "
        "or use generator: {name: hf}"
    )


def test_a_mixture_of_experts_is_refused_on_the_cpu_whatever_its_defaults(small):
    message = error_of(lambda: small.generator(small.spec("qwen3_moe", extra={"num_experts": 4})), EnvironmentProblem)
    assert message == (
        "vLLM on the CPU keeps the old weights of a mixture's experts (4 per layer) in an update\n"
        "    use a model without experts, or generator: {name: hf}"
    )
