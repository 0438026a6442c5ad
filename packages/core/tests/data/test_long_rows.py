"""Rows that are too long: counted before training, then left out, cut, or refused, the same way in every run."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from rl_algo_common.encoding import RowEncoder
from rl_core.algorithm import AlgorithmBase
from rl_core.contracts.algorithm import BatchPlan
from rl_core.data.cursor import DataCursor
from rl_core.data.encodings import Encodings
from rl_core.data.feed import ExamplesFeed
from rl_core.errors import DataError
from rl_rollout.prompts import Prompts


class Characters:
    """One token a character; 1 opens a prompt and 0 ends a completion."""

    special_tokens = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": None}  # noqa: RUF012

    def encode_prompt(self, prompt):
        return np.array([1, *map(ord, prompt)], np.int32)

    def encode_example(self, row, loss_on):
        tokens = [1, *map(ord, row["prompt"] + row["completion"]), 0]
        trained = len(row["completion"]) + 1
        return np.array(tokens, np.int32), np.array([0] * (len(tokens) - trained) + [1] * trained, np.float32)


class Tuning(AlgorithmBase):
    def __init__(self, on_long_row="skip"):
        super().__init__(None)
        self.encoder = RowEncoder(None, on_long_row)

    def limit_rows(self, max_length):
        return self.encoder.limit_to(max_length)

    def encode(self, rows, tokenizer):
        return self.encoder.examples(rows, tokenizer)


def rows_of(lengths):
    """Rows whose example has this many tokens, and whose prompt one fewer."""
    return [
        {"prompt": "p" * (length - 3), "completion": "c", "__where__": f"train.jsonl:{i + 1}"}
        for i, length in enumerate(lengths)
    ]


def examples(lengths, on_long_row="skip", max_length=8):
    return Encodings(rows_of(lengths), algorithm=Tuning(on_long_row), tokenizer=Characters(), max_length=max_length)


def cursor(size, position=0):
    return DataCursor(size=size, seed=3, position=position)


LENGTHS = [4, 12, 5, 6, 30, 7, 9, 8]


def test_long_rows_are_counted_before_training_in_one_line(caplog):
    with caplog.at_level(logging.WARNING):
        examples(LENGTHS).check(cursor(8), 100)
    assert caplog.messages == ["3 of 8 rows are longer than model.max_length 8: skipped; longest 30 (train.jsonl:5)"]


def test_a_log_names_twenty_long_rows_and_counts_the_others(caplog):
    with caplog.at_level(logging.INFO):
        examples([9] * 500).check(cursor(500), 500)
    *named, summary = caplog.messages
    assert len(named) == 20
    assert summary.startswith("500 of 500 rows are longer than model.max_length 8: skipped")


def test_rows_that_fit_are_not_worth_a_line(caplog):
    with caplog.at_level(logging.WARNING):
        examples([4, 8]).check(cursor(2), 100)
    assert not caplog.messages


def test_as_an_error_long_rows_are_all_counted_and_the_first_are_named():
    with pytest.raises(DataError) as caught:
        examples(LENGTHS, "error").check(cursor(8), 100)
    head, fix = str(caught.value).split("\n")
    assert head.startswith("3 of 8 rows are longer than model.max_length 8: train.jsonl:")
    assert {f"train.jsonl:{n} has {LENGTHS[n - 1]} tokens" for n in (2, 5, 7)} == set(
        head.split(": ", 1)[1].split("; ")
    )
    assert fix == "    raise model.max_length, or set algorithm.on_long_row to skip or truncate"


def test_only_rows_that_the_run_will_draw_are_looked_at(caplog):
    order = cursor(8).draw(8)
    first_long = next(i for i, index in enumerate(order) if LENGTHS[index] > 8)
    with caplog.at_level(logging.WARNING):
        examples(LENGTHS, "error").check(cursor(8), first_long)
    assert not caplog.messages
    with pytest.raises(DataError, match=f"1 of {first_long + 1} rows is longer"):
        examples(LENGTHS, "error").check(cursor(8), first_long + 1)


@pytest.mark.parametrize("checked", [True, False])
def test_another_row_is_drawn_in_place_of_a_long_one_and_a_resumed_run_draws_the_same(checked):
    def feed(position=0):
        encodings = examples(LENGTHS)
        if checked:
            encodings.check(cursor(8, position), 100)
        plan = BatchPlan("examples", rows_per_step=2)
        return ExamplesFeed(encodings, plan=plan, cursor=cursor(8, position))

    whole = feed()
    steps, positions = [], []
    for step in range(1, 7):
        steps.append(whole.next(step).batch.sequence_columns["row"].tolist())
        positions.append(whole.position)
    wanted = [int(i) for i in cursor(8).draw(40) if LENGTHS[int(i)] <= 8]
    assert sum(steps, []) == wanted[:12], "every step has its two rows, in the order of the shuffle"  # noqa: RUF017
    resumed = feed(positions[2])
    assert [resumed.next(step).batch.sequence_columns["row"].tolist() for step in (4, 5, 6)] == steps[3:]


def test_data_of_which_nothing_fits_is_an_error():
    encodings = examples([12, 9])
    with pytest.raises(DataError) as caught:
        encodings.draw(cursor(2), 1)
    assert str(caught.value) == (
        "none of the 2 rows of data can be used\n"
        "    2 of 2 rows are longer than model.max_length 8: skipped; longest 12 (train.jsonl:1)"
    )


def test_truncated_examples_keep_their_beginning():
    assert len(examples([10], "truncate", max_length=9)[0].tokens) == 9


def prompts(lengths, on_long="skip", **options):
    """Of these lengths, with room for four tokens."""
    rows = [
        {"prompt": "".join(chr(97 + i) for i in range(n - 1)), "__where__": f"p:{k + 1}"} for k, n in enumerate(lengths)
    ]
    return Prompts(rows, tokenizer=Characters(), max_length=10, max_new_tokens=6, on_long=on_long, **options)


def test_prompts_that_leave_no_room_are_counted_and_left_out(caplog):
    built = prompts([3, 5, 4, 9])
    with caplog.at_level(logging.WARNING):
        built.check(cursor(4), 100)
    assert caplog.messages == [
        "2 of 4 prompts are longer than 4 tokens (model.max_length 10 less generator.max_new_tokens 6): skipped; "
        "longest 9 (p:4)"
    ]
    assert set(built.draw(cursor(4), 6)) == {0, 2}


def test_a_truncated_prompt_keeps_its_end_and_its_opening_token():
    built = prompts([4, 7], "truncate")
    assert built[0].tolist() == [1, *map(ord, "abc")]
    assert built[1].tolist() == [1, *map(ord, "def")]


def test_as_an_error_long_prompts_are_named():
    with pytest.raises(DataError) as caught:
        prompts([3, 5], "error", section="eval_data", limit_name="the evaluator's max_new_tokens").check_rows([0, 1])
    assert str(caught.value) == (
        "1 of 2 prompts of eval_data is longer than 4 tokens (model.max_length 10 less the evaluator's max_new_tokens "
        "6): p:2 has 5 tokens\n    raise model.max_length, lower the evaluator's max_new_tokens, or set "
        "algorithm.on_long_prompt to skip or truncate"
    )


def test_a_row_of_unknown_origin_is_named_by_its_place_in_the_data():
    encodings = Encodings(
        [{"prompt": "p" * 9, "completion": "c"}] * 2, algorithm=Tuning("error"), tokenizer=Characters(), max_length=8
    )
    with pytest.raises(DataError, match="row 0 has 12 tokens; row 1 has 12 tokens"):
        encodings.check_rows([0, 1])
