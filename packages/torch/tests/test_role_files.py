"""What a role's checkpoint directory says about itself."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from rl_core.contracts.model import Role
from rl_core.errors import RLError
from rl_torch.role_files import (
    read_facts,
    refuse_other_role,
    restore_random_state,
    save_random_state,
    write_facts,
)

POLICY, VALUE = Role("policy", trainable=True), Role("value", trainable=True, head="scalar")


def test_facts_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_facts(tmp_path, POLICY, version=1, steps=7, ranks=2)
    refuse_other_role(tmp_path, POLICY)
    expected = {"format": 1, "role": "policy", "steps": 7, "ranks": 2}
    assert read_facts(tmp_path, POLICY, backend="mine", version=1) == expected


def test_what_cannot_be_read_is_refused_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(RLError) as caught:
        read_facts(tmp_path, POLICY, backend="mine", version=1)
    assert str(caught.value) == f"{tmp_path} holds no mine checkpoint (no role.json)"
    write_facts(tmp_path, POLICY, version=2)
    with pytest.raises(RLError) as caught:
        read_facts(tmp_path, POLICY, backend="mine", version=1)
    assert str(caught.value) == (
        f"{tmp_path / 'role.json'}: checkpoint format 2, this version of rl-backend-mine reads 1"
    )
    with pytest.raises(RLError) as caught:
        read_facts(tmp_path, VALUE, backend="mine", version=2)
    assert str(caught.value) == f"{tmp_path} holds the role 'policy', not 'value'"
    with pytest.raises(RLError) as caught:
        refuse_other_role(tmp_path, VALUE)
    assert str(caught.value) == f"{tmp_path} already holds another role's checkpoint; save 'value' elsewhere"


def test_random_numbers_go_on_where_they_were_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_random_state(tmp_path, 0)
    expected = torch.rand(3)
    restore_random_state(tmp_path, 0)
    assert torch.equal(torch.rand(3), expected)
    with caplog.at_level(logging.WARNING):
        restore_random_state(tmp_path, 1)
    assert caplog.messages == [f"{tmp_path} has no random-number state for rank 1"]
