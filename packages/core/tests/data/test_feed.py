import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.data.feed import join_rows


def test_units_of_separately_encoded_rows_stay_distinct():
    pair = SequenceBatch.from_lists([[1], [2]], sequence_columns={"unit": np.array([0, 0])})
    assert join_rows([pair, pair]).sequence_columns["unit"].tolist() == [0, 0, 1, 1]


def test_rows_that_encode_to_nothing_are_left_out():
    empty = SequenceBatch.from_lists([])
    one = SequenceBatch.from_lists([[5]], token_columns={"loss_mask": [[1.0]]})
    assert join_rows([empty, one]).tokens.tolist() == [5]
