"""The engine step by step: what shares a step, what enters, what leaves, and that nobody's tokens depend on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rl_core.contracts.generation import GenerationRequest, Sampling
from rl_generation_hf.engine import Engine
from rl_torch.models import build_model

LENGTHS = [5, 9, 3, 14, 9, 6]
WARM = Sampling(temperature=0.8, max_new_tokens=12)


class Watched:
    """An engine, the rows of each of its decoding steps, and the completions by request."""

    def __init__(self, model, max_batch_tokens=65536, never=()):
        self.engine = Engine(model, max_batch_tokens=max_batch_tokens, never=never)
        self.rows, self.read, self.done, self.steps = [], [], {}, 0
        model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, _module, tokens):
        (self.read if self.engine.cache.prefilling else self.rows).append(len(tokens[0]))

    def step(self, times=1):
        for _ in range(times):
            self._keep(self.engine.step())
            self.steps += 1

    def run(self):
        while self.engine.in_flight:
            self.step()
            assert self.steps < 10_000
        return self.done

    def abort(self, *args):
        self._keep(self.engine.abort(*args))

    def _keep(self, completions):
        for completion in completions:
            assert completion.id not in self.done
            self.done[completion.id] = completion


@pytest.fixture
def build(small):
    def built(**options):
        return Watched(build_model(small.spec(), dtype=torch.float32).eval(), **options)

    return built


@pytest.fixture
def requests(small):
    def made(samplings=WARM, lengths=LENGTHS, **fields):
        prompts = small.prompts(lengths)
        each = samplings if isinstance(samplings, list) else [samplings] * len(prompts)
        return [
            GenerationRequest(str(i), np.array(prompt, np.int32), sampling, seed=100 + i, **fields)
            for i, (prompt, sampling) in enumerate(zip(prompts, each, strict=True))
        ]

    return made


@pytest.fixture
def alone(build):
    """Each request's completion in an engine of its own."""

    def completed(requests, **options):
        found = {}
        for request in requests:
            watched = build(**options)
            watched.engine.submit([request])
            found |= watched.run()
        return found

    return completed


@pytest.fixture
def same(small):
    def compared(found, expected):
        assert found.keys() == expected.keys()
        for id, completion in found.items():
            assert completion.tokens.tolist() == expected[id].tokens.tolist()
            assert completion.finish == expected[id].finish
            # The coldest temperature here is 0.5, which doubles what is rounded.
            np.testing.assert_allclose(completion.logprobs, expected[id].logprobs, atol=2 * small.rounding)

    return compared


MIXED = [
    WARM,
    Sampling(temperature=0.0, max_new_tokens=9),
    Sampling(temperature=1.5, top_k=4, max_new_tokens=7),
    Sampling(temperature=0.5, top_p=0.7, max_new_tokens=12),
    Sampling(temperature=1.0, stop_token_ids=tuple(range(10)), max_new_tokens=12),
    Sampling(temperature=1.2, top_k=20, top_p=0.9, stop_token_ids=(11, 12, 13), max_new_tokens=5),
]


def test_requests_with_different_sampling_share_a_step_and_get_what_they_get_alone(build, requests, alone, same):
    together = build()
    together.engine.submit(requests(MIXED))
    found = together.run()
    assert together.rows[0] >= 5
    same(found, alone(requests(MIXED)))


def test_a_greedy_request_with_warm_ones_gets_the_tokens_of_transformers_generate(build, requests):
    watched = build()
    asked = requests(MIXED)
    watched.engine.submit(asked)
    found = watched.run()["1"]
    ids = torch.from_numpy(asked[1].tokens.astype(np.int64))[None]
    expected = watched.engine.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=9,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert found.tokens.tolist() == expected[0, ids.shape[1] :].tolist()


def test_a_request_that_arrives_late_joins_the_next_step_and_gets_what_it_gets_alone(build, requests, alone, same):
    watched = build()
    for request in requests():
        watched.engine.submit([request])
        watched.step(2)
    assert watched.rows == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 5]  # the first one has all of its 12 tokens
    same(watched.run(), alone(requests()))


def test_rows_leave_when_they_are_done(build, requests):
    """With completions of 1 to 8 tokens there are as many rows of steps as tokens, but the first of each."""
    lengths = list(range(1, 9))
    watched = build()
    watched.engine.submit(requests([Sampling(max_new_tokens=length) for length in lengths], lengths=[6] * 8))
    found = watched.run()
    assert [len(found[str(i)].tokens) for i in range(8)] == lengths
    assert sum(watched.rows) == sum(lengths) - len(lengths)
    assert watched.rows == [7, 6, 5, 4, 3, 2, 1]


def test_samples_of_one_prompt_are_read_once(build, requests):
    request = requests()[0]
    watched = build()
    watched.engine.submit([replace(request, id=str(k), sample=k) for k in range(5)])
    found = watched.run()
    assert watched.read == [1]
    assert len({tuple(completion.tokens.tolist()) for completion in found.values()}) == 5


def test_an_aborted_request_keeps_the_tokens_it_has_and_the_others_go_on(build, requests, alone, same):
    watched = build(max_batch_tokens=5 * 26)
    watched.engine.submit(requests())
    watched.step(3)
    watched.abort(["1", "2", "unknown"])  # "2", the shortest prompt, waits
    expected = alone(requests())
    assert watched.done["1"].finish == watched.done["2"].finish == "abort"
    assert watched.done["1"].tokens.tolist() == expected["1"].tokens[:4].tolist()
    assert len(watched.done["1"].logprobs) == len(watched.done["1"].weights_version) == 4
    assert len(watched.done["2"].tokens) == 0
    rest = watched.run()
    for id in ("1", "2"):
        del rest[id], expected[id]
    same(rest, expected)


def test_all_are_aborted_where_none_is_named(build, requests):
    watched = build(max_batch_tokens=3 * 26)
    watched.engine.submit(requests())
    watched.step(2)
    watched.abort()
    assert watched.engine.in_flight == 0
    assert {completion.finish for completion in watched.done.values()} == {"abort"}
    assert sorted(watched.done) == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("max_batch_tokens", [1, 30, 60, 100, 65536])
def test_completions_do_not_depend_on_the_budget_when_longer_requests_come_and_go(
    max_batch_tokens, build, requests, alone, same
):
    lengths = [3, 5, 4, 30, 6, 45, 3, 5]
    asked = requests([WARM, replace(WARM, max_new_tokens=4)] * 4, lengths=lengths)
    watched = build(max_batch_tokens=max_batch_tokens)
    for request in asked:
        watched.engine.submit([request])
        watched.step()
        needed = max(57, max_batch_tokens)  # the longest one alone
        assert watched.engine.cache.slots * watched.engine.cache.columns <= needed
    same(watched.run(), alone(asked))


def test_a_waiting_request_of_higher_priority_starts_first(build, requests):
    asked = requests(replace(WARM, max_new_tokens=3), lengths=[6] * 3)
    watched = build(max_batch_tokens=9)
    watched.engine.submit(asked[:2])
    watched.engine.submit([replace(asked[2], priority=1)])
    assert list(watched.run()) == ["2", "0", "1"]


def test_rows_use_all_of_the_budget_when_requests_come_one_by_one(build, requests):
    watched = build(max_batch_tokens=10 * 18)
    for index in range(14):
        watched.engine.submit([replace(request, id=str(index)) for request in requests(lengths=[6])])
        watched.step()
    assert max(watched.rows) == 10
    watched.run()
    assert watched.engine.cache.slots * watched.engine.cache.columns <= 180


def test_what_is_submitted_at_once_to_an_idle_engine_is_repeated_to_the_last_bit(build, requests):
    watched = build(max_batch_tokens=60)
    found = []
    for _ in range(2):
        watched.engine.submit(requests(MIXED))
        found.append(dict(watched.run()))
        watched.done.clear()
        watched.engine.submit(requests(lengths=[20, 4]))
        watched.run()
        watched.done.clear()
    assert list(found[0]) == list(found[1])
    for id, completion in found[0].items():
        assert completion.logprobs.tobytes() == found[1][id].logprobs.tobytes()


def test_new_weights_between_two_steps_label_their_tokens_also_of_a_request_that_arrives_later(build, requests, small):
    watched = build()
    asked = requests()
    watched.engine.submit(asked[:1])
    watched.step(2)
    watched.engine.submit(asked[1:2])
    watched.step(2)
    watched.engine.model.load_state_dict(build_model(small.spec(seed=1), dtype=torch.float32).state_dict())
    watched.engine.forward.refresh()
    watched.engine.version = 7
    watched.engine.submit(asked[2:3])
    found = watched.run()
    assert [found[str(i)].weights_version.tolist() for i in range(3)] == [
        [0] * 5 + [7] * 7,
        [0] * 3 + [7] * 9,
        [7] * 12,
    ]
    models = [build_model(small.spec(seed=seed), dtype=torch.float32).eval() for seed in (0, 1)]
    for index, before in ((0, 5), (1, 3)):
        tokens = torch.from_numpy(np.concatenate([asked[index].tokens, found[str(index)].tokens]).astype(np.int64))
        start = len(asked[index].tokens)
        cut = start + before - 1  # the old weights have read all tokens up to here
        with torch.no_grad():
            old = models[0](input_ids=tokens[None, :cut], use_cache=True)
            new = models[1](input_ids=tokens[None, cut:-1], past_key_values=old.past_key_values)
        logits = torch.cat([old.logits, new.logits], 1)[0, start - 1 :] / WARM.temperature
        expected = logits.log_softmax(-1).gather(1, tokens[start:, None])[:, 0]
        np.testing.assert_allclose(found[str(index)].logprobs, expected.numpy(), atol=small.rounding / WARM.temperature)


def test_what_runs_can_begin_anew(build, requests, alone, same):
    watched = build(max_batch_tokens=3 * 26)
    watched.engine.submit(requests())
    watched.step(4)
    watched.engine.restart()
    same(watched.run(), alone(requests()))


def test_logits_that_are_not_finite_end_their_own_request_only(build, requests, alone, same):
    asked = requests(lengths=[6] * 5)
    for request in asked:
        request.tokens[request.tokens == 7] = 8
    asked[2].tokens[3] = 7

    def broken(**options):
        watched = build(never=(7,), **options)
        with torch.no_grad():
            watched.engine.model.get_input_embeddings().weight[7] = torch.nan
        return watched

    watched = broken(max_batch_tokens=3 * 18)  # the others take its place in the cache
    watched.engine.submit(asked)
    found = watched.run()
    assert np.isnan(found["2"].logprobs).tolist() == [True]
    expected = alone([request for request in asked if request.id != "2"], never=(7,))
    del found["2"]
    same(found, expected)


def test_log_probs_of_the_prompt_are_those_of_transformers(build, requests, small):
    sampling = replace(WARM, temperature=0.7, max_new_tokens=2)
    asked = requests(sampling, want=frozenset(["prompt_logprobs"]))
    watched = build()
    watched.engine.submit(asked)
    found = watched.run()
    for request in asked:
        tokens = torch.from_numpy(request.tokens.astype(np.int64))
        with torch.no_grad():
            logits = watched.engine.model(input_ids=tokens[None], use_cache=False).logits[0] / 0.7
        expected = logits[:-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0].numpy()
        got = found[request.id].columns["prompt_logprobs"]
        assert (got.dtype, got[0], len(got)) == (np.float32, 0, len(tokens))
        np.testing.assert_allclose(got[1:], expected, atol=small.rounding / 0.7)


def test_log_probs_of_a_prompt_whose_logits_do_not_fit_at_once_are_the_same(build, requests, small, monkeypatch):
    def prompt_logprobs():
        watched = build()
        watched.engine.submit(requests(lengths=[30], want=frozenset(["prompt_logprobs"])))
        return watched.run()["0"].columns["prompt_logprobs"]

    whole = prompt_logprobs()
    monkeypatch.setattr("rl_generation_hf.wanted._LOGITS", 8 * small.vocab)
    np.testing.assert_allclose(prompt_logprobs(), whole, atol=small.rounding / WARM.temperature)


def test_the_most_likely_tokens_are_those_of_transformers_for_who_wants_them(build, requests, small):
    asked = requests([replace(each, top_k=0, top_p=1.0) for each in MIXED])
    asked = [replace(r, want=frozenset(["top_logprobs"])) if int(r.id) % 2 else r for r in asked]
    watched = build()
    watched.engine.submit(asked)
    found = watched.run()
    for request in asked:
        completion = found[request.id]
        if not request.want:
            assert not completion.columns
            continue
        tokens = torch.from_numpy(np.concatenate([request.tokens, completion.tokens]).astype(np.int64))
        with torch.no_grad():
            logits = watched.engine.model(input_ids=tokens[None], use_cache=False).logits[0]
        scale = request.sampling.temperature or 1.0
        log_p = (logits[len(request.tokens) - 1 : -1] / scale).log_softmax(-1)
        top, got = log_p.topk(20, -1), completion.columns
        assert got["top_tokens"].dtype == np.int32
        assert got["top_tokens"].shape == got["top_logprobs"].shape == (len(completion.tokens), 20)
        np.testing.assert_allclose(got["top_logprobs"], top.values.numpy(), atol=small.rounding / scale)
        at_those = log_p.gather(1, torch.from_numpy(got["top_tokens"].astype(np.int64)))
        np.testing.assert_allclose(at_those.numpy(), top.values.numpy(), atol=2 * small.rounding / scale)
