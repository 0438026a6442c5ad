"""Token log-probabilities, entropies and the like from hidden states, without ever holding all logits.

For N tokens and a vocabulary of V, the float32 logits would take 4·N·V bytes (and as much again for
their gradient): 10 GB at N = 16k, V = 152k. Here they exist for one chunk of tokens at a time, and
the backward pass recomputes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rl_torch.estimates import CHUNK_ELEMENTS
from rl_torch.logits import LogitTransform
from rl_torch.vocab_parallel import VocabShard


def chunk_size(vocab_size: int) -> int:
    """Tokens per chunk: ``CHUNK_ELEMENTS / vocab_size``, at least 16."""
    return max(16, CHUNK_ELEMENTS // vocab_size)


def token_outputs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    outputs: tuple[str, ...] = ("logprobs",),
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    shard: VocabShard | None = None,
    transform: LogitTransform | None = None,
) -> dict[str, Tensor]:
    """Per-token outputs of the softmax over the vocabulary, differentiable, in chunks.

    With ``z = (hidden @ weight.T + bias) / temperature``, in float32 (float64 for float64 inputs),
    and ``log p_j = z_j - logsumexp(z)`` over the full vocabulary of V:

    - ``logprobs``: ``log p_y`` of the target y
    - ``entropy``: ``- Σ_j p_j log p_j`` in nats
    - ``mean_logprobs``: ``Σ_j log p_j / V`` (label smoothing, Szegedy et al. 2016)
    - ``logsumexp``: ``log Σ_j exp z_j`` (z-loss, Chowdhery et al. 2022)

    Args:
        hidden: [N, H]; row n predicts ``targets[n]``.
        weight: [V, H], the output embedding; with ``shard`` this rank's rows of it.
        targets: int64 [N].
        outputs: which of the four to compute.
        bias: [V].
        chunk_tokens: tokens whose logits exist at once; default: :func:`chunk_size`.
        shard: the vocabulary is spread over ranks, which call this with the same other arguments and all get
            the same results; ``bias`` is this rank's too.
        transform: applied to ``hidden @ weight.T + bias`` before the temperature.

    Returns:
        [N] per name, float32 (float64 for float64 inputs).
    """
    # Ranks exchange something per chunk, so all need the same number of them, whatever rows they hold.
    step = chunk_tokens or chunk_size(weight.shape[0] if shard is None else shard.per_rank)
    values = _TokenOutputs.apply(hidden, weight, bias, targets, temperature, tuple(outputs), step, shard, transform)
    return dict(zip(outputs, values, strict=True))


class _TokenOutputs(torch.autograd.Function):
    """With p = softmax(z), the derivatives by z_j are: of log p_y, 1[j=y] - p_j; of the entropy,
    -p_j (log p_j + H); of the mean log-prob, 1/V - p_j; of the logsumexp, p_j."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        names: tuple[str, ...],
        step: int,
        shard: VocabShard | None,
        transform: LogitTransform | None,
    ) -> tuple[Tensor, ...]:
        count = hidden.shape[0]
        results = {name: torch.empty(count, dtype=_accumulator(hidden), device=hidden.device) for name in names}
        # With it every rank knows its rows' probabilities again, without another exchange.
        logsumexps = None if shard is None else torch.empty_like(hidden[:, 0], dtype=_accumulator(hidden))
        # A single chunk may stay: the backward pass would hold as much anyway, and keeping it saves
        # a quarter to a third of the head's time (measured on CPU, vocabularies of 128 to 152k).
        kept = None
        for start in range(0, count, step):
            part = slice(start, start + step)
            z = _logits(hidden[part], weight, bias, temperature, transform)
            if shard is None:
                log_p = torch.log_softmax(z, dim=-1)
                for name, result in results.items():
                    result[part] = _VALUES[name](z, log_p, targets[part, None])
            else:
                log_p, logsumexp = shard.log_softmax(z)
                assert logsumexps is not None
                logsumexps[part] = logsumexp
                for name, result in results.items():
                    result[part] = _sharded_value(name, log_p, logsumexp, targets[part, None], shard)
            if count <= step and (transform is None or transform.cap is None):
                kept = log_p  # of capped logits the derivative needs the logits too
        if shard is not None and (partial := [r for name, r in results.items() if name != "logsumexp"]):
            for result, total in zip(partial, shard.sum(torch.stack(partial)), strict=True):
                result.copy_(total)
        needs_backward = any(ctx.needs_input_grad[:3])
        kept = kept if needs_backward else None
        ctx.save_for_backward(hidden, weight, bias, targets, results.get("entropy"), logsumexps, kept)
        ctx.temperature, ctx.names, ctx.step, ctx.shard, ctx.transform = temperature, names, step, shard, transform
        return tuple(results.values())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropies, logsumexps, kept = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        dtype = gradients[0].dtype
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # Summed over chunks in full precision: bf16 sums lose small contributions.
        grad_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device) if need_weight else None
        grad_bias = torch.zeros(bias.shape, dtype=dtype, device=bias.device) if need_bias else None
        for start in range(0, hidden.shape[0], ctx.step):
            part = slice(start, start + ctx.step)
            h = hidden[part]
            log_p, z = kept, None
            if log_p is None:
                z = _logits(h, weight, bias, ctx.temperature, ctx.transform)
                log_p = torch.log_softmax(z, dim=-1) if ctx.shard is None else z - logsumexps[part, None]
            given = dict(zip(ctx.names, (g[part, None] for g in gradients), strict=True))
            entropy = entropies[part, None] if entropies is not None else None
            grad = _logits_gradient(given, log_p, targets[part, None], entropy, ctx.shard)
            grad /= ctx.temperature
            if ctx.transform is not None:
                grad = ctx.transform.gradient(grad, None if z is None else z * ctx.temperature)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad @ weight
            if grad_weight is not None:
                grad_weight += grad.T @ h
        if grad_hidden is not None and ctx.shard is not None:
            ctx.shard.sum(grad_hidden)
        return (
            grad_hidden,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
            None,
            None,
            None,
            None,
            None,
            None,
        )


_VALUES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "logprobs": lambda z, log_p, target: log_p.gather(1, target).squeeze(1),
    "entropy": lambda z, log_p, target: -(log_p.exp() * log_p).sum(1),
    "mean_logprobs": lambda z, log_p, target: log_p.mean(1),
    # log p_j = z_j - logsumexp(z) at any j; the target's saves another pass over the vocabulary.
    "logsumexp": lambda z, log_p, target: (z.gather(1, target) - log_p.gather(1, target)).squeeze(1),
}


def _sharded_value(name: str, log_p: Tensor, logsumexp: Tensor, target: Tensor, shard: VocabShard) -> Tensor:
    """[N]: this rank's part of an output, to be summed over ranks (``logsumexp``: the whole)."""
    if name == "logsumexp":
        return logsumexp
    if name == "entropy":
        return -(log_p.exp() * log_p).sum(1)
    if name == "mean_logprobs":
        return log_p.sum(1) / shard.total
    if not log_p.shape[1]:
        return log_p.new_zeros(len(log_p))
    index, mine = shard.locate(target, log_p.shape[1])
    return torch.where(mine, log_p.gather(1, index), 0.0).squeeze(1)


def _logits_gradient(
    given: dict[str, Tensor], log_p: Tensor, target: Tensor, entropy: Tensor | None, shard: VocabShard | None
) -> Tensor:
    """[N, V]: the gradient by z from those by the outputs ([N, 1] each); see :class:`_TokenOutputs`."""
    signs = {"logprobs": -1.0, "mean_logprobs": -1.0, "logsumexp": 1.0}
    weight_of_p = sum(sign * given[name] for name, sign in signs.items() if name in given)
    p = log_p.exp()
    grad = weight_of_p * p
    if entropy is not None:
        grad -= given["entropy"] * p * (log_p + entropy)
    if "mean_logprobs" in given:
        grad += given["mean_logprobs"] / (log_p.shape[1] if shard is None else shard.total)
    if "logprobs" in given:
        if shard is None:
            grad.scatter_add_(1, target, given["logprobs"])
        elif log_p.shape[1]:
            index, mine = shard.locate(target, log_p.shape[1])
            grad.scatter_add_(1, index, torch.where(mine, given["logprobs"], 0.0))
    return grad


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, transform: LogitTransform | None
) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias).to(_accumulator(hidden))
    if transform is not None:
        logits = transform(logits)
    return logits / temperature if temperature != 1.0 else logits


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
