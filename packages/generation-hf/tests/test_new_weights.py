"""Weights that arrive while completions are being sampled."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from rl_core.contracts.generator import SamplingParams
from rl_torch.models import build_model
from rl_torch.weights import to_buckets

PARAMS = SamplingParams(n=2, max_new_tokens=8, temperature=0.8)
LENGTHS = [4, 9, 6]


def buckets_of(spec):
    return list(to_buckets(build_model(spec, dtype=torch.float32).state_dict().items()))


class Arriving:
    """Sends ``buckets`` as version 1 from another thread, as the driver's call does, during decoding step ``step``."""

    def __init__(self, generator, buckets, step):
        self.generator, self.buckets, self.left = generator, buckets, step
        self.sender = threading.Thread(target=generator.update_weights, args=(buckets, 1))
        loaded = generator._loaded
        loaded.engine.model.get_input_embeddings().register_forward_pre_hook(self)

    def __call__(self, _module, _tokens):
        loaded = self.generator._loaded
        self.left -= not loaded.engine.cache.prefilling
        if self.left == 0 and self.sender.ident is None:
            self.sender.start()
            while not loaded.thread.waiting_changes:
                time.sleep(0.001)


def interrupted(small, *, after, lengths=LENGTHS, params=PARAMS, **config):
    """Completions begun with seed 0's weights, which become seed 1's ``after`` so many steps."""
    generator = small.generator(small.spec(seed=0), **config)
    arriving = Arriving(generator, buckets_of(small.spec(seed=1)), after)
    batch = generator.generate(small.requests(small.prompts(lengths)), params)
    arriving.sender.join(60)
    return batch


def whole(small, seed, params=PARAMS):
    return small.generator(small.spec(seed=seed)).generate(small.requests(small.prompts(LENGTHS)), params)


@pytest.mark.parametrize("after", [1, 3, 6])
def test_completions_go_on_with_the_new_weights(small, after):
    batch, old = interrupted(small, after=after), whole(small, 0)
    assert batch.sequence_columns["truncated"].all()
    for index in range(len(batch)):
        sampled = batch.token_columns["loss_mask"][batch.sequence(index)] > 0
        versions = batch.token_columns["weights_version"][batch.sequence(index)]
        # The first token comes with the reading of the prompt, before the first step.
        assert versions[sampled].tolist() == [0] * (after + 1) + [1] * (PARAMS.max_new_tokens - after - 1)
        assert (versions[~sampled] == 0).all()
    before = batch.token_columns["loss_mask"].astype(bool) & (batch.token_columns["weights_version"] == 0)
    np.testing.assert_array_equal(batch.tokens[before], old.tokens[before])


def test_logprobs_are_those_of_the_weights_that_sampled_each_token(small):
    after = 3
    batch = interrupted(small, after=after)
    models = [build_model(small.spec(seed=seed), dtype=torch.float32).eval() for seed in (0, 1)]
    for index in range(len(batch)):
        where, start = batch.sequence(index), int(batch.sequence_columns["prompt_length"][index])
        ids = torch.from_numpy(batch.tokens[where].astype(np.int64))[None]
        cut = start + after
        with torch.no_grad():
            # What the new weights read of the tokens before them are the keys and values of the old ones.
            first = models[0](input_ids=ids[:, :cut], use_cache=True)
            second = models[1](input_ids=ids[:, cut:-1], past_key_values=first.past_key_values)
        logits = torch.cat([first.logits, second.logits], 1)[0, start - 1 :] / PARAMS.temperature
        expected = torch.log_softmax(logits, -1).gather(1, ids[0, start:, None])[:, 0]
        found = batch.token_columns["sampled_logprobs"][where][start:]
        np.testing.assert_allclose(found, expected.numpy(), atol=small.rounding / PARAMS.temperature)


def test_completions_that_begin_anew_are_those_of_the_new_weights(small):
    batch = interrupted(small, after=3, partial_rollouts="restart")
    assert set(batch.token_columns["weights_version"].tolist()) == {1}
    small.assert_same(batch, whole(small, 1))


def test_finished_completions_are_kept_when_others_begin_anew(small):
    end = SamplingParams(n=2, max_new_tokens=8, temperature=0.8, stop_token_ids=tuple(range(0, 48, 4)))
    batch = interrupted(small, after=2, params=end, partial_rollouts="restart")
    versions = [set(batch.token_columns["weights_version"][batch.sequence(i)].tolist()) for i in range(len(batch))]
    assert {0} in versions
    assert {1} in versions
    for version in (0, 1):
        expected = whole(small, version, end)
        for index, found in enumerate(versions):
            if found == {version}:
                assert small.completions(batch)[index] == small.completions(expected)[index]


def test_completions_that_wait_for_room_begin_with_the_new_weights(small):
    batch = interrupted(small, after=2, max_batch_tokens=40)  # two rows at a time
    versions = batch.token_columns["weights_version"]
    by_sequence = [versions[batch.sequence(i)].tolist() for i in range(len(batch))]
    assert sum(set(v) == {1} for v in by_sequence) == 4
    small.assert_same(
        batch.select(np.array([set(v) == {1} for v in by_sequence])),
        whole(small, 1).select(np.array([set(v) == {1} for v in by_sequence])),
    )
