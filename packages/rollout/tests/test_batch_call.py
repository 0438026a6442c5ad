"""A batch as single requests, and their completions as a batch."""

from __future__ import annotations

import numpy as np
import pytest
from rl_core.batch import SequenceBatch
from rl_core.contracts.generation import Completion, Sampling
from rl_core.contracts.generator import SamplingParams
from rl_rollout.batch_call import BatchCall

PARAMS = SamplingParams(n=2, max_new_tokens=3, temperature=0.5, top_p=0.9, top_k=4, stop=("end",), stop_token_ids=(7,))


@pytest.fixture
def call():
    seeds = np.array([2**63 + 5, 1], np.uint64)
    return BatchCall(SequenceBatch.from_lists([[1, 2, 3], [4]], sequence_columns={"seed": seeds}), PARAMS)


def answer(request, tokens, finish="stop", version=0):
    length = len(tokens)
    return Completion(
        request.id,
        np.array(tokens, np.int32),
        -np.arange(1, length + 1, dtype=np.float32),
        np.arange(version, version + length, dtype=np.int32),
        finish,
    )


def test_each_sample_of_each_prompt_is_a_request(call):
    assert [request.tokens.tolist() for request in call.requests] == [[1, 2, 3], [1, 2, 3], [4], [4]]
    assert [(request.seed, request.sample) for request in call.requests] == [(2**63 + 5, k) for k in (0, 1)] + [
        (1, k) for k in (0, 1)
    ]
    assert {request.sampling for request in call.requests} == {
        Sampling(temperature=0.5, top_p=0.9, top_k=4, stop=("end",), stop_token_ids=(7,), max_new_tokens=3)
    }


def test_ids_of_two_calls_differ(call):
    again = BatchCall(SequenceBatch.from_lists([[1]], sequence_columns={"seed": np.zeros(1, np.int64)}), PARAMS)
    ids = [request.id for request in (*call.requests, *again.requests)]
    assert len(set(ids)) == 6


def test_completions_in_any_order_become_the_batch_of_the_contract(call):
    first, second, third, fourth = call.requests
    batch = call.gather(
        [
            answer(fourth, [9], "length"),
            answer(first, [5, 7], version=3),
            answer(third, [8, 8, 8], "length", version=1),
            answer(second, [7]),
        ]
    )
    assert [batch.tokens[batch.sequence(i)].tolist() for i in range(4)] == [
        [1, 2, 3, 5, 7],
        [1, 2, 3, 7],
        [4, 8, 8, 8],
        [4, 9],
    ]
    columns, tokens = batch.sequence_columns, batch.token_columns
    assert columns["request"].tolist() == [0, 0, 1, 1]
    assert columns["sample"].tolist() == [0, 1, 0, 1]
    assert columns["truncated"].tolist() == [False, False, True, True]
    assert columns["prompt_length"].tolist() == [3, 3, 1, 1]
    assert tokens["loss_mask"].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 1, 1, 0, 1]
    assert tokens["sampled_logprobs"].tolist() == [0, 0, 0, -1, -2, 0, 0, 0, -1, 0, -1, -2, -3, 0, -1]
    assert tokens["weights_version"].tolist() == [3, 3, 3, 3, 4, 0, 0, 0, 0, 1, 1, 2, 3, 0, 0]


def test_an_aborted_completion_is_no_answer(call):
    answers = [answer(request, [7]) for request in call.requests[:3]]
    with pytest.raises(RuntimeError, match="generate: its requests were aborted before they were complete"):
        call.gather([*answers, answer(call.requests[3], [], "abort")])
