"""The learning-rate schedule and AdamW's parameter groups."""

from __future__ import annotations

import pytest
import torch
from rl_core.contracts.model import OptimizerSpec
from rl_torch.optim import build_adamw, learning_rate, set_learning_rate
from rl_torch.seeding import prepare_process, rng_state, set_rng_state

torch.set_num_threads(1)


def rates(**fields: object) -> list[float]:
    spec = OptimizerSpec(learning_rate=2.0, total_steps=8, **fields)
    return [round(learning_rate(spec, n), 6) for n in range(9)]


def test_warmup_rises_from_its_first_part_to_the_peak() -> None:
    assert rates(warmup_steps=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_linear_falls_to_the_floor_when_all_steps_are_done() -> None:
    assert rates(schedule="linear", warmup_steps=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0]
    assert rates(schedule="linear", min_lr_ratio=0.5)[-1] == 1.0


def test_cosine_is_halfway_in_the_middle() -> None:
    # r = 0.1: at half of the steps 0.1 + 0.9 / 2 = 0.55 of the peak
    found = rates(schedule="cosine", min_lr_ratio=0.1)
    assert (found[0], found[4], found[8]) == (2.0, 1.1, 0.2)


def test_the_floor_holds_after_the_last_step() -> None:
    spec = OptimizerSpec(learning_rate=1.0, schedule="cosine", total_steps=3, warmup_steps=5, min_lr_ratio=0.2)
    assert learning_rate(spec, 100) == pytest.approx(0.2)


def test_norms_and_biases_are_not_decayed_and_frozen_parameters_are_left_out() -> None:
    layer, frozen = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2).requires_grad_(False)
    spec = OptimizerSpec(learning_rate=0.1, weight_decay=0.5)
    optimizer = build_adamw([*layer.parameters(), *frozen.parameters()], spec)
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(1, 0.5), (1, 0.0)]
    layer.bias.grad, layer.weight.grad = torch.zeros(2), torch.zeros(2, 3)
    bias, weight = layer.bias.detach().clone(), layer.weight.detach().clone()
    set_learning_rate(optimizer, 0.2)
    optimizer.step()
    assert torch.equal(layer.bias, bias)
    torch.testing.assert_close(layer.weight.detach(), weight * (1 - 0.2 * 0.5))


def test_random_state_is_restored_and_ranks_differ() -> None:
    prepare_process(threads=1, seed=3, rank=0)
    state, first = rng_state(), torch.rand(2)
    prepare_process(threads=1, seed=3, rank=1)
    assert not torch.equal(torch.rand(2), first)
    set_rng_state(state)
    assert torch.equal(torch.rand(2), first)
