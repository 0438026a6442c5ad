"""Small models, batches and losses for tests of backends, and what plain PyTorch and transformers make of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role

from rl_torch.models import build_model
from rl_torch.optim import learning_rate
from rl_torch.testing import outputs_from_logits

VOCAB = 96
PADDING = {"pad_token_id": 3}
POLICY = Role("policy", trainable=True)
REFERENCE = Role("reference", trainable=False)
VALUE = Role("value", trainable=True, head="scalar")
NLL = LossSpec("rl_torch.engine.testing.examples:nll")
WITH_ENTROPY = replace(NLL, outputs=("logprobs", "entropy"), temperature=0.7)
SCORES = LossSpec("rl_torch.engine.testing.examples:squared_scores", outputs=("scores", "values"))
NOTHING = LossSpec("rl_torch.engine.testing.examples:nothing")


def nll(
    outputs: Any, batch: Any, scale: Scale, *, poison: float = 0.0, factor: float = 1.0
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Negative log-likelihood with an entropy metric where asked; ``poison`` spoils sequences marked ``bad``."""
    mask = batch["loss_mask"]
    loss = -factor * (outputs.logprobs * mask).sum() / scale.tokens
    if poison:
        loss = loss * torch.where(batch["bad"].any(), poison, 1.0)
    metrics = {"tokens": mask.sum() / scale.tokens, "max_length": batch.lengths.max()}
    if outputs.entropy is not None:
        metrics["entropy"] = (outputs.entropy * mask).sum() / scale.tokens
    return loss, metrics


def nothing(outputs: Any, batch: Any, scale: Scale) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A loss that found no token to learn from."""
    return torch.zeros(()), {}


def squared_scores(outputs: Any, batch: Any, scale: Scale) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Regress the score of a sequence on its ``reward``, and every value on 1."""
    scores = (outputs.scores - batch.reward).square().sum() / scale.sequences
    values = ((outputs.values - 1).square() * batch.loss_mask).sum() / scale.tokens
    return scores + values, {}


def model_spec(
    *, layers: int = 2, tie: bool = True, architecture: str = "qwen2", seed: int = 3, vocab: int = VOCAB
) -> ModelSpec:
    """A model of about 50k parameters."""
    init = {
        "architecture": architecture,
        "hidden_size": 32,
        "layers": layers,
        "heads": 4,
        "kv_heads": 2,
        "ffn": 64,
        "tie_embeddings": tie,
    }
    return ModelSpec(init=init, vocab_size=vocab, max_length=128, seed=seed)


def model_folder(directory: Path, *, architecture: str = "qwen2", tie: bool = True, layers: int = 2) -> ModelSpec:
    """A Hugging Face folder whose norms and biases are not all alike, as they are in a new model."""
    model = plain_model(replace(model_spec(architecture=architecture, tie=tie, layers=layers), special_tokens=PADDING))
    draws = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws) * (0.2 if parameter.ndim == 1 else 0.05))
    model.save_pretrained(directory)
    return ModelSpec(path=str(directory), max_length=128)


def random_batch(count: int = 12, *, low: int = 4, high: int = 30, seed: int = 0) -> SequenceBatch:
    """Ragged sequences whose second half carries the loss; units of two."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(low, high, count)
    return SequenceBatch.from_lists(
        [rng.integers(0, VOCAB, n) for n in lengths],
        token_columns={"loss_mask": [(np.arange(n) >= n // 2).astype(np.float32) for n in lengths]},
        sequence_columns={
            "unit": np.arange(count) // 2,
            "bad": np.arange(count) == 1,
            "reward": rng.normal(size=count).astype(np.float32),
        },
    )


def optimizer_spec(**changes: Any) -> OptimizerSpec:
    """A learning rate large enough to see; weight decay and clipping on."""
    return OptimizerSpec(**{"learning_rate": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.5, **changes})


def plain_model(spec: ModelSpec) -> Any:
    """The same model, without anything around it."""
    return build_model(spec, dtype=torch.float32)


@torch.no_grad()
def plain_outputs(
    spec: ModelSpec, batch: SequenceBatch, temperature: float, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Full logits, one sequence at a time; zero where no log-prob is needed."""
    model = plain_model(spec)
    logits = [
        model(input_ids=torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64))[None]).logits[0]
        for i in range(len(batch))
    ]
    found = outputs_from_logits(logits, batch, names, temperature=temperature)
    first = np.zeros(len(batch.tokens), bool)
    first[batch.offsets[:-1]] = True
    needed = (batch.token_columns["loss_mask"] != 0) & ~first
    return {name: np.where(needed, getattr(found, name).numpy(), 0) for name in names}


def plain_loss(model: Any, batch: SequenceBatch) -> torch.Tensor:
    """The mean negative log-likelihood, one sequence at a time, from full logits."""
    total = torch.zeros(())
    for i in range(len(batch)):
        tokens = torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64))
        mask = torch.from_numpy(batch.token_columns["loss_mask"][batch.sequence(i)])
        log_p = torch.log_softmax(model(input_ids=tokens[None]).logits[0], -1)
        total = total - (log_p[:-1].gather(1, tokens[1:, None])[:, 0] * mask[1:]).sum()
    return total / float(batch.token_columns["loss_mask"].sum())


def plain_training(
    spec: ModelSpec, optimizer: OptimizerSpec, batch: SequenceBatch, steps: int
) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """The textbook loop: one sequence at a time, full logits, torch's AdamW and clipping; losses, norms, weights."""
    model = plain_model(spec)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": optimizer.weight_decay}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=optimizer.betas, eps=optimizer.eps)
    record = []
    for step in range(steps):
        loss = plain_loss(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.max_grad_norm or float("inf"))
        for group in adamw.param_groups:
            group["lr"] = learning_rate(optimizer, step)
        adamw.step()
        adamw.zero_grad()
        record.append((loss.item(), norm.item()))
    return record, dict(model.named_parameters())
