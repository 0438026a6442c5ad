"""What everything is compared with: transformers' own forward in float64 on the CPU, one sequence at a time.

Models are written to folders by transformers, and read from there by both sides. (transformers computes norms, rotary
angles and the softmax of attention in float32 whatever the model's dtype is, so expected values have errors of about
1e-7: far below what float32 explains on the other side.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale
from rl_core.contracts.model import Head, ModelSpec, OptimizerSpec
from rl_torch.losses import TokenOutputs, call_loss, load_loss
from rl_torch.testing import PreciseBatch, outputs_from_logits, outputs_of
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from gpu.registry import Machine, Shape

AUTO: Mapping[Head, Any] = {"lm": AutoModelForCausalLM, "scalar": AutoModelForSequenceClassification}


def model_folder(machine: Machine, head: Head = "lm", *, seed: int = 0) -> ModelSpec:
    """A model of the machine's shape with random weights, written once."""
    path = Path(machine.folder) / f"model-{head}-{seed}"
    if not path.exists():
        _write(path, machine.shape, head, seed)
    return ModelSpec(path=str(path), vocab_size=machine.shape.vocabulary, max_length=2 * machine.shape.longest)


def _write(path: Path, shape: Shape, head: Head, seed: int) -> None:
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.ffn,
        tie_word_embeddings=head == "lm",
        max_position_embeddings=2 * shape.longest,
        initializer_range=shape.hidden**-0.5,  # log-probs that differ from token to token
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        num_labels=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AUTO[head].from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(".bias"):
                    parameter.normal_(std=0.1)
    model.save_pretrained(path)


def load(spec: ModelSpec, head: Head = "lm", *, rounded_to: torch.dtype | None = None) -> Any:
    """The model in float64, with weights as ``rounded_to`` has them."""
    assert spec.path is not None
    model = AUTO[head].from_pretrained(spec.path, dtype=torch.float64, attn_implementation="eager").eval()
    if rounded_to is not None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(rounded_to))
    return model


def outputs(
    model: Any, head: Head, batch: SequenceBatch, names: tuple[str, ...], *, temperature: float = 1.0
) -> TokenOutputs:
    """What ``model`` says about ``batch``, with gradients."""
    rows = [torch.from_numpy(batch.tokens[batch.sequence(i)].astype("int64"))[None] for i in range(len(batch))]
    if head == "lm":
        logits = [model(input_ids=row).logits[0] for row in rows]
        return outputs_from_logits(logits, batch, names, temperature=temperature)
    scores = [model.score(model.model(input_ids=row).last_hidden_state)[0, :, 0] for row in rows]
    found = {
        "values": torch.cat([torch.cat([s.new_zeros(1), s[:-1]]) for s in scores]),  # before each token
        "scores": torch.stack([s[-1] for s in scores]),
    }
    return outputs_of(batch, **{name: found[name] for name in names})


def only(found: TokenOutputs, kept: Mapping[str, Tensor]) -> TokenOutputs:
    """``found`` with these outputs, on their device, and no others."""
    names = ("logprobs", "entropy", "values", "scores", "mean_logprobs", "logsumexp")
    device = next(iter(kept.values())).device
    outputs: dict[str, Any] = {**dict.fromkeys(names), **kept}
    return replace(found, **outputs, sequence_ids=found.sequence_ids.to(device))


def loss_of(
    found: TokenOutputs, batch: SequenceBatch, loss: LossSpec, scale: Scale | None = None
) -> tuple[Tensor, Mapping[str, Any]]:
    """The loss in float64."""
    function, columns = load_loss(loss.function), PreciseBatch(batch, torch.float64)
    return call_loss(function, loss, found, columns, scale or Scale.of(batch))


def train(
    model: nn.Module, batch: SequenceBatch, loss: LossSpec, spec: OptimizerSpec, *, steps: int
) -> list[tuple[float, float]]:
    """Loss and gradient norm of each of ``steps`` steps of PyTorch's AdamW, all on the same batch."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.eps)
    history = []
    for _ in range(steps):
        value, _ = loss_of(outputs(model, "lm", batch, loss.outputs), batch, loss)
        value.backward()
        norm = nn.utils.clip_grad_norm_(trained, spec.max_grad_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        history.append((float(value.detach()), float(norm)))
    return history


@torch.no_grad()
def behind_the_best(model: nn.Module, batch: SequenceBatch) -> Tensor:
    """float64 [T]: by how much each token's log-prob is below that of the most likely one; 0 at first tokens."""
    parts = []
    for index in range(len(batch)):
        row = torch.from_numpy(batch.tokens[batch.sequence(index)].astype("int64"))
        log_p = torch.log_softmax(model(input_ids=row[None]).logits[0, :-1], dim=-1)
        chosen = log_p.gather(1, row[1:, None]).squeeze(1)
        parts.append(torch.cat([chosen.new_zeros(1), log_p.amax(1) - chosen]))
    return torch.cat(parts)
