"""Batches with every column that a loss reads, and the losses of all algorithms.

Columns of log-probs lie around those of the oracle, and away from where a loss has a jump or a kink (clip ranges,
masks, margins): rounding must not decide on which side of one a token is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec

SEQUENCES = 8
PROMPT_PART = 4
"""Prompts are this part of a sequence."""

_MISMATCH = {"correction": "none", "level": "token", "low": 0.0, "high": 2.0}
_POLICY: dict[str, Any] = {
    "clip_low": 0.2,
    "clip_high": 0.2,
    "dual_clip": None,
    "reduction": "token",
    "constant_length": None,
    "entropy_coefficient": 0.0,
    "mismatch": _MISMATCH,
}
_GRPO: dict[str, Any] = {
    **_POLICY,
    "loss": "clip",
    "kl_coefficient": 0.0,
    "kl_estimator": "k3",
    "on_policy": False,
}


def _grpo(*more_outputs: str, **options: Any) -> LossSpec:
    return LossSpec("rl_algo_grpo.loss:policy_loss", {**_GRPO, **options}, ("logprobs", *more_outputs))


def _ppo(**options: Any) -> LossSpec:
    return LossSpec("rl_algo_ppo.loss:policy_loss", {**_POLICY, **options})


def _dpo(loss: str, **numbers: float) -> LossSpec:
    return LossSpec("rl_algo_dpo.losses:pair_loss", {"loss": loss, "sft_coefficient": 0.0, **numbers})


def _mismatch(correction: str, level: str = "token") -> dict[str, Any]:
    return {"mismatch": {"correction": correction, "level": level, "low": 0.5, "high": 2.0}}


NLL = LossSpec("rl_algo_sft_rm.losses:negative_log_likelihood")

LOSSES: Mapping[str, LossSpec] = {
    "sft": NLL,
    "sft smoothed": LossSpec(
        "rl_algo_sft_rm.losses:smoothed_cross_entropy",
        {"label_smoothing": 0.1, "z_loss": 1e-2},
        ("logprobs", "mean_logprobs", "logsumexp"),
    ),
    "dpo sigmoid": _dpo("sigmoid", beta=0.1, label_smoothing=0.1),
    "dpo robust": _dpo("robust", beta=0.1, label_smoothing=0.1),
    "dpo ipo": _dpo("ipo", beta=0.1),
    "dpo hinge": _dpo("hinge", beta=0.1),
    "dpo simpo": _dpo("simpo", beta=2.0, target_margin=0.5),
    "dpo orpo": _dpo("orpo", orpo_lambda=0.1),
    "dpo kto": LossSpec(
        "rl_algo_dpo.losses:kto_loss",
        {
            "beta": 0.1,
            "desirable_weight": 1.0,
            "undesirable_weight": 1.5,
            "desirable": SEQUENCES // 2,
            "undesirable": SEQUENCES // 2,
        },
    ),
    "grpo": _grpo(kl_coefficient=0.1),
    "grpo without kl": _grpo(),
    "grpo by sequence, dual clip": _grpo(reduction="sequence", dual_clip=1.5),
    "grpo constant, entropy": _grpo("entropy", reduction="constant", constant_length=16, entropy_coefficient=0.1),
    "gspo": _grpo(loss="gspo", reduction="sequence"),
    "cispo": _grpo(loss="cispo"),
    "reinforce": _grpo(loss="reinforce", **_mismatch("tis", "sequence")),
    "grpo icepop": _grpo(**_mismatch("icepop")),
    "grpo sequence mask": _grpo(**_mismatch("seq-mask")),
    "ppo": _ppo(),
    "ppo value": LossSpec("rl_algo_ppo.loss:value_loss", {"clip": 0.2}, ("values",)),
    "rm": LossSpec(
        "rl_algo_sft_rm.losses:bradley_terry", {"margin": 0.1, "center_rewards_coefficient": 0.1}, ("scores",)
    ),
}
"""The losses of all algorithms by name; the last two need a scalar head."""


def head_of(loss: LossSpec) -> Any:
    """``lm`` or ``scalar``."""
    return "scalar" if set(loss.outputs) & {"values", "scores"} else "lm"


def texts(vocabulary: int, longest: int, *, sequences: int = SEQUENCES, seed: int = 0) -> SequenceBatch:
    """Sequences of different lengths; ``loss_mask`` is 1 behind the first quarter, with gaps."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(longest // 3, longest + 1, sequences)
    lengths[0] = longest
    masks = [(np.arange(n) >= n // PROMPT_PART).astype(np.float32) for n in lengths]
    for mask in masks[::3]:
        mask[-2] = 0.0
    tokens = [rng.integers(0, vocabulary, n) for n in lengths]
    return SequenceBatch.from_lists(tokens, token_columns={"loss_mask": masks})


def with_columns(batch: SequenceBatch, logprobs: np.ndarray, values: np.ndarray) -> SequenceBatch:
    """``batch`` with all columns, around the oracle's ``logprobs`` and ``values`` (float64 [T])."""
    rng = np.random.default_rng(1)
    ids, mask = batch.sequence_ids, batch.token_columns["loss_mask"]
    count, tokens = len(batch), len(batch.tokens)

    def around(steps: tuple[float, ...]) -> np.ndarray:
        """Log-probs that differ by one step for each sequence."""
        jitter = rng.uniform(-0.01, 0.01, tokens)
        return ((logprobs - np.resize(steps, count)[ids] + jitter) * mask).astype(np.float32)

    summed = np.bincount(ids, weights=logprobs * mask, minlength=count)
    return batch.with_columns(
        token={
            "old_logprobs": around((0.04, 0.6, -0.6)),  # clip ranges end at ±0.2
            "sampled_logprobs": around((0.04, 0.5, -0.5, 1.6)),  # against the old ones: -1.1 … 0.1 … 1.6; ends at ±0.69
            "ref_logprobs": around((0.3, -0.3)),
            "advantages": np.resize([1.0, -1.0, -0.5], count)[ids].astype(np.float32),
            "returns": ((values + np.resize([0.5, -0.7], tokens)) * mask).astype(np.float32),
            "old_values": ((values + np.resize([0.05, 0.9], tokens)) * mask).astype(np.float32),
        },
        sequence={
            "unit": np.arange(count) // 2,
            "chosen": np.arange(count) % 2 == 0,
            "desirable": np.arange(count) % 2 == 0,
            "ref_logprob": (summed + np.resize([3.0, -2.0, 1.0], count)).astype(np.float32),
            "kl_baseline": np.full(count, 0.05, np.float32),
        },
    )
