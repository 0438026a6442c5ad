import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rl_core.batch import SequenceBatch


def ragged(lengths, units=None):
    rng = np.random.default_rng(0)
    columns = {"reward": np.arange(len(lengths), dtype=np.float32)}
    if units is not None:
        columns["unit"] = np.array(units, np.int64)
    return SequenceBatch.from_lists(
        [rng.integers(0, 99, n) for n in lengths],
        token_columns={"loss_mask": [np.ones(n, np.float32) for n in lengths]},
        sequence_columns=columns,
    )


def test_a_column_of_the_wrong_length_is_named():
    with pytest.raises(ValueError, match=r"^SequenceBatch: token column 'loss_mask' has 2 values for 3 tokens$"):
        SequenceBatch(np.zeros(3, np.int32), np.array([0, 3]), {"loss_mask": np.zeros(2)})
    with pytest.raises(ValueError, match=r"^SequenceBatch: sequence column 'reward' has 2 values for 1 sequences$"):
        SequenceBatch(np.zeros(3, np.int32), np.array([0, 3]), {}, {"reward": np.zeros(2)})


def test_a_token_column_that_does_not_fit_a_sequence_names_the_sequence():
    with pytest.raises(
        ValueError, match=r"^SequenceBatch: token column 'mask' has 1 values for sequence 1, which has 2 tokens$"
    ):
        SequenceBatch.from_lists([[1], [2, 3]], token_columns={"mask": [[1], [1]]})


def test_wrong_dtypes_and_offsets_are_refused():
    with pytest.raises(ValueError, match=r"^SequenceBatch: tokens must be a 1-D int32 array, got int64 \[3\]$"):
        SequenceBatch(np.zeros(3, np.int64), np.array([0, 3]))
    with pytest.raises(ValueError, match=r"^SequenceBatch: offsets fall at sequence 1$"):
        SequenceBatch(np.zeros(3, np.int32), np.array([0, 3, 1, 3]))
    with pytest.raises(ValueError, match=r"^SequenceBatch: offsets must run from 0 to 3 \(the number of tokens\)$"):
        SequenceBatch(np.zeros(3, np.int32), np.array([0, 2]))
    with pytest.raises(ValueError, match=r"'text' holds Python objects; columns are plain numbers$"):
        SequenceBatch(np.zeros(1, np.int32), np.array([0, 1]), {}, {"text": np.array(["a"], object)})


def test_selecting_keeps_tokens_and_columns_together():
    batch = ragged([2, 0, 3])
    part = batch.select([2, 0])
    assert part.tokens.tolist() == [*batch.tokens[2:], *batch.tokens[:2]]
    assert part.offsets.tolist() == [0, 3, 5]
    assert part.sequence_columns["reward"].tolist() == [2, 0]
    assert batch.select(np.array([False, False, True])).lengths.tolist() == [3]


def test_joining_batches_with_different_columns_names_the_columns():
    plain = SequenceBatch.from_lists([[1]])
    with pytest.raises(
        ValueError,
        match=r"^SequenceBatch.concat: batch 1 and batch 0 differ in token_columns: loss_mask$",
    ):
        SequenceBatch.concat([plain, ragged([1])])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 4))
def test_split_work_and_merge_gives_everything_back_in_order(lengths, n):
    batch = ragged(lengths)
    parts = batch.split_balanced(n)
    shards = [batch.select(p) for p in parts]
    tokens = batch.scatter(parts, [s.tokens.astype(np.float32) for s in shards], per_token=True)
    rewards = batch.scatter(parts, [s.sequence_columns["reward"] for s in shards], per_token=False)
    assert tokens.tolist() == batch.tokens.tolist()
    assert rewards.tolist() == batch.sequence_columns["reward"].tolist()
    assert len(SequenceBatch.concat(shards).tokens) == len(batch.tokens)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=16), st.integers(1, 30))
def test_units_are_never_split_over_micro_batches_or_ranks(rows, budget):
    batch = ragged([n for n, _ in rows], units=[u for _, u in rows])
    units = batch.sequence_columns["unit"]
    for parts in (batch.pack(budget), batch.pack(budget, at_least=3), batch.split_balanced(3)):
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(batch)))
        homes = [set(units[p].tolist()) for p in parts]
        assert sum(len(h) for h in homes) == len(set(units.tolist()))


def test_ranks_can_agree_on_a_number_of_micro_batches():
    assert len(ragged([4, 4]).pack(100, at_least=3)) == 3
    assert len(ragged([]).pack(100, at_least=2)) == 2


def test_minibatches_have_equally_many_units():
    batch = ragged([1] * 10, units=[0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    assert [len(b) for b in batch.minibatches(2)] == [6, 4]
    shuffled = batch.minibatches(2, seed=1)
    assert sorted(np.concatenate([b.sequence_columns["unit"] for b in shuffled]).tolist()) == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
    ]


def test_neighbouring_sequences_are_shared_and_others_copied():
    batch = ragged([2, 0, 3, 1])
    shared, copied = batch.share(np.array([1, 2])), batch.share(np.array([2, 1]))
    for part, which in ((shared, [1, 2]), (copied, [2, 1])):
        expected = batch.select(which)
        assert part.offsets.tolist() == expected.offsets.tolist()
        for name in ("tokens", "loss_mask", "reward"):
            column, wanted = ({"tokens": p.tokens} | p.token_columns | p.sequence_columns for p in (part, expected))
            assert column[name].tolist() == wanted[name].tolist()
            assert column[name].dtype == wanted[name].dtype
    assert np.shares_memory(shared.tokens, batch.tokens)
    assert not np.shares_memory(copied.tokens, batch.tokens)
    assert len(batch.share(np.zeros(0, np.int64))) == 0


def test_unshuffled_minibatches_copy_nothing():
    batch = ragged([2, 3, 4])
    assert all(np.shares_memory(part.tokens, batch.tokens) for part in batch.minibatches(3))
    assert len(batch.minibatches(1)[0].tokens) == 9


def test_a_batch_survives_pickling_with_out_of_band_buffers():
    batch = ragged([2, 3])
    buffers = []
    data = pickle.dumps(batch, protocol=5, buffer_callback=buffers.append)
    again = pickle.loads(data, buffers=buffers)
    assert len(buffers) >= 4
    assert again.tokens.tolist() == batch.tokens.tolist()
    assert again.token_columns["loss_mask"].tolist() == batch.token_columns["loss_mask"].tolist()
