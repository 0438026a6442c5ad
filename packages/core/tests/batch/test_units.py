"""Units against the obvious way to collect them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rl_core.batch.units import Units


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=20), st.randoms())
def test_units_come_in_order_of_first_appearance_with_their_sequences_and_tokens(rows, random):
    ids, lengths = [u for u, _ in rows], np.array([n for _, n in rows], np.int64)
    units = Units.of(np.array(ids, np.int64), lengths)
    names = list(dict.fromkeys(ids))
    members = [[i for i, unit in enumerate(ids) if unit == name] for name in names]
    assert len(units) == len(names)
    assert units.tokens.tolist() == [int(lengths[m].sum()) for m in members]
    which = random.sample(range(len(names)), k=random.randint(0, len(names)))
    assert units.members(which).tolist() == [i for w in which for i in members[w]]
    assert units.members(which).dtype == np.int64


def test_without_ids_every_sequence_is_a_unit():
    units = Units.of(None, np.array([3, 4], np.int64))
    assert units.tokens.tolist() == [3, 4]
    assert units.members([1, 0]).tolist() == [1, 0]
