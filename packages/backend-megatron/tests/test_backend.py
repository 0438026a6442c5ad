"""Megatron has all that the engine promises, in every dimension of its grid; and what is its own when it is set up."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from megatron_helpers import MEGATRON, backend, train
from ranks import Ranks
from rl_backend_megatron.backend import MegatronBackend
from rl_backend_megatron.config import MegatronConfig
from rl_core.contracts.backend import WorkerContext
from rl_core.errors import ConfigError, EnvironmentProblem
from rl_ray.ports import free_port
from rl_torch.engine.testing.examples import POLICY, model_spec, optimizer_spec, random_batch
from rl_torch.engine.testing.jobs import On, output_ranks
from rl_torch.engine.testing.suite import EngineSuite


class TestMegatron(EngineSuite):
    """Shared tests on one rank, two and four."""

    under = MEGATRON
    layouts: ClassVar[dict[str, On]] = {
        "one rank": On(),
        "tensor parallel": On(2, {"parallel": {"tp": 2}, "max_tokens_per_microbatch": 100}),
        "packed": On(2, {"parallel": {"tp": 2, "sequence": True}, "packing": "packed"}),
        "pipeline": On(2, {"parallel": {"pp": 2}, "max_tokens_per_microbatch": 60}),
        "data parallel": On(2, {"parallel": {"dp": 2}}),
        "pipelines of tensors": On(4, {"parallel": {"tp": 2, "pp": 2}, "max_tokens_per_microbatch": 100}),
    }
    weights_tolerance = 1e-5


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


def test_output_ranks_are_the_last_stage_of_each_copy(ranks: Ranks) -> None:
    answers = ranks(train, 4, batch=random_batch(), steps=0, config={"parallel": {"tp": 2, "pp": 2}})
    assert [a["place"].is_output for a in answers] == [False, False, True, False]
    answers = ranks(train, 4, batch=random_batch(), steps=0, config={"parallel": {"dp": 2, "pp": 2}})
    assert [(a["place"].dp_rank, a["place"].dp_size, a["place"].is_output) for a in answers] == [
        (0, 2, False),
        (1, 2, False),
        (0, 2, True),
        (1, 2, True),
    ]
    assert len(output_ranks(answers)) == 2
