"""Tables find what sorting does."""

from __future__ import annotations

import numpy as np
import pytest
from rl_kernels_cpu.small_integers import distinct, first_places


@pytest.mark.parametrize(("count", "bound"), [(0, 5), (1, 1), (40, 7), (1000, 3), (50, 4000)])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_they_find_what_numpy_s_unique_does(count: int, bound: int, dtype: type) -> None:
    values = np.random.default_rng(count).integers(0, bound, count).astype(dtype)
    present, first, kinds = np.unique(values, return_index=True, return_inverse=True)
    found_first, found_kinds = distinct(values, bound)
    assert found_first.tolist() == first.tolist()
    assert found_kinds.tolist() == kinds.tolist()
    expected = np.full(bound, -1)
    expected[present] = first
    assert first_places(values, bound).tolist() == expected.tolist()
