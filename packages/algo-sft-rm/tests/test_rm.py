"""Reward models on the real backend: data, loss, micro-batches, and what transformers makes of the export."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rl_algo_sft_rm.config import RmConfig
from rl_algo_sft_rm.rm import RewardModel
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale
from rl_core.contracts.model import ModelSpec, Role
from rl_core.errors import DataError
from rl_torch.testing import plain_copy
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

ROLE = Role("reward", trainable=True, head="scalar")
ROWS = [
    {"prompt": "say ab", "chosen": "ab", "rejected": "cd", "gap": 1.0, "__where__": "data.jsonl:1"},
    {"prompt": "say c", "chosen": "cccccccc", "rejected": "a", "gap": 0.0, "__where__": "data.jsonl:2"},
    {"prompt": "d", "chosen": "ddd", "rejected": "cdcdcdcdcdcdcd", "gap": 2, "__where__": "data.jsonl:3"},
]


def rm(**fields) -> RewardModel:
    return RewardModel(RmConfig(name="rm", **fields))


def test_a_row_becomes_two_sequences_that_end_with_the_end_token(characters: Callable) -> None:
    tokenizer = characters(ROWS)
    batch = rm().encode(ROWS[:2], tokenizer)
    texts = [tokenizer.decode(batch.tokens[batch.sequence(i)]) for i in range(4)]
    assert texts == ["say abab", "say abcd", "say ccccccccc", "say ca"]
    assert batch.tokens[batch.offsets[1:] - 1].tolist() == [1, 1, 1, 1]
    assert batch.sequence_columns["unit"].tolist() == [0, 0, 1, 1]
    assert batch.sequence_columns["chosen"].tolist() == [True, False, True, False]
    assert set(batch.sequence_columns) == {"unit", "chosen"}


def test_chat_pairs_end_with_the_end_token_whatever_the_template_puts_behind(characters: Callable) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": "say ab"}],
            "chosen": [{"role": "assistant", "content": "ab"}],
            "rejected": "cd",
        }
    ]
    tokenizer = characters(rows)
    batch = rm().encode(rows, tokenizer)
    texts = [tokenizer.decode(batch.tokens[batch.sequence(i)]) for i in range(2)]
    assert texts == ["user: say ab\nassistant: ab", "user: say ab\nassistant: cd"]
    assert batch.tokens[batch.offsets[1:] - 1].tolist() == [1, 1]


def test_a_margin_column_travels_with_its_pair(characters: Callable) -> None:
    tokenizer = characters(ROWS)
    batch = rm(margin="gap", max_tokens=12, on_long_row="skip").encode(ROWS, tokenizer)
    assert batch.sequence_columns["margin"].tolist() == [1.0, 1.0]
    assert batch.sequence_columns["margin"].dtype == np.float32


def test_a_row_without_its_margin_is_named(characters: Callable) -> None:
    with pytest.raises(DataError) as caught:
        rm(margin="gpa").encode(ROWS, characters(ROWS))
    assert str(caught.value) == ("data.jsonl:1: there is no column 'gpa' (columns: prompt, chosen, rejected, gap)")


def test_a_new_model_starts_at_ln_2_and_even_odds_and_then_learns(characters: Callable, local_model: Callable) -> None:
    tokenizer = characters(ROWS)
    model, algorithm = local_model(ROLE, tokenizer), rm()
    batch = algorithm.encode(ROWS, tokenizer)
    steps = [algorithm.step(batch, {"reward": model}) for _ in range(30)]
    assert set(steps[0]) == {
        f"train/{n}" for n in ("loss", "preference_accuracy", "margin", "score_mean", "grad_norm", "learning_rate")
    }
    assert steps[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (steps[0]["train/preference_accuracy"], steps[0]["train/margin"]) == (0.5, 0.0)
    assert steps[0]["train/grad_norm"] > 0
    assert steps[-1]["train/loss"] < 0.1
    assert steps[-1]["train/preference_accuracy"] == 1.0
    held_out = algorithm.evaluate(batch, {"reward": model})
    assert set(held_out) == {f"eval/{n}" for n in ("loss", "preference_accuracy", "margin", "score_mean")}
    assert held_out["eval/margin"] > 2


def test_a_margin_asks_for_more_and_centering_for_less(characters: Callable, local_model: Callable) -> None:
    tokenizer = characters(ROWS)
    for options in ({"margin": 1.0}, {"margin": "gap"}, {"center_rewards_coefficient": 0.5}):
        algorithm = rm(**options)
        batch = algorithm.encode(ROWS, tokenizer)
        model = trained(local_model, tokenizer, batch)
        scores = model.forward(batch, ("scores",))["scores"].astype(np.float64)
        difference, total = scores[0::2] - scores[1::2], scores[0::2] + scores[1::2]
        margin = {"margin": np.array([1.0, 0.0, 2.0])} if options.get("margin") == "gap" else options
        expected = np.log1p(np.exp(margin.get("margin", 0.0) - difference)).mean()
        expected += options.get("center_rewards_coefficient", 0.0) * np.square(total).mean()
        metrics = algorithm.evaluate(batch, {"reward": model})
        assert metrics["eval/loss"] == pytest.approx(expected, rel=1e-5)
        assert metrics["eval/margin"] == pytest.approx(difference.mean(), rel=1e-5)
        assert metrics["eval/score_mean"] == pytest.approx(total.mean() / 2, rel=1e-4)
        if "center_rewards_coefficient" in options:
            assert metrics["eval/centering"] == pytest.approx(0.5 * np.square(total).mean(), rel=1e-5)


def test_neither_micro_batches_nor_layout_nor_order_change_the_step(
    characters: Callable, local_model: Callable
) -> None:
    tokenizer = characters(ROWS)
    algorithm = rm(margin="gap", center_rewards_coefficient=0.1)
    batch = algorithm.encode(ROWS * 3, tokenizer)
    shuffled = batch.select(np.random.default_rng(0).permutation(len(batch)))
    results = []
    for data, fields in (
        (batch, {}),
        (shuffled, {}),
        (shuffled, {"max_tokens_per_microbatch": 40}),
        (batch, {"packing": "packed", "max_tokens_per_microbatch": 60}),
        (batch, {"packing": "padded", "max_tokens_per_microbatch": 1}),
    ):
        model = local_model(ROLE, tokenizer, **fields)
        steps = [algorithm.step(data, {"reward": model}) for _ in range(3)]
        results.append({**steps[-1], "scores": float(model.forward(batch, ("scores",))["scores"].sum())})
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-3, abs=1e-5)


def test_two_shards_with_the_scale_of_the_step_add_up(characters: Callable, local_model: Callable) -> None:
    tokenizer, algorithm = characters(ROWS), rm(center_rewards_coefficient=0.1)
    batch = algorithm.encode(ROWS * 2, tokenizer)
    model = trained(local_model, tokenizer, batch)
    whole = model.evaluate(batch, algorithm._loss)
    scale = Scale.of(batch)
    assert scale.units == 6
    shards = [model.evaluate(batch.select(part), algorithm._loss, scale=scale) for part in batch.split_balanced(2)]
    for name, value in whole.items():
        assert shards[0][name] + shards[1][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_gradients_reach_the_whole_model_and_equal_plain_autograd(characters: Callable, local_model: Callable) -> None:
    tokenizer, algorithm = characters(ROWS), rm(margin=0.5)
    batch = algorithm.encode(ROWS, tokenizer)
    model = trained(local_model, tokenizer, batch)
    hf = plain_copy(model.backend.role("reward").model.hf)
    scores = [
        hf(torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64))[None]).logits[0, 0] for i in range(6)
    ]
    loss = torch.stack([-torch.nn.functional.logsigmoid(scores[i] - scores[i + 1] - 0.5) for i in (0, 2, 4)]).mean()
    loss.backward()
    norms = [p.grad.norm() for p in hf.parameters() if p.grad is not None]
    assert len(norms) == len(list(hf.parameters()))
    expected = torch.stack(norms).norm().item()
    metrics = algorithm.step(batch, {"reward": model})
    assert metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["train/grad_norm"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("start", ["from scratch", "from a model without padding token", "end token is padding"])
def test_the_export_scores_a_padded_batch_alike_in_transformers(
    start: str, characters: Callable, local_model: Callable, tmp_path: Path
) -> None:
    tokenizer = characters(ROWS)
    special = dict(tokenizer.special_tokens)
    spec = None
    if start != "from scratch":
        model = local_model(Role("policy", trainable=False), tokenizer)
        model.backend.export("policy", str(tmp_path / "policy"))
        config = tmp_path / "policy" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token_id": None}))
        if start == "end token is padding":
            tokenizer._tokenizer.pad_token = tokenizer._tokenizer.eos_token
            special["pad_token_id"] = special["eos_token_id"]
        spec = ModelSpec(path=str(tmp_path / "policy"), special_tokens=special)
    batch = rm().encode(ROWS, tokenizer)
    model = trained(local_model, tokenizer, batch, spec=spec)
    ours = model.forward(batch, ("scores",))["scores"]
    assert len(set(ours.round(4))) == 6

    export = tmp_path / "export"
    export.mkdir()
    model.backend.export("reward", str(export))
    tokenizer.save(str(export))
    assert json.loads((export / "config.json").read_text())["pad_token_id"] == special["pad_token_id"]
    theirs = AutoModelForSequenceClassification.from_pretrained(export)
    reader = AutoTokenizer.from_pretrained(export)
    rows = [batch.tokens[batch.sequence(i)].tolist() for i in range(6)]
    for side in ("right", "left"):
        reader.padding_side = side
        padded = reader.pad({"input_ids": rows}, return_tensors="pt")
        with torch.no_grad():
            logits = theirs(**padded).logits
        assert logits.shape == (6, 1)
        np.testing.assert_allclose(logits[:, 0].numpy(), ours, atol=1e-5)
    texts = [f"{row['prompt']}{row[side]}{reader.eos_token}" for row in ROWS for side in ("chosen", "rejected")]
    with torch.no_grad():
        logits = theirs(**reader(texts, padding=True, return_tensors="pt")).logits
    np.testing.assert_allclose(logits[:, 0].numpy(), ours, atol=1e-5)
    again = local_model(dataclasses.replace(ROLE, trainable=False), spec=ModelSpec(path=str(export)))
    np.testing.assert_allclose(again.forward(batch, ("scores",))["scores"], ours, atol=1e-5)


def test_a_reward_model_can_start_from_a_language_model(characters: Callable, local_model: Callable, tmp_path: Path):
    tokenizer = characters(ROWS)
    policy = local_model(Role("policy", trainable=False), tokenizer)
    policy.backend.export("policy", str(tmp_path))
    body = AutoModelForCausalLM.from_pretrained(tmp_path).base_model.state_dict()
    reward = local_model(ROLE, spec=ModelSpec(path=str(tmp_path), special_tokens=tokenizer.special_tokens))
    found = reward.backend.role("reward").model.hf
    for name, value in found.base_model.state_dict().items():
        assert torch.equal(value, body[name]), name
    assert not found.score.weight.any()


def test_it_works_with_one_trainable_scalar_role() -> None:
    algorithm = rm(pairs_per_step=16, learning_rate=2e-3)
    assert tuple(algorithm.roles()) == (ROLE,)
    assert algorithm.plan().rows_per_step == 16
    spec = algorithm.optimizer("reward", 100)
    assert (spec.learning_rate, spec.total_steps) == (2e-3, 100)


def trained(local_model: Callable, tokenizer, batch: SequenceBatch, **fields):
    """A reward model some steps away from zero."""
    model = local_model(ROLE, tokenizer, **fields)
    for _ in range(3):
        rm().step(batch, {"reward": model})
    return model
