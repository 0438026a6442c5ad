"""What a role's checkpoint directory says about itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rl_core.errors import RLError
from rl_torch.role_files import (
    read_facts,
    read_random_state,
    require_own_directory,
    write_facts,
    write_random_state,
)

FACTS = {"format": 2, "role": "policy", "steps": 7, "ranks": 2}


def test_facts_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_facts(tmp_path, FACTS)
    require_own_directory(tmp_path, "policy")
    assert read_facts(tmp_path, backend="mine", version=2, role="policy") == FACTS


def test_what_cannot_be_read_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "role.json"
    with pytest.raises(RLError) as caught:
        read_facts(tmp_path, backend="mine", version=2, role="policy")
    assert str(caught.value) == f"{tmp_path} holds no mine checkpoint (no role.json)"
    write_facts(tmp_path, FACTS)
    with pytest.raises(RLError) as caught:
        read_facts(tmp_path, backend="mine", version=1, role="policy")
    assert str(caught.value) == f"{path}: checkpoint format 2, this version of rl-backend-mine reads 1"
    with pytest.raises(RLError) as caught:
        read_facts(tmp_path, backend="mine", version=2, role="value")
    assert str(caught.value) == f"{tmp_path} holds the role 'policy', not 'value'"
    with pytest.raises(RLError) as caught:
        require_own_directory(tmp_path, "value")
    assert str(caught.value) == f"{tmp_path} already holds another role's checkpoint; save 'value' elsewhere"
    path.write_text('{"format": 2}')
    with pytest.raises(RLError) as caught:
        read_facts(tmp_path, backend="mine", version=2, role="policy")
    assert str(caught.value) == (
        f"{path} is damaged: KeyError: 'steps'\n    resume from another checkpoint, or restore this one from a copy"
    )


def test_random_numbers_go_on_where_they_were_saved(tmp_path: Path) -> None:
    write_random_state(tmp_path, 0)
    expected = torch.rand(3)
    assert read_random_state(tmp_path, 0)
    assert torch.equal(torch.rand(3), expected)
    assert not read_random_state(tmp_path, 1)
