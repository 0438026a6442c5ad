"""What every algorithm asks of a backend: batch, loss and scale of optimizer steps, as its own ``step`` builds them.

A variant is an algorithm with some config. It takes one step on a small batch with models that
answer forwards and write down what they are asked to train on; the first and the last request of
each model are its cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from loss_models import VOCAB, Case, Models, Recorder
from rl_algo_dpo.config import DpoConfig
from rl_algo_dpo.dpo import Dpo
from rl_algo_grpo.config import PRESETS, GrpoConfig
from rl_algo_grpo.grpo import Grpo
from rl_algo_ppo.config import PpoConfig
from rl_algo_ppo.ppo import Ppo
from rl_algo_sft_rm.config import RmConfig, SftConfig
from rl_algo_sft_rm.rm import RewardModel
from rl_algo_sft_rm.sft import Sft
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale
from rl_data_text.config import CharactersConfig
from rl_data_text.tokenizers.characters import CharacterTokenizer

TEMPERATURE = 0.8


@dataclass(frozen=True)
class Variant:
    """An algorithm and its config; ``acts`` names metrics that show that an option does something to some tokens
    and nothing to others."""

    algorithm: type
    config: type
    fields: Mapping[str, Any] = field(default_factory=dict)
    acts: tuple[str, ...] = ()

    def build(self) -> Any:
        """The algorithm."""
        return self.algorithm(self.config(name="this", **self.fields))


def grpo(*acts: str, **fields: Any) -> Variant:
    """Two epochs of two minibatches, which cut through a group, so that advantages do not add up to 0."""
    sizes = {"prompts_per_step": 3, "group_size": 4, "minibatches": 2, "epochs": 2}
    return Variant(Grpo, GrpoConfig, {**sizes, **fields}, acts)


def ppo(*acts: str, **fields: Any) -> Variant:
    """The same number of updates, of two models."""
    return Variant(Ppo, PpoConfig, {"prompts_per_step": 12, "minibatches": 2, "epochs": 2, **fields}, acts)


def dpo(*acts: str, **fields: Any) -> Variant:
    """One update."""
    return Variant(Dpo, DpoConfig, fields, acts)


def sft(**fields: Any) -> Variant:
    """One update."""
    return Variant(Sft, SftConfig, fields)


def rm(**fields: Any) -> Variant:
    """One update."""
    return Variant(RewardModel, RmConfig, fields, ("preference_accuracy",))


CLIPPED = "policy/clip_fraction"
MASKED = "mismatch/masked_fraction"
UNCLIPPED = ("rloo", "cispo")  # without a clip range, and with one that no ratio here gets to
ON_POLICY = {"minibatches": 1, "epochs": 1}
LENGTHS = {  # what presets leave to the task
    "dr_grpo": {"constant_length": 14},
    "dapo": {"overlong": {"max_tokens": 14, "buffer_tokens": 8}},
}

VARIANTS: Mapping[str, Variant] = {
    "sft": sft(),
    "sft on all tokens": sft(loss_on="all"),
    "sft label smoothing": sft(label_smoothing=0.1),
    "sft z-loss": sft(z_loss=1e-2),
    "rm": rm(),
    "rm margin and centering": rm(margin=0.3, center_rewards_coefficient=0.1),
    "rm margin of each pair": rm(margin="gap"),
    "dpo sigmoid": dpo("preference_accuracy"),
    "dpo sigmoid with sft": dpo(sft_coefficient=0.2),
    "dpo cdpo": dpo(preset="cdpo"),
    "dpo robust": dpo(loss="robust", label_smoothing=0.1),
    "dpo ipo": dpo(preset="ipo"),
    "dpo hinge": dpo(loss="hinge", beta=1.0),
    "dpo simpo": dpo(preset="simpo"),
    "dpo orpo": dpo(preset="orpo"),
    "dpo kto": dpo("preference_accuracy", "kl", preset="kto", desirable_weight=1.5),
    **{
        f"grpo preset {name}": grpo(*(() if name in UNCLIPPED else (CLIPPED,)), preset=name, **LENGTHS.get(name, {}))
        for name in PRESETS
    },
    "grpo preset cispo, held": grpo(CLIPPED, preset="cispo", clip_high=0.2),
    "grpo reduction token": grpo(CLIPPED, loss_reduction="token"),
    "grpo reduction sequence": grpo(CLIPPED, loss_reduction="sequence"),
    "grpo reduction constant": grpo(CLIPPED, loss_reduction="constant", constant_length=7),
    **{f"grpo kl {k} in loss": grpo(kl={"coefficient": 0.1, "estimator": k}) for k in ("k1", "k2", "k3")},
    **{
        f"grpo kl {k} in reward": grpo(kl={"coefficient": 0.1, "estimator": k, "in": "reward"})
        for k in ("k1", "k2", "k3")
    },
    "grpo tis": grpo(mismatch={"correction": "tis", "max": 1.05}),
    "grpo tis of sequences": grpo(mismatch={"correction": "tis", "level": "sequence", "max": 1.05}),
    "grpo icepop": grpo(MASKED, mismatch={"correction": "icepop", "low": 0.8, "high": 1.3}),
    "grpo icepop of sequences": grpo(
        MASKED, mismatch={"correction": "icepop", "level": "sequence", "low": 0.7, "high": 1.5}
    ),
    "grpo sequence mask": grpo(MASKED, mismatch={"correction": "seq-mask", "low": 0.98, "high": 1.2}),
    "grpo entropy bonus": grpo(entropy_coefficient=0.1),
    "grpo dual clip": grpo(CLIPPED, dual_clip=1.1),
    "grpo without truncated": grpo(CLIPPED, overlong={"mode": "mask"}),
    "grpo batch scale": grpo(advantage_scale="batch", advantage_ddof=0),
    # All advantages of a step add up to 0; without the truncated completions they do not.
    "grpo on policy": grpo(overlong={"mode": "mask"}, **ON_POLICY),
    "grpo on policy by sequence": grpo(overlong={"mode": "mask"}, loss_reduction="sequence", **ON_POLICY),
    "gspo on policy": grpo(
        overlong={"mode": "mask"}, loss="gspo", loss_reduction="constant", constant_length=7, **ON_POLICY
    ),
    "cispo on policy": grpo(overlong={"mode": "mask"}, preset="cispo", **ON_POLICY),
    "ppo": ppo(CLIPPED, "value/clip_fraction"),
    "ppo kl": ppo(CLIPPED, kl={"coefficient": 0.1}),
    "ppo value clip off": ppo(CLIPPED, value={"clip": None}),
    "ppo bootstrap": ppo(CLIPPED, bootstrap_truncated=True, whiten_advantages=False, gamma=0.9),
    "ppo by sequence": ppo(CLIPPED, loss_reduction="sequence", dual_clip=1.1, whiten_advantages=False),
    "ppo constant": ppo(CLIPPED, loss_reduction="constant", constant_length=7, entropy_coefficient=0.1),
    "ppo icepop": ppo(MASKED, mismatch={"correction": "icepop", "low": 0.8, "high": 1.3}, whiten_advantages=False),
    "ppo on policy": ppo(loss_reduction="sequence", **ON_POLICY),
}


def case_names(label: str) -> list[str]:
    """The cases of a variant: the first and the last update of each of its models."""
    algorithm = VARIANTS[label].build()
    updates = sorted({1, algorithm.plan().optimizer_steps})
    return [f"{label}, {role.name} update {u}" for role in algorithm.roles() if role.trainable for u in updates]


def tokenizer() -> CharacterTokenizer:
    """Of the letters in the rows."""
    made = CharacterTokenizer(CharactersConfig(name="characters", vocab_size=VOCAB))
    made.load(None, ROWS)
    return made


def record(label: str, models: Models) -> dict[str, Case]:
    """Let a variant take its step; its cases by name."""
    algorithm = VARIANTS[label].build()
    recorders = {role.name: models.recorder(role) for role in algorithm.roles()}
    if algorithm.plan().input == "examples":
        batch = algorithm.encode(ROWS, tokenizer())
    else:
        batch = rollouts(recorders["policy"])
    algorithm.step(batch, recorders)
    cases = {}
    for role in algorithm.roles():
        updates = recorders[role.name].updates
        assert len(updates) == (algorithm.plan().optimizer_steps if role.trainable else 0)
        cases |= {f"{label}, {role.name} update {i}": updates[i - 1] for i in (1, len(updates)) if updates}
    return cases


def rows() -> list[dict[str, Any]]:
    """Rows for every algorithm on examples: an odd number, with texts of 1 to 12 letters."""
    rng = np.random.default_rng(0)

    def text() -> str:
        return "".join(rng.choice(list("abcdefgh"), rng.integers(1, 13)))

    columns = ("prompt", "completion", "chosen", "rejected")
    return [{c: text() for c in columns} | {"label": i % 3 == 2, "gap": 0.1 * i} for i in range(9)]


ROWS = rows()


def rollouts(policy: Recorder) -> SequenceBatch:
    """Completions as the core hands them over, three groups of four, from a generator that is a little off the policy.

    Some are cut off, and some have a token that the policy did not choose inside. Rewards fall within a group: a
    minibatch that ends in the middle of one is good or bad as a whole, and its loss far from 0.
    """
    rng = np.random.default_rng(0)
    count = 12
    prompts, completions = rng.integers(1, 6, count), rng.integers(2, 15, count)
    masks = [np.repeat(np.float32([0, 1]), pair) for pair in zip(prompts, completions, strict=True)]
    for mask in masks[::3]:
        mask[-2] = 0.0
    batch = SequenceBatch.from_lists(
        [rng.integers(0, VOCAB, len(mask)) for mask in masks],
        token_columns={"loss_mask": masks},
        sequence_columns={
            "group": np.arange(count) // 4,
            "prompt_length": prompts,
            "reward": -np.sort(rng.normal(size=(3, 4))).astype(np.float32).ravel(),
            "temperature": np.full(count, TEMPERATURE, np.float32),
            "truncated": rng.random(count) < 0.3,
        },
    )
    exact = policy.forward(batch, temperature=TEMPERATURE)["logprobs"]
    off = rng.normal(scale=0.3, size=len(exact)).astype(np.float32)
    return batch.with_columns(token={"sampled_logprobs": (exact + off) * batch.token_columns["loss_mask"]})


def divided_by_its_own_tokens(outputs: Any, batch: Any, scale: Scale) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Wrong: a token mean over the micro-batch, where it has to be one over the optimizer step."""
    mask = batch["loss_mask"]
    return -(outputs.logprobs * mask).sum() / mask.sum(), {}


def metric_of_its_own_tokens(outputs: Any, batch: Any, scale: Scale) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The right loss, with a metric that is wrong in the same way."""
    mask = batch["loss_mask"]
    total = -(outputs.logprobs * mask).sum()
    return total / scale.tokens, {"nll": total.detach() / mask.sum()}
