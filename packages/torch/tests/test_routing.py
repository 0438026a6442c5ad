"""The balancing loss of routers against that of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import ModelSpec
from rl_core.errors import EnvironmentProblem
from rl_torch.microbatch import MicroBatch
from rl_torch.models import build_model
from rl_torch.policy import compute_outputs, wrap_model
from rl_torch.routing import balancing_of, check_balancing

EXTRA = {"output_router_logits": True, "router_aux_loss_coef": 0.05, "initializer_range": 0.4, "num_experts_per_tok": 2}
FAMILIES = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16},
    "gpt_oss": {"num_local_experts": 4},
}


def model(architecture: str, **extra: object) -> torch.nn.Module:
    init = {"architecture": architecture, "hidden_size": 32, "layers": 2, "heads": 4, "ffn": 16}
    init["extra"] = {**EXTRA, **FAMILIES.get(architecture, {}), **extra}
    return build_model(ModelSpec(init=init, vocab_size=50, max_length=64, seed=1), dtype=torch.float32)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_loss_and_its_gradient_are_those_of_transformers(architecture: str) -> None:
    made = model(architecture)
    balancing = balancing_of(made.config)
    assert balancing is not None
    assert balancing.coefficient == 0.05
    check_balancing(made)
    ids = np.random.default_rng(0).integers(0, 50, 17)
    micro = MicroBatch.build(SequenceBatch.from_lists([ids]), width_multiple=4)  # padding takes no part
    found = compute_outputs(wrap_model(made, "lm"), micro, ("logprobs",), balancing=balancing).router_loss
    found.backward()
    gradients = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    expected = made(input_ids=torch.from_numpy(ids)[None], use_cache=False, output_router_logits=True).aux_loss
    expected.backward()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, p in made.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(gradients[name], p.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_there_is_none_unless_the_config_asks_for_it() -> None:
    assert balancing_of(model("mixtral", output_router_logits=False).config) is None
    assert balancing_of(model("mixtral", router_aux_loss_coef=0.0).config) is None


def test_a_model_that_does_not_say_what_its_routers_compute_is_refused() -> None:
    with pytest.raises(EnvironmentProblem, match="set output_router_logits to false in"):
        check_balancing(model("llama"))
