import pytest
from rl_core.contracts import transport


def test_the_old_name_of_a_weight_group_works_and_warns():
    with pytest.warns(DeprecationWarning, match="Meeting is now called WeightGroup"):
        assert transport.Meeting is transport.WeightGroup
    with pytest.raises(AttributeError, match="no attribute 'Somewhere'"):
        _ = transport.Somewhere
