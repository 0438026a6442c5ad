"""Rows to training sequences: weights, where a sequence ends, what happens to long rows, and pairs."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from rl_algo_common.encoding import RowEncoder
from rl_core.batch import SequenceBatch
from rl_core.errors import DataError


class Letters:
    """Token ids are the letters' places in the alphabet; 0 ends a completion, 30 follows it where ``tail``."""

    def __init__(self, *, tail: bool = False) -> None:
        self.tail = [30, 30] if tail else []
        self.seen: list[dict] = []

    def encode_example(self, row, loss_on):
        self.seen.append(dict(row))
        prompt = [ord(c) - ord("a") + 1 for c in row["prompt"]]
        completion = [*(ord(c) - ord("a") + 1 for c in row["completion"]), *([0] if row["completion"] else [])]
        trained = [float(loss_on == "all")] * len(prompt) + [1.0] * len(completion)
        untrained = [float(loss_on == "all")] * len(self.tail)
        return np.array(prompt + completion + self.tail, np.int32), np.array(trained + untrained, np.float32)


ROWS = [
    {"prompt": "ab", "completion": "cd", "__where__": "data.jsonl:1"},
    {"prompt": "abcdefg", "completion": "h", "__where__": "data.jsonl:2"},
    {"prompt": "k", "completion": "abcdefghij", "__where__": "data.jsonl:3"},
]
PAIRS = [
    {"prompt": "ab", "chosen": "c", "rejected": "de", "gap": 2, "__where__": "pairs.jsonl:1"},
    {"prompt": "a", "chosen": "bcdefg", "rejected": "b", "gap": 0.5, "__where__": "pairs.jsonl:2"},
    {"prompt": "x", "chosen": "y", "rejected": "z", "gap": -1.0, "__where__": "pairs.jsonl:3"},
]


def limited(max_tokens: int | None, on_long_row: str = "error") -> RowEncoder:
    return RowEncoder(max_tokens, on_long_row)


def masks(batch: SequenceBatch) -> list[list[float]]:
    return [batch.token_columns["loss_mask"][batch.sequence(i)].tolist() for i in range(len(batch))]


def test_rows_become_sequences_whose_completion_is_trained_on():
    batch = RowEncoder().examples(ROWS[:2], Letters())
    assert batch.lengths.tolist() == [5, 9]
    assert batch.tokens[:5].tolist() == [1, 2, 3, 4, 0]
    assert masks(batch) == [[0, 0, 1, 1, 1], [0] * 7 + [1, 1]]
    assert (batch.tokens.dtype, batch.token_columns["loss_mask"].dtype) == (np.int32, np.float32)


def test_the_first_token_is_never_trained_on_because_nothing_predicts_it():
    assert masks(RowEncoder().examples(ROWS[:1], Letters(), loss_on="all")) == [[0, 1, 1, 1, 1]]


def test_a_sequence_ends_with_its_last_trained_token():
    letters = Letters(tail=True)
    assert RowEncoder().examples(ROWS[:1], letters).tokens.tolist() == [1, 2, 3, 4, 0]
    assert RowEncoder().examples(ROWS[:1], letters, loss_on="all").tokens.tolist() == [1, 2, 3, 4, 0, 30, 30]
    assert limited(5).examples(ROWS[:1], letters).lengths.tolist() == [5]


def test_a_row_that_is_too_long_is_an_error_that_names_its_line():
    with pytest.raises(DataError) as error:
        limited(10).examples(ROWS, Letters())
    assert str(error.value) == (
        "data.jsonl:3: 12 tokens, more than algorithm.max_tokens 10\n"
        "    raise algorithm.max_tokens, or set algorithm.on_long_row to skip or truncate"
    )


def test_a_row_of_unknown_origin_is_named_by_its_index():
    with pytest.raises(DataError) as error:
        limited(3).examples([{"prompt": "ab", "completion": "c"}] * 2, Letters())
    assert str(error.value).startswith("row 0 of the batch: 4 tokens, more than algorithm.max_tokens 3\n")


def test_truncated_rows_are_reported_with_their_line(caplog):
    with caplog.at_level(logging.WARNING, "rl_core.long_rows"):
        batch = limited(10, "truncate").examples(ROWS, Letters())
    assert batch.lengths.tolist() == [5, 9, 10]
    assert masks(batch)[2] == [0] + [1] * 9
    assert caplog.messages == ["data.jsonl:3: 12 tokens, more than algorithm.max_tokens 10: truncated"]


def test_skipped_rows_are_left_out_and_warned_about_once(caplog):
    encoder = limited(8, "skip")
    with caplog.at_level(logging.WARNING, "rl_core.long_rows"):
        first, second = (encoder.examples(ROWS, Letters()) for _ in range(2))
    assert first.lengths.tolist() == second.lengths.tolist() == [5]
    assert caplog.messages == ["data.jsonl:2: 9 tokens, more than algorithm.max_tokens 8: skipped"]


def test_rows_that_are_all_skipped_leave_an_empty_batch():
    assert len(limited(2, "skip").examples(ROWS, Letters())) == 0
    assert len(limited(2, "skip").pairs(PAIRS, Letters(), numbers={"margin": "gap"})) == 0


def test_a_row_truncated_before_its_completion_is_left_out(caplog):
    with caplog.at_level(logging.WARNING, "rl_core.long_rows"):
        batch = limited(6, "truncate").examples(ROWS, Letters())
    assert batch.lengths.tolist() == [5, 6]
    assert caplog.messages == ["data.jsonl:2: 9 tokens, more than algorithm.max_tokens 6: skipped"]


@pytest.mark.parametrize(("own", "model", "name"), [(None, 8, "model"), (10, 8, "model"), (8, 10, "algorithm")])
def test_the_model_limits_rows_too_and_the_smaller_limit_counts(own, model, name):
    encoder = limited(own, "skip")
    record = encoder.limit_to(model)
    record.quiet()
    assert encoder.examples(ROWS, Letters()).lengths.tolist() == [5]
    limit = {"model": "model.max_length", "algorithm": "algorithm.max_tokens"}[name]
    assert record.summary(3) == f"2 of 3 rows are longer than {limit} 8: skipped; longest 12 (data.jsonl:3)"


def test_what_happens_to_long_rows_may_be_said_without_a_limit_of_their_own():
    encoder = limited(None, "error")
    encoder.limit_to(10)
    with pytest.raises(DataError, match=r"data\.jsonl:3: 12 tokens, more than model\.max_length 10"):
        encoder.examples(ROWS, Letters())


def test_the_summary_of_truncated_rows_counts_those_without_a_completion_left():
    encoder = limited(6, "truncate")
    record = encoder.limit_to(100)
    for _ in range(2):
        encoder.examples(ROWS, Letters())
    assert record.summary(3) == (
        "2 of 3 rows are longer than algorithm.max_tokens 6: truncated (1 of them skipped, because nothing to train on "
        "would be left); longest 12 (data.jsonl:3)"
    )


def test_an_empty_completion_is_an_error():
    with pytest.raises(DataError) as error:
        RowEncoder().examples([{"prompt": "ab", "completion": "", "__where__": "data.jsonl:9"}], Letters())
    assert str(error.value) == "data.jsonl:9: no token to train on, its completion is empty; remove the row"


def test_a_pair_is_two_sequences_of_one_unit():
    batch = RowEncoder().pairs(PAIRS[:2], Letters())
    assert [batch.tokens[batch.sequence(i)].tolist() for i in range(4)] == [
        [1, 2, 3, 0],
        [1, 2, 4, 5, 0],
        [1, 2, 3, 4, 5, 6, 7, 0],
        [1, 2, 0],
    ]
    assert masks(batch)[:2] == [[0, 0, 1, 1], [0, 0, 1, 1, 1]]
    assert batch.sequence_columns["unit"].tolist() == [0, 0, 1, 1]
    assert batch.sequence_columns["chosen"].tolist() == [True, False, True, False]
    assert batch.sequence_columns["chosen"].dtype == bool


def test_a_pair_is_skipped_whole_and_takes_its_numbers_with_it():
    batch = limited(5, "skip").pairs(PAIRS, Letters(), numbers={"margin": "gap"})
    assert batch.lengths.tolist() == [4, 5, 3, 3]
    assert batch.sequence_columns["unit"].tolist() == [0, 0, 1, 1]
    assert batch.sequence_columns["margin"].tolist() == [2.0, 2.0, -1.0, -1.0]
    assert batch.sequence_columns["margin"].dtype == np.float32


def test_a_pair_that_is_too_long_names_its_line_and_its_side():
    with pytest.raises(DataError) as error:
        limited(5).pairs(PAIRS, Letters())
    assert str(error.value).startswith("pairs.jsonl:2 (chosen): 8 tokens, more than algorithm.max_tokens 5\n")


def test_the_tokenizer_learns_where_a_side_of_a_pair_comes_from():
    letters = Letters()
    RowEncoder().pairs(PAIRS[:1], letters)
    assert [row["__where__"] for row in letters.seen] == ["pairs.jsonl:1 (chosen)", "pairs.jsonl:1 (rejected)"]


def test_a_pair_without_a_side_is_refused():
    with pytest.raises(DataError) as error:
        RowEncoder().pairs([{"prompt": "a", "chosen": "b", "__where__": "pairs.jsonl:7"}], Letters())
    assert str(error.value) == (
        "pairs.jsonl:7: a preference pair needs rejected\n"
        "    map the columns in the data section, e.g. chosen: better, rejected: worse"
    )


@pytest.mark.parametrize(("value", "shown"), [("2", "'2'"), (None, "None"), (True, "True"), (math.inf, "inf")])
def test_a_number_that_is_none_is_refused(value, shown):
    with pytest.raises(DataError) as error:
        RowEncoder().pairs([{**PAIRS[0], "gap": value}], Letters(), numbers={"margin": "gap"})
    assert str(error.value) == f"pairs.jsonl:1: column 'gap' must be a finite number, got {shown}"


def test_a_number_that_is_not_there_lists_the_columns():
    with pytest.raises(DataError) as error:
        RowEncoder().pairs(PAIRS, Letters(), numbers={"margin": "gpa"})
    assert str(error.value) == ("pairs.jsonl:1: there is no column 'gpa' (columns: prompt, chosen, rejected, gap)")
