"""Which prompts are read together and when."""

from __future__ import annotations

import numpy as np
from rl_generation_hf.schedule import Schedule


def make(lengths, **changes) -> Schedule:
    options = {"n": 2, "max_new_tokens": 10, "budget": 1000, "vocab_size": 100, "prefill_tokens": 1024} | changes
    return Schedule(np.asarray(lengths, np.int64), **options)


def test_long_prompts_go_first_and_samples_share_one_reading():
    admission = make([8, 10, 9]).admit(free=6, slots=6)
    assert admission.prompts.tolist() == [1, 2, 0]
    assert admission.source.tolist() == [0, 0, 1, 1, 2, 2]
    assert admission.samples.tolist() == [0, 1, 0, 1, 0, 1]


def test_prompts_much_shorter_than_the_longest_are_read_apart():
    schedule = make([10, 7, 8])
    assert schedule.admit(free=6, slots=6).prompts.tolist() == [0, 2]
    assert schedule.admit(free=2, slots=6).prompts.tolist() == [1]
    assert schedule.waiting == 0


def test_a_prompt_waits_until_all_its_samples_fit():
    schedule = make([5, 5])
    assert schedule.admit(free=3, slots=4).prompts.tolist() == [0]
    assert schedule.admit(free=1, slots=4) is None
    assert schedule.admit(free=2, slots=4).prompts.tolist() == [1]


def test_samples_that_never_fit_together_are_read_in_portions():
    schedule = make([5], n=10)
    assert schedule.admit(free=4, slots=4).samples.tolist() == [0, 1, 2, 3]
    assert schedule.admit(free=4, slots=4).samples.tolist() == [4, 5, 6, 7]
    assert schedule.admit(free=4, slots=4).samples.tolist() == [8, 9]
    assert schedule.admit(free=4, slots=4) is None


def test_reading_waits_until_a_quarter_of_the_rows_is_free():
    schedule = make([5] * 20)
    assert not schedule.ready(free=3, slots=16)
    assert schedule.ready(free=4, slots=16)


def test_the_last_prompts_do_not_wait_for_a_quarter():
    schedule = make([5])
    assert schedule.ready(free=2, slots=16)
    assert not schedule.ready(free=1, slots=16)


def test_the_budget_bounds_rows_and_one_row_always_fits():
    schedule = make([30, 5])
    assert schedule.columns() == 40
    assert schedule.slots(40, 0) == 4  # no more than there are completions
    assert schedule.slots(400, 0) == 2
    assert schedule.slots(4000, 0) == 1


def test_one_reading_stays_within_its_tokens():
    assert make([10] * 5, prefill_tokens=30).admit(free=100, slots=100).prompts.tolist() == [0, 1, 2]


def test_a_prompt_longer_than_a_reading_is_read_alone():
    assert make([50, 50], prefill_tokens=30).admit(free=100, slots=100).prompts.tolist() == [0]


def test_one_reading_stays_within_its_logits():
    # Two prompts of different length cost 2 rows × 2 columns of logits, 2**25 / vocab allows 3.
    assert make([10, 9], vocab_size=2**25 // 3).admit(free=9, slots=9).prompts.tolist() == [0]
    assert make([10, 10], vocab_size=2**25 // 3).admit(free=9, slots=9).prompts.tolist() == [0, 1]
