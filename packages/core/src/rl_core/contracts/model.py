"""Values that describe a model and how it is trained, understood by every backend and generator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Head = Literal["lm", "scalar"]
AdapterKind = Literal["lora", "dora", "adalora"]


@dataclass(frozen=True)
class AdapterSpec:
    """Low-rank matrices that are trained in place of a model's own weights.

    Attributes:
        kind: ``lora`` (Hu et al. 2022: W + alpha/rank · B·A), ``dora`` (Liu et al. 2024: the same with
            trained row norms) or ``adalora`` (Zhang et al. 2023: P·Λ·Q whose rank is pruned in training).
        rank: of the matrices; for ``adalora`` the average rank that is left at the end.
        alpha: the numerator of LoRA's factor.
        target_modules: Hugging Face names of the linear layers that get one, or ends of them, cut at a dot
            (``q_proj``, ``shared_experts.down_proj``); empty for every linear layer of the decoder blocks but routers.
        initial_rank: rank that AdaLoRA starts from.
        prune_from_step, prune_to_step, prune_every: optimizer steps between which AdaLoRA lowers its budget, and
            how often.
        orthogonality: weight of AdaLoRA's penalty on P and Q that are not orthogonal.
        seed: for drawing the first weights.
    """

    kind: AdapterKind
    rank: int
    alpha: float
    target_modules: tuple[str, ...] = ()
    initial_rank: int = 0
    prune_from_step: int = 0
    prune_to_step: int = 0
    prune_every: int = 1
    orthogonality: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class ModelSpec:
    """The source of a model. Exactly one of ``path`` and ``init`` is set.

    Attributes:
        path: a local Hugging Face folder or a hub id.
        init: from-scratch shape: the fields of :class:`rl_core.config.sections.InitConfig` as a dict.
        vocab_size: the tokenizer's size, 0 for unknown: the model's with ``init``. The embedding of a ``path`` may have
            more rows; those beyond are never sampled.
        special_tokens: ``bos_token_id / eos_token_id / pad_token_id`` for the model's config, with ``init``.
        trust_remote_code: passed to transformers; off unless the user asks.
        seed: seed for initialising weights (``init``, and new heads).
        max_length: context length in tokens.
        adapter: trained instead of the model's own weights, which then stay as they are; set only where the
            role is trainable.
        never_sampled: ids below ``vocab_size`` that mean nothing in a text (padding, fillers). Only sampling leaves
            them out, as it does with ``top_k``: log-probabilities are those of the full vocabulary everywhere, so a
            generator and a trainer agree. Excluding them changes no ratio of probabilities between other tokens.
    """

    path: str | None = None
    init: Mapping[str, Any] | None = None
    vocab_size: int = 0
    special_tokens: Mapping[str, int | None] = field(default_factory=dict)
    trust_remote_code: bool = False
    seed: int = 0
    max_length: int = 0
    adapter: AdapterSpec | None = None
    never_sampled: tuple[int, ...] = ()


@dataclass(frozen=True)
class Role:
    """One model an algorithm works with.

    Attributes:
        name: ``policy``, ``reference``, ``value``, ``reward`` or the algorithm's own word.
        trainable: whether it gets gradients and an optimizer.
        head: ``lm`` (log-probs, entropy) or ``scalar`` (one value per token).
        path: a Hugging Face folder or hub id of its own; None for the stage's model.
        base_of: name of a role that was loaded before with an adapter: this one is the same model with
            the adapter off, and needs no weights of its own. Set by the framework, not by algorithms.
    """

    name: str
    trainable: bool
    head: Head = "lm"
    path: str | None = None
    base_of: str | None = None


@dataclass(frozen=True)
class OptimizerSpec:
    """AdamW and its schedule (Loshchilov & Hutter 2019).

    ``learning_rate`` is multiplied by a factor that rises linearly from 1/warmup_steps over
    ``warmup_steps`` optimizer steps and then follows ``schedule`` down to ``min_lr_ratio`` at
    ``total_steps`` (``constant`` stays at 1).
    """

    learning_rate: float
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 0
    total_steps: int = 0
    min_lr_ratio: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a loaded model: parameter count and context length in tokens (0: unknown).

    ``auxiliary_loss``: the backend adds a loss of the model's own, that of its routers, in which every token counts.
    """

    parameters: int
    max_length: int
    vocab_size: int
    auxiliary_loss: bool = False
