"""Every variant lifts the reward of a small task with a real Qwen2, sampled and trained in this process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rl_algo_grpo.config import PRESETS, GrpoConfig
from rl_algo_grpo.grpo import Grpo
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale
from rl_torch.losses import LossBatch, MetricSums, call_loss, load_loss
from rl_torch.microbatch import MicroBatch
from rl_torch.policy import compute_outputs, wrap_model
from transformers import Qwen2Config, Qwen2ForCausalLM

torch.set_num_threads(1)

VOCABULARY, END, LONGEST = 10, 9, 6


class Qwen:
    """The controller's ``Model`` over a one-layer Qwen2 and Adam."""

    def __init__(self, learning_rate: float = 0.0) -> None:
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        config = Qwen2Config(vocab_size=VOCABULARY, num_key_value_heads=2, initializer_range=0.2, **shape)
        self.model = Qwen2ForCausalLM(config)
        self.wrapped = wrap_model(self.model, "lm")
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=learning_rate)

    def forward(self, batch: SequenceBatch, outputs: tuple[str, ...] = ("logprobs",), *, temperature: float = 1.0):
        with torch.no_grad():
            computed = compute_outputs(self.wrapped, MicroBatch.build(batch), outputs, temperature=temperature)
        return {name: getattr(computed, name).numpy() for name in outputs}

    def train(self, batch: SequenceBatch, loss: LossSpec, *, scale: Scale | None = None) -> dict[str, float]:
        self.optimizer.zero_grad()
        sums, scale = MetricSums(), scale or Scale.of(batch)
        for part in batch.pack(128):
            shard = batch.select(part)
            computed = compute_outputs(
                self.wrapped, MicroBatch.build(shard), loss.outputs, temperature=loss.temperature
            )
            value, metrics = call_loss(load_loss(loss.function), loss, computed, LossBatch(shard), scale)
            value.backward()
            sums.add({"loss": value, **metrics})
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return {**sums.result(), "grad_norm": float(norm)}

    @torch.no_grad()
    def complete(self, prompts: np.ndarray, generator: torch.Generator, *, sharpness: float) -> SequenceBatch:
        """Up to six tokens after each one-token prompt, sampled and reported with logits times ``sharpness``."""
        tokens = torch.from_numpy(prompts)[:, None]
        logprobs = []
        for _ in range(LONGEST):
            scores = torch.log_softmax(sharpness * self.model(input_ids=tokens).logits[:, -1], dim=-1)
            chosen = torch.multinomial(scores.exp(), 1, generator=generator)
            logprobs.append(scores.gather(1, chosen))
            tokens = torch.cat([tokens, chosen], dim=1)
        rows, scores = tokens.numpy(), torch.cat(logprobs, dim=1).numpy()
        ends = [1 + next((t for t in range(LONGEST) if row[1 + t] == END), LONGEST - 1) for row in rows]
        return SequenceBatch.from_lists(
            [row[: 1 + n] for row, n in zip(rows, ends, strict=True)],
            token_columns={
                "loss_mask": [np.arange(1 + n).astype(bool).astype(np.float32) for n in ends],
                "sampled_logprobs": [np.append(np.float32(0), s[:n]) for s, n in zip(scores, ends, strict=True)],
            },
            sequence_columns={"truncated": np.array([row[n] != END for row, n in zip(rows, ends, strict=True)])},
        )


def learn(fields: dict[str, Any], *, steps: int = 60, sharpness: float = 1.0) -> list[float]:
    """Answer prompt p, one of 0 to 3, with p + 4 as first token: the mean reward of every step. Chance is 10 %."""
    config = GrpoConfig(name="grpo", **{"prompts_per_step": 4, "group_size": 32, **fields})
    algorithm, models = Grpo(config), {"policy": Qwen(learning_rate=0.005), "reference": Qwen()}
    generator, means = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        groups = np.repeat(np.arange(config.prompts_per_step), config.group_size)
        prompts = groups % 4
        batch = models["policy"].complete(prompts, generator, sharpness=sharpness)
        reward = (batch.tokens[batch.offsets[:-1] + 1] == prompts + 4).astype(np.float32)
        means.append(float(reward.mean()))
        metrics = algorithm.step(batch.with_columns(sequence={"group": groups, "reward": reward}), models)
        assert all(np.isfinite(value) for value in metrics.values())
    return means


NEEDED = {"dr_grpo": {"constant_length": LONGEST}, "dapo": {"overlong": {"max_tokens": LONGEST}}}
VARIANTS = {name: {"preset": name, **NEEDED.get(name, {})} for name in PRESETS} | {
    "plain": {},
    "two epochs of two minibatches": {"epochs": 2, "minibatches": 2},
    "gspo, several updates": {"preset": "gspo", "minibatches": 4, "clip_low": 0.1, "clip_high": 0.1},
    "cispo, several updates": {"preset": "cispo", "minibatches": 2, "epochs": 2},
    "reinforce++ with one completion": {"preset": "reinforce++", "prompts_per_step": 128, "group_size": 1},
    "rloo with std": {"advantage": "rloo"},
    "scaled by the batch": {"advantage_scale": "batch"},
    "overlong mask": {"overlong": {"mode": "mask"}},
    "entropy bonus": {"entropy_coefficient": 0.01},
}
CORRECTIONS = {
    "tis": {"correction": "tis"},
    "tis per sequence": {"correction": "tis", "level": "sequence"},
    "icepop": {"correction": "icepop"},
    "icepop per sequence": {"correction": "icepop", "level": "sequence"},
    "seq-mask": {"correction": "seq-mask", "low": 0.8, "high": 1.25},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_lifts_the_reward(variant):
    means = learn(VARIANTS[variant])
    assert means[0] < 0.2, means
    assert np.mean(means[-5:]) > 0.9, means


@pytest.mark.slow
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_a_variant_learns_from_a_sampler_that_differs_from_the_trainer(correction):
    means = learn({"mismatch": CORRECTIONS[correction]}, sharpness=0.8)
    assert means[0] < 0.2, means
    assert np.mean(means[-5:]) > 0.9, means


def test_without_training_the_reward_is_that_of_chance():
    assert np.mean(learn({"group_size": 256}, steps=1)) < 0.2
