"""Models as the losses see them: hidden states go in at one end, per-token numbers come out.

The projection to log-probs happens inside ``forward``, because that is where FSDP has the output
embedding in one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from rl_core.contracts.model import Head
from rl_core.errors import EnvironmentProblem
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from rl_torch.architectures import body_of, only_windows, vocabulary
from rl_torch.logits import LogitTransform, logit_transform
from rl_torch.logprobs import token_outputs
from rl_torch.losses import TokenOutputs
from rl_torch.microbatch import MicroBatch
from rl_torch.routing import Balancing
from rl_torch.vocab_parallel import VocabShard

OUTPUTS: dict[Head, tuple[str, ...]] = {
    "lm": ("logprobs", "entropy", "mean_logprobs", "logsumexp"),
    "scalar": ("values", "scores"),
}
"""The outputs of each head."""


Narrow = Callable[[Tensor, Tensor], tuple[dict[str, Any], Tensor]]
"""``(input_ids, indices) → (arguments, places)``: has a model compute its last hidden states at ``indices`` (int64 [N],
of the R · L positions of ``input_ids``) only. ``arguments`` go to the model's forward; the states wanted are at
``places`` (int64 [N]) of what it returns."""


class PolicyModel(nn.Module):
    """A causal language model that answers with token log-probs and entropies.

    Args:
        model: as from :func:`rl_torch.models.build_model`; its parameter names stay the Hugging Face ones.
        chunk_tokens: see :func:`rl_torch.logprobs.token_outputs`.
        transform: what the model does to its logits, as :func:`check_supported` finds it.
    """

    head: Head = "lm"

    def __init__(
        self, model: PreTrainedModel, *, chunk_tokens: int | None = None, transform: LogitTransform | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.transform = transform
        self.chunk_tokens = chunk_tokens
        self.narrow: Narrow | None = None
        """Set where a kernel computes some positions of ``model`` only."""
        self.vocab_shard: VocabShard | None = None
        """Set by tensor parallelism, where the output embedding is a DTensor split by rows."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        *,
        predictors: Tensor,
        targets: Tensor,
        last: Tensor,
        outputs: tuple[str, ...],
        temperature: float,
        balancing: Balancing | None = None,
        tokens: Tensor | None = None,
        **attention: Any,
    ) -> dict[str, Tensor]:
        """``outputs``, float32 [N] each; :class:`~rl_torch.microbatch.MicroBatch` has the arguments.

        With ``balancing`` there is ``router_loss`` too, a scalar over the positions ``tokens``. ``attention`` is passed
        on to the attention functions of the model's layers.
        """
        if balancing is not None:
            attention["output_router_logits"] = True
        hidden, routers = hidden_at(self.model, predictors, input_ids, position_ids, narrow=self.narrow, **attention)
        embedding = self.model.get_output_embeddings()
        if (before := layers_before_logits(self.model)) is not None:
            hidden = before(hidden)
        weight = embedding.weight if self.vocab_shard is None else embedding.weight.to_local()
        found = token_outputs(
            hidden,
            weight,
            targets,
            outputs=outputs,
            bias=getattr(embedding, "bias", None),
            temperature=temperature,
            chunk_tokens=self.chunk_tokens,
            shard=self.vocab_shard,
            transform=self.transform,
        )
        if balancing is not None:
            assert tokens is not None  # a micro-batch gives both
            found["router_loss"] = balancing.loss(routers, tokens)
        return found


class ScalarModel(nn.Module):
    """A transformer with one linear output ``score``: values per token, or one score per sequence.

    Args:
        model: a sequence-classification model with one label, as from
            ``build_model(spec, head="scalar")``.
    """

    head: Head = "scalar"

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.narrow: Narrow | None = None

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        *,
        predictors: Tensor,
        targets: Tensor,
        last: Tensor,
        outputs: tuple[str, ...],
        temperature: float,
        **attention: Any,
    ) -> dict[str, Tensor]:
        """``values`` float32 [N] at ``predictors`` and ``scores`` float32 [B] at ``last``."""
        indices = {"values": predictors, "scores": last}
        asked = [indices[name] for name in outputs]
        hidden, _ = hidden_at(self.model, torch.cat(asked), input_ids, position_ids, narrow=self.narrow, **attention)
        score: Any = self.model.score
        weight = score.weight.float()
        values = nn.functional.linear(hidden.float(), weight).squeeze(-1)
        # Cloned, because FSDP's hooks cannot follow in-place changes of a view.
        return {n: part.clone() for n, part in zip(outputs, values.split([len(x) for x in asked]), strict=True)}


def wrap_model(
    model: PreTrainedModel,
    head: Head,
    *,
    chunk_tokens: int | None = None,
    transform: LogitTransform | None = None,
) -> PolicyModel | ScalarModel:
    """The wrapper for a model with this head."""
    if head == "lm":
        return PolicyModel(model, chunk_tokens=chunk_tokens, transform=transform)
    return ScalarModel(model)


def compute_outputs(
    model: PolicyModel | ScalarModel,
    micro: MicroBatch,
    outputs: tuple[str, ...],
    *,
    temperature: float = 1.0,
    balancing: Balancing | None = None,
    **attention: Any,
) -> TokenOutputs:
    """One forward pass; the results go back to batch order, free of padding.

    ``attention`` goes to the attention functions of the model's layers. With ``balancing`` (of a language model) the
    loss of its routers is computed too.

    Raises:
        ValueError: the model's head cannot compute one of ``outputs``.
    """
    check_outputs(model.head, outputs)
    if balancing is not None:
        attention |= {"balancing": balancing, "tokens": micro.indices}
    results = model(
        micro.input_ids,
        micro.position_ids,
        predictors=micro.predictors,
        targets=micro.targets,
        last=score_indices(model.model.config, model.head, micro),
        outputs=tuple(outputs),
        temperature=temperature,
        **attention,
    )
    return in_batch_order(results, micro)


def check_outputs(head: Head, outputs: tuple[str, ...]) -> None:
    """Refuse what a head cannot compute.

    Raises:
        ValueError: names the first such output.
    """
    possible = OUTPUTS[head]
    odd = [name for name in outputs if name not in possible]
    if odd:
        listed = f"{', '.join(possible[:-1])} and {possible[-1]}"
        raise ValueError(f"a model with a {head!r} head computes {listed}, not {odd[0]!r}")


def score_indices(config: PretrainedConfig, head: Head, micro: MicroBatch) -> Tensor:
    """int64 [B]: the position at which each sequence's score stands.

    That is its last token that is not the config's padding token, as in transformers, which cannot tell an end
    token that is also the padding token from padding.
    """
    pad = getattr(config.get_text_config(decoder=True), "pad_token_id", None)
    return micro.last if head == "lm" or pad is None else _last_unpadded(micro, pad)


def in_batch_order(results: dict[str, Tensor], micro: MicroBatch) -> TokenOutputs:
    """Outputs of a forward pass at ``micro``'s positions ([N] or [B] per name), in the form that losses take."""

    def per_token(name: str) -> Tensor | None:
        if name not in results:
            return None
        values = results[name]
        return values.new_zeros(len(micro.batch.tokens)).index_copy(0, micro.scored, values)

    return TokenOutputs(
        logprobs=per_token("logprobs"),
        entropy=per_token("entropy"),
        values=per_token("values"),
        scores=results.get("scores"),
        sequence_ids=micro.sequence_ids,
        num_sequences=len(micro.batch),
        mean_logprobs=per_token("mean_logprobs"),
        logsumexp=per_token("logsumexp"),
        router_loss=results.get("router_loss"),
    )


@dataclass(frozen=True)
class Support:
    """Result of :func:`check_supported` for an architecture.

    Attributes:
        packed: sequences that share a row do not see each other.
        transform: from ``hidden @ weight.T`` to logits; None where that is all, and with a scalar head.
    """

    packed: bool
    transform: LogitTransform | None = None


@torch.no_grad()
def check_supported(model: PreTrainedModel) -> Support:
    """Try an architecture on a few tokens: its own forward, and the ways it is used here.

    Costs milliseconds to seconds. Call it before sharding, on the model, or on a small one of its kind.

    Raises:
        EnvironmentProblem: names the architecture and what does not hold.
    """
    body, name = body_of(model), type(model).__name__
    device = next(model.parameters()).device
    ids = torch.arange(1, 10, device=device).remainder(vocabulary(model.config))[None]
    try:
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state
        embedding = model.get_output_embeddings()
        if embedding is not None:
            model(input_ids=ids, use_cache=False)
        causal = _ignores_what_follows(body, ids, hidden)
        packed = only_windows(model.config) and _keeps_apart(body, ids, hidden)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a family's own code: transformers has hundreds
        raise EnvironmentProblem(
            f"{name} cannot be run on a row of text with transformers {transformers.__version__}: "
            f"{type(error).__name__}: {error}\n"
            "    choose another architecture (docs/models.md lists those that work)"
        ) from error
    if not causal:
        raise EnvironmentProblem(
            f"{name} lets tokens see what follows them, or counts it: what it says of a sequence depends on the "
            "padding behind it\n    choose another architecture (docs/models.md lists those that work)"
        )
    if embedding is None:
        return Support(packed)
    before = layers_before_logits(model)
    transform = logit_transform(model, ids, hidden if before is None else before(hidden))
    return Support(packed, None if transform == LogitTransform() else transform)


def layers_before_logits(model: PreTrainedModel) -> nn.Module | None:
    """What some models (ModernBERT) put between their last hidden states and the output embedding."""
    head = getattr(model, "lm_head", None)
    return None if head is None or head is model.get_output_embeddings() else head


def _ignores_what_follows(body: Any, ids: Tensor, hidden: Tensor) -> bool:
    """Whether the states of ``ids`` [1, L] are ``hidden`` with other tokens behind them too."""
    states = body(input_ids=torch.cat([ids, torch.zeros_like(ids)], 1), use_cache=False).last_hidden_state
    return states.shape[1] == 2 * ids.shape[1] and _equal(states[:, : ids.shape[1]], hidden)


def _equal(states: Tensor, hidden: Tensor) -> bool:
    """Up to rounding, in another order of sums."""
    rounding = 3e-5 if hidden.dtype == torch.float32 else 3e-2
    return bool((states.float() - hidden.float()).abs().max() <= rounding * (1 + hidden.float().abs().max()))


def _keeps_apart(body: Any, ids: Tensor, hidden: Tensor) -> bool:
    """Whether ``ids`` [1, L] have the states they have by themselves, ``hidden``, behind others in the same row.

    True of models that begin anew where positions do.
    """
    length = ids.shape[1]
    before = ids.flip(1)
    positions = torch.arange(length, device=ids.device).repeat(2)[None]
    try:
        states = body(input_ids=torch.cat([before, ids], 1), position_ids=positions, use_cache=False).last_hidden_state
    except (TypeError, ValueError, RuntimeError):  # no positions can be given to it
        return False
    return _equal(states[:, length:], hidden)


def _last_unpadded(micro: MicroBatch, pad: int) -> Tensor:
    """[B]: the position of each sequence's last token that is not ``pad``; its first one's if all of them are."""
    batch = micro.batch
    unpadded = np.maximum.accumulate(np.where(batch.tokens != pad, np.arange(len(batch.tokens)), -1))
    tokens = np.maximum(unpadded[batch.offsets[1:] - 1], batch.offsets[:-1])
    return micro.indices[torch.from_numpy(tokens).to(micro.indices.device)]


def hidden_at(
    model: PreTrainedModel,
    indices: Tensor,
    input_ids: Tensor,
    position_ids: Tensor | None,
    *,
    narrow: Narrow | None = None,
    **attention: Any,
) -> tuple[Tensor, Any]:
    """[N, H]: the last hidden states at ``indices`` (int64 [N], of R · L); and the router logits, where asked for."""
    if narrow is not None:
        further, indices = narrow(input_ids, indices)
        attention |= further
    if position_ids is not None:
        attention["position_ids"] = position_ids  # not None otherwise: some models know no positions
    found = body_of(model)(input_ids=input_ids, use_cache=False, **attention)
    return found.last_hidden_state.flatten(0, 1).index_select(0, indices), getattr(found, "router_logits", None)
