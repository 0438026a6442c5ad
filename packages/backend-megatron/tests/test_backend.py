"""The backend's life in a process: set up, several roles, closed, set up again."""

from __future__ import annotations

import pytest
import torch
from megatron_helpers import (
    NLL,
    POLICY,
    backend,
    model_spec,
    optimizer_spec,
    random_batch,
    two_roles_twice,
)
from ranks import Ranks
from rl_backend_megatron.backend import MegatronBackend
from rl_backend_megatron.config import MegatronConfig
from rl_core.cluster.ports import free_port
from rl_core.contracts.backend import Scale, Topology, WorkerContext
from rl_core.contracts.model import Role
from rl_core.errors import ConfigError, EnvironmentProblem


@pytest.mark.parametrize(
    ("world", "parallel", "expected"),
    [
        (1, {}, [Topology(0, 1)]),
        (2, {"tp": 2}, [Topology(0, 1), Topology(0, 1, is_output=False)]),
        (2, {"pp": 2}, [Topology(0, 1, is_output=False), Topology(0, 1)]),
        (2, {"dp": 2}, [Topology(0, 2), Topology(1, 2)]),
    ],
)
def test_a_process_can_be_set_up_again_after_close(
    ranks: Ranks, world: int, parallel: dict, expected: list[Topology]
) -> None:
    answers = ranks(two_roles_twice, world, batch=random_batch(4), config={"parallel": parallel})
    assert list(answers) == [[place, place] for place in expected]


def test_a_frozen_role_cannot_be_trained() -> None:
    batch = random_batch(2)
    with backend(0, 1, free_port()) as made:
        made.load(Role("reference", trainable=False), model_spec(), None)
        with pytest.raises(ValueError, match="without an optimizer") as caught:
            made.train("reference", batch, NLL, Scale.of(batch))
    assert str(caught.value) == "role 'reference' was loaded without an optimizer, so it cannot be trained"


def test_a_trainable_role_needs_an_optimizer() -> None:
    with backend(0, 1, free_port()) as made, pytest.raises(ValueError, match="optimizer") as caught:
        made.load(POLICY, model_spec(), None)
    assert str(caught.value) == "role 'policy' is trainable and needs an optimizer"


def test_calls_before_set_up_say_so() -> None:
    with pytest.raises(RuntimeError) as caught:
        MegatronBackend(MegatronConfig(name="megatron")).sleep()
    assert str(caught.value) == "the backend is not set up; call setup() first"


def test_a_second_set_up_says_so() -> None:
    with backend(0, 1, free_port()) as made, pytest.raises(RuntimeError) as caught:
        made.setup(WorkerContext(0, 1, "127.0.0.1", free_port()))
    assert str(caught.value) == "the backend is set up already; close() it first"


def test_ranks_that_do_not_hold_whole_copies_are_refused() -> None:
    made = MegatronBackend(MegatronConfig(name="megatron", parallel={"tp": 2, "pp": 2}))
    with pytest.raises(ConfigError) as caught:
        made.setup(WorkerContext(0, 6, "127.0.0.1", free_port()))
    assert str(caught.value) == "6 ranks cannot hold copies of a model on tp 2 × pp 2 = 4 ranks each"


def test_an_architecture_that_cannot_be_built_is_refused() -> None:
    with backend(0, 1, free_port()) as made, pytest.raises(EnvironmentProblem) as caught:
        made.load(POLICY, model_spec(architecture="gemma"), optimizer_spec())
    assert str(caught.value) == (
        "the megatron backend cannot build 'gemma' models\n"
        "    choose one of llama, qwen2, qwen3, qwen3_moe, or backend: {name: fsdp2}"
    )


def test_cuda_means_cpu_only_inside_a_call() -> None:
    before = torch.cuda.current_device, torch.cuda.synchronize
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        assert (torch.cuda.current_device, torch.cuda.synchronize) == before
        assert torch.zeros(1).type() == "torch.FloatTensor"
