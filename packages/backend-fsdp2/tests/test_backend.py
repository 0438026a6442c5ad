"""The life of a backend: set up, several roles, sleep, close, set up again."""

from __future__ import annotations

import pytest
import torch
from fsdp2_helpers import POLICY, backend, model_spec, optimizer_spec, random_batch, two_roles_twice
from ranks import Ranks
from rl_backend_fsdp2.backend import Fsdp2Backend
from rl_backend_fsdp2.config import Fsdp2Config
from rl_core.cluster.ports import free_port
from rl_core.contracts.backend import Topology, WorkerContext


@pytest.mark.parametrize("world", [1, 2])
def test_a_process_can_be_set_up_again_after_close(single: Ranks, pair: Ranks, world: int) -> None:
    runs = (single if world == 1 else pair)(two_roles_twice, batch=random_batch())
    for rank, places in enumerate(runs):
        assert places == [Topology(rank, world)] * 2


def test_setup_reports_the_place_and_sets_threads() -> None:
    made = Fsdp2Backend(Fsdp2Config(name="fsdp2"))
    assert made.setup(WorkerContext(0, 1, "127.0.0.1", free_port(), threads=1)) == Topology(0, 1, True)
    assert torch.get_num_threads() == 1
    with pytest.raises(RuntimeError, match="set up already") as caught:
        made.setup(WorkerContext(0, 1, "127.0.0.1", free_port()))
    assert str(caught.value) == "the backend is set up already; close() it first"
    made.close()
    made.close()


def test_a_trainable_role_needs_an_optimizer() -> None:
    with backend(0, 1, free_port()) as made, pytest.raises(ValueError, match="optimizer") as caught:
        made.load(POLICY, model_spec(), None)
    assert str(caught.value) == "role 'policy' is trainable and needs an optimizer"


def test_the_model_report_counts_tied_parameters_once() -> None:
    with backend(0, 1, free_port()) as made:
        tied = made.load(POLICY, model_spec(tie=True), optimizer_spec())
        untied = made.load(POLICY, model_spec(tie=False), optimizer_spec())
    assert untied.parameters - tied.parameters == 96 * 32
