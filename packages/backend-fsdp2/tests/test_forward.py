"""Forward passes: equal to plain transformers, in the caller's order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fsdp2_helpers import (
    POLICY,
    backend,
    forward,
    forward_after_training,
    make_directory,
    model_spec,
    optimizer_spec,
    plain_model,
    random_batch,
)
from ranks import Ranks
from rl_core.batch import SequenceBatch
from rl_core.cluster.ports import free_port
from rl_core.contracts.model import ModelSpec, Role


def plain_outputs(spec: ModelSpec, batch: SequenceBatch, temperature: float) -> dict[str, np.ndarray]:
    """Full logits, one sequence at a time; zero where no log-prob is needed."""
    model, found = plain_model(spec), {"logprobs": [], "entropy": []}
    for i in range(len(batch)):
        tokens = torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64))
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=tokens[None]).logits[0] / temperature, -1)[:-1]
        needed = batch.token_columns["loss_mask"][batch.sequence(i)] != 0
        logprobs = np.append(0, log_p.gather(1, tokens[1:, None])[:, 0].numpy())
        entropy = np.append(0, -(log_p.exp() * log_p).sum(-1).numpy())
        found["logprobs"].append(np.where(needed, logprobs, 0))
        found["entropy"].append(np.where(needed, entropy, 0))
    return {name: np.concatenate(parts) for name, parts in found.items()}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("config", [{}, {"packing": "packed"}, {"packing": "padded", "max_tokens_per_microbatch": 50}])
def test_logprobs_and_entropy_equal_the_plain_model(single: Ranks, pair: Ranks, world: int, config: dict) -> None:
    batch = random_batch(15)
    expected = plain_outputs(model_spec(), batch, 0.8)
    ranks = (single if world == 1 else pair)(forward, batch=batch, config=config, temperature=0.8)
    parts = batch.split_balanced(world)
    for name, values in expected.items():
        found = batch.scatter(parts, [r[name] for r in ranks], per_token=True)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, values, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("world", [1, 2])
def test_scores_come_per_sequence_and_start_at_zero(single: Ranks, pair: Ranks, world: int) -> None:
    batch, role = random_batch(6), Role("reward", trainable=True, head="scalar")
    ranks = (single if world == 1 else pair)(forward, batch=batch, role=role, outputs=("scores", "values"))
    assert sum(len(r["scores"]) for r in ranks) == 6
    assert sum(len(r["values"]) for r in ranks) == len(batch.tokens)
    assert all(not r[name].any() for r in ranks for name in r)


@pytest.mark.parametrize("world", [1, 2])
def test_a_forward_pass_sees_the_newest_weights(single: Ranks, pair: Ranks, world: int, tmp_path: object) -> None:
    ranks = single if world == 1 else pair
    batch = random_batch()
    for first, second, restored in ranks(forward_after_training, batch=batch, directory=make_directory(tmp_path / "c")):
        assert not np.array_equal(first, second)
        np.testing.assert_array_equal(first, restored)


def test_an_empty_shard_gives_empty_outputs(pair: Ranks) -> None:
    ranks = pair(forward, batch=random_batch(2))
    assert {n: v.shape for n, v in ranks[1].items()} == {"logprobs": (0,), "entropy": (0,)}


def test_an_output_the_head_does_not_have_is_refused() -> None:
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        with pytest.raises(ValueError, match="head") as caught:
            made.forward("policy", random_batch(), ("values",), 1.0)
    assert str(caught.value) == (
        "a model with a 'lm' head computes logprobs, entropy, mean_logprobs and logsumexp, not 'values'"
    )


def test_an_unknown_role_is_named_with_the_loaded_ones() -> None:
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        with pytest.raises(ValueError, match="critic") as caught:
            made.forward("critic", random_batch(), ("logprobs",), 1.0)
    assert str(caught.value) == "no role 'critic' is loaded; loaded: policy"
