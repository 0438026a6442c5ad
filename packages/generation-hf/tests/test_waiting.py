"""Which prompts are read together and when."""

from __future__ import annotations

import numpy as np
import pytest
from rl_core.contracts.generation import GenerationRequest, Sampling
from rl_generation_hf.waiting import WaitingQueue


class Queue(WaitingQueue):
    """Submits prompts of given lengths, and tells which of them were admitted: by their first token."""

    def add(self, lengths, *, first=0, n=2, **fields):
        sampling = Sampling(max_new_tokens=fields.pop("max_new_tokens", 10))
        self.submit(
            [
                GenerationRequest(
                    f"{first + index}/{k}", np.full(length, first + index, np.int32), sampling, index, k, **fields
                )
                for index, length in enumerate(lengths)
                for k in range(n)
            ]
        )

    def take(self, *, free, slots, columns=10_000):
        found = self.admit(free=free, slots=slots, columns=columns)
        return None if found is None else [int(prompt.tokens[0]) for prompt in found.prompts]


@pytest.fixture
def make():
    def queue(lengths, *, vocab_size=100, prefill_tokens=1024, **changes):
        made = Queue(vocab_size=vocab_size, prefill_tokens=prefill_tokens)
        made.add(lengths, **changes)
        return made

    return queue


def test_long_prompts_go_first_and_samples_share_one_reading(make):
    admission = make([8, 10, 9]).admit(free=6, slots=6, columns=100)
    assert [prompt.tokens[0] for prompt in admission.prompts] == [1, 2, 0]
    assert admission.source.tolist() == [0, 0, 1, 1, 2, 2]
    assert [request.id for request in admission.requests] == ["1/0", "1/1", "2/0", "2/1", "0/0", "0/1"]


def test_prompts_much_shorter_than_the_longest_are_read_apart(make):
    queue = make([10, 7, 8])
    assert queue.take(free=6, slots=6) == [0, 2]
    assert queue.take(free=2, slots=6) == [1]
    assert queue.count == 0


def test_a_prompt_waits_until_all_its_samples_fit(make):
    queue = make([5, 5])
    assert queue.take(free=3, slots=4) == [0]
    assert queue.take(free=1, slots=4) is None
    assert queue.take(free=2, slots=4) == [1]


def test_samples_that_never_fit_together_are_read_in_portions(make):
    queue = make([5], n=10)
    portions = [queue.admit(free=4, slots=4, columns=15) for _ in range(3)]
    assert [[request.sample for request in portion.requests] for portion in portions] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    assert queue.admit(free=4, slots=4, columns=15) is None


def test_reading_waits_until_a_quarter_of_the_rows_is_free(make):
    queue = make([5] * 20)
    assert not queue.ready(free=3, slots=16)
    assert queue.ready(free=4, slots=16)


def test_the_last_prompts_do_not_wait_for_a_quarter(make):
    queue = make([5])
    assert queue.ready(free=2, slots=16)
    assert not queue.ready(free=1, slots=16)


def test_one_reading_stays_within_its_tokens(make):
    assert make([10] * 5, prefill_tokens=30).take(free=100, slots=100) == [0, 1, 2]


def test_a_prompt_longer_than_a_reading_is_read_alone(make):
    assert make([50, 50], prefill_tokens=30).take(free=100, slots=100) == [0]


def test_one_reading_stays_within_its_logits(make):
    # Two prompts of different length cost 2 rows × 2 columns of logits, 2**25 / vocab allows 3.
    assert make([10, 9], vocab_size=2**25 // 3).take(free=9, slots=9) == [0]
    assert make([10, 10], vocab_size=2**25 // 3).take(free=9, slots=9) == [0, 1]


def test_what_is_submitted_first_starts_first_whatever_its_length(make):
    queue = make([5])
    queue.add([50], first=1)
    queue.add([5], first=2)
    assert queue.take(free=2, slots=2) == [0]
    assert queue.take(free=2, slots=2) == [1]
    assert queue.take(free=2, slots=2) == [2]


def test_prompts_of_several_submissions_that_fit_are_read_together_by_length(make):
    queue = make([5])
    queue.add([50], first=1)
    queue.add([6], first=2)
    assert queue.take(free=6, slots=6) == [1]
    assert queue.take(free=4, slots=6) == [2, 0]


def test_a_higher_priority_starts_first(make):
    queue = make([5])
    queue.add([4], first=1, priority=1)
    assert queue.take(free=2, slots=2) == [1]


def test_a_prompt_that_needs_a_longer_cache_is_not_overtaken(make):
    queue = make([5])
    queue.add([50], first=1)
    queue.add([5], first=2)
    assert queue.take(free=9, slots=9, columns=15) == [0]
    assert queue.take(free=9, slots=9, columns=15) is None
    assert queue.first_columns == 60


def test_requests_with_one_prompt_and_different_seeds_are_two_prompts():
    queue, tokens = WaitingQueue(vocab_size=100, prefill_tokens=1024), np.ones(5, np.int32)
    queue.submit([GenerationRequest(str(seed), tokens, Sampling(), seed) for seed in (1, 2)])
    assert len(queue.admit(free=2, slots=2, columns=100).prompts) == 2


def test_what_is_removed_never_starts(make):
    queue = make([5, 4])
    assert [request.id for request in queue.remove(["0/1", "1/0", "1/1", "unknown"])] == ["0/1", "1/0", "1/1"]
    assert queue.count == 1
    assert [request.id for request in queue.admit(free=9, slots=9, columns=100).requests] == ["0/0"]
    assert queue.count == 0


def test_what_starts_again_takes_its_old_place(make):
    queue = make([9, 5])
    first = queue.admit(free=2, slots=4, columns=100)
    queue.requeue((request, first.prompts[0]) for request in reversed(first.requests))
    again = queue.admit(free=2, slots=4, columns=100)
    assert [request.id for request in again.requests] == ["0/0", "0/1"]
